"""A differentiable triangle rasterizer for JAX."""

from rasterizer.depth import render_depth, render_grid_depth, render_silhouette
from rasterizer.interpolate import interpolate
from rasterizer.mesh import grid_faces
from rasterizer.rasterize import barycentrics_at, rasterize
from rasterizer.types import DepthImage, Fragments

__all__ = [
    "DepthImage",
    "Fragments",
    "barycentrics_at",
    "grid_faces",
    "interpolate",
    "rasterize",
    "render_depth",
    "render_grid_depth",
    "render_silhouette",
]
