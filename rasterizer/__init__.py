"""A differentiable triangle rasterizer for JAX; README.md explains it."""

from rasterizer.antialias import antialias
from rasterizer.depth import render_depth, render_grid_depth, render_silhouette
from rasterizer.interpolate import interpolate
from rasterizer.mesh import grid_faces
from rasterizer.normals import vertex_normals
from rasterizer.options import DrawOptions, ImageOptions
from rasterizer.rasterize import barycentrics_at, rasterize
from rasterizer.texture import sample_texture
from rasterizer.types import DepthImage, Fragments

__all__ = [
    "DepthImage",
    "DrawOptions",
    "Fragments",
    "ImageOptions",
    "antialias",
    "barycentrics_at",
    "grid_faces",
    "interpolate",
    "rasterize",
    "render_depth",
    "render_grid_depth",
    "render_silhouette",
    "sample_texture",
    "vertex_normals",
]
