"""A differentiable triangle rasterizer for JAX; README.md explains it."""

from .antialias import antialias
from .cameras import (
    Camera,
    look_at,
    orthographic_camera,
    perspective_camera,
    project,
    rotation_matrix,
    to_camera,
    to_pixels,
    unproject,
)
from .clipping import ClippedMesh, clip_near, unclip
from .depth import render_depth, render_grid_depth, render_silhouette
from .interpolate import interpolate, slopes_at
from .layers import blend_layers, rasterize_layers
from .mesh import grid_faces
from .normals import vertex_normals
from .options import DrawOptions, FragmentOptions, ImageOptions
from .rasterize import barycentrics_at, rasterize
from .texture import mip_pyramid, sample_texture
from .types import DepthImage, Fragments

__all__ = [
    "Camera",
    "ClippedMesh",
    "DepthImage",
    "DrawOptions",
    "FragmentOptions",
    "Fragments",
    "ImageOptions",
    "antialias",
    "barycentrics_at",
    "blend_layers",
    "clip_near",
    "grid_faces",
    "interpolate",
    "look_at",
    "mip_pyramid",
    "orthographic_camera",
    "perspective_camera",
    "project",
    "rasterize",
    "rasterize_layers",
    "render_depth",
    "render_grid_depth",
    "render_silhouette",
    "rotation_matrix",
    "sample_texture",
    "slopes_at",
    "to_camera",
    "to_pixels",
    "unclip",
    "unproject",
    "vertex_normals",
]
