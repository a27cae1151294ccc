"""Morphable models by name or file, and the one place that others take them from."""

from pathlib import Path

from unsup3d_jax.stn3dmm.coefficients import coefficient_mirror
from unsup3d_jax.stn3dmm.framing import default_camera
from unsup3d_jax.stn3dmm.grid import grid_model
from unsup3d_jax.stn3dmm.open_model import alpha_of, open_model
from unsup3d_jax.stn3dmm.types import GridModel, LandmarkSet, MorphableModel

__all__ = [
    "GridModel",
    "LandmarkSet",
    "MorphableModel",
    "alpha_of",
    "coefficient_mirror",
    "default_camera",
    "grid_model",
    "load_model",
]


def load_model(name_or_path: str | Path) -> MorphableModel:
    """A model, checked and mended.

    Args:
        name_or_path: "open", "open-pca40" (both ship).
    """
    if name_or_path == "open":
        return open_model()
    if name_or_path == "open-pca40":
        return open_model("pca40")
    raise NotImplementedError
