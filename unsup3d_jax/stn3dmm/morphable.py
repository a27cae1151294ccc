"""Morphable models by name or file, and the one place that others take them from."""

from collections.abc import Callable
from pathlib import Path

from unsup3d_jax.errors import UserError
from unsup3d_jax.stn3dmm.basel_files import read_basel_2009, read_basel_h5
from unsup3d_jax.stn3dmm.framing import default_camera
from unsup3d_jax.stn3dmm.grid import grid_model
from unsup3d_jax.stn3dmm.ict_files import read_ict
from unsup3d_jax.stn3dmm.model_files import read_model, save_model
from unsup3d_jax.stn3dmm.open_model import alpha_of, open_model
from unsup3d_jax.stn3dmm.types import GridModel, LandmarkSet, MorphableModel

__all__ = [
    "GridModel",
    "LandmarkSet",
    "MorphableModel",
    "SHIPPED",
    "alpha_of",
    "default_camera",
    "grid_model",
    "load_model",
    "save_model",
]

SHIPPED: dict[str, Callable[[], MorphableModel]] = {
    "open": open_model,
    "open-pca40": lambda: open_model("pca40"),
}
_READERS: dict[str, Callable[[str | Path], MorphableModel]] = {
    ".npz": read_model,
    ".mat": read_basel_2009,
    ".h5": read_basel_h5,
}


def load_model(name_or_path: str | Path) -> MorphableModel:
    """A model, checked and its axes and winding mended.

    Args:
        name_or_path: "open" or "open-pca40", which ship; or a file of ours (.npz), of
            Basel 2009 (.mat), of Basel 2017 or 2019 (.h5), or a folder with the
            meshes of the light ICT model.

    Raises:
        UserError: if there is no such model, or the file is damaged or of another
            kind.
    """
    if str(name_or_path) in SHIPPED:
        return SHIPPED[str(name_or_path)]()
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return read_ict(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{name_or_path}: is no morphable model; expected {', '.join(SHIPPED)}, a "
            f"file ending in {', '.join(_READERS)}, or a folder of ICT meshes."
        )
    return reader(path)
