"""A differentiable triangle rasterizer for JAX; README.md explains it."""

from .antialias import antialias
from .depth import render_depth, render_grid_depth, render_silhouette
from .interpolate import interpolate
from .mesh import grid_faces
from .normals import vertex_normals
from .options import DrawOptions, ImageOptions
from .rasterize import barycentrics_at, rasterize
from .texture import sample_texture
from .types import DepthImage, Fragments

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
