"""The Basel Face Models, in the two kinds of file that they are distributed in.

2009: MATLAB 5, deviations, triangles from 1, micrometres. 2017 and 2019: HDF5,
variances, triangles from 0, millimetres, expressions. Both interleave x, y, z. They
hold no mirror, no layout and no landmarks by vertex. Models here are in millimetres.
The files need a licence of their own from Basel; none ships.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.nets import h5_files, mat_files
from unsup3d_jax.nets.file_guard import existing
from unsup3d_jax.nets.weight_files import require_array
from unsup3d_jax.stn3dmm import model_checks
from unsup3d_jax.stn3dmm.model_files import integers
from unsup3d_jax.stn3dmm.types import MorphableModel

_MILLIMETRE = 1e-3  # metres
_MAT_KEYS = ("shapeMU", "shapePC", "shapeEV", "tl")
_LICENCE = "Basel Face Model licence: research only, no redistribution"


def read_basel_2009(path: str | Path) -> MorphableModel:
    """Reads `01_MorphableModel.mat`.

    Raises:
        UserError: naming the file and the array that is missing or wrong.
    """
    path = existing(path)
    source, read = str(path), mat_files.read_mat(path)
    arrays: dict[str, np.ndarray] = {}
    for key in _MAT_KEYS:
        if isinstance(read.get(key), np.ndarray):
            arrays[key] = read[key]
        elif key in read:  # a structure, a text, a function
            raise UserError(f"{source}: {key!r} must hold numbers.")
    size = _size(arrays, "shapeMU", 0, source)
    columns = _size(arrays, "shapePC", 1, source)
    triangles = _size(arrays, "tl", 0, source)
    mean = require_array(arrays, "shapeMU", (size, 1), source=source)
    components = require_array(arrays, "shapePC", (size, columns), source=source)
    ev = "shapeEV"
    if ev in arrays:  # a row or a column
        arrays[ev] = arrays[ev].reshape(-1)
    deviations = require_array(arrays, ev, (columns,), source=source)
    faces = integers(arrays, "tl", (triangles, 3), source) - np.int32(1)
    micrometres = np.float32(1e-3)
    return _model(
        path,
        mean=mean[:, 0] * micrometres,
        identity=(components, deviations * micrometres),
        expression=None,
        faces=faces,
        name="basel-2009",
    )


def read_basel_h5(path: str | Path) -> MorphableModel:
    """Reads `model2017-1_*.h5` or `model2019_*.h5`.

    Raises:
        UserError: naming the file and the array that is missing or wrong; or the
            package that reads such files, where it is not installed.
    """
    path = existing(path)
    names = [
        f"{part}/model/{key}"
        for part in ("shape", "expression")
        for key in ("mean", "pcaBasis", "pcaVariance")
    ]
    arrays: dict[str, np.ndarray] = {}
    with h5_files.opened(path) as file:
        for name in (*names, "shape/representer/cells"):
            if (stored := file.array(name)) is not None:
                arrays[name] = stored.array()
    source = str(path)
    size = _size(arrays, "shape/model/mean", 0, source)
    triangles = _size(arrays, "shape/representer/cells", 1, source)
    mean = require_array(arrays, "shape/model/mean", (size,), source=source)
    expression = None
    if any(name.startswith("expression/") for name in arrays):
        neutral = require_array(arrays, "expression/model/mean", (size,), source=source)
        mean = mean + neutral
        expression = _h5_columns(arrays, "expression", size, source)
    cells = integers(arrays, "shape/representer/cells", (3, triangles), source)
    return _model(
        path,
        mean=mean,
        identity=_h5_columns(arrays, "shape", size, source),
        expression=expression,
        faces=np.ascontiguousarray(cells.T),
        name=path.stem,
    )


def _h5_columns(
    arrays: Mapping[str, np.ndarray], part: str, size: int, source: str
) -> tuple[np.ndarray, np.ndarray]:
    basis, variance = f"{part}/model/pcaBasis", f"{part}/model/pcaVariance"
    columns = _size(arrays, basis, 1, source)
    components = require_array(arrays, basis, (size, columns), source=source)
    variances = require_array(arrays, variance, (columns,), source=source)
    if (variances < 0.0).any():
        raise UserError(f"{source}: {variance!r} must hold variances, found negative.")
    return components, np.sqrt(variances)


def _size(arrays: Mapping[str, Any], key: str, axis: int, source: str) -> int:
    if key not in arrays:
        raise UserError(f"{source}: {key!r} is missing; this is no Basel face model.")
    shape = np.shape(arrays[key])
    if len(shape) <= axis:
        raise UserError(f"{source}: {key!r} has shape {shape}, too few axes.")
    return shape[axis]


def _model(
    path: Path,
    *,
    mean: np.ndarray,
    identity: tuple[np.ndarray, np.ndarray],
    expression: tuple[np.ndarray, np.ndarray] | None,
    faces: np.ndarray,
    name: str,
) -> MorphableModel:
    """A model of interleaved columns (3 n, d) and their deviations (d,)."""
    if len(mean) % 3:
        raise UserError(f"{path}: the mean has {len(mean)} numbers, not x, y, z each.")
    count = len(mean) // 3

    def columns(of: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
        if of is None:
            return np.zeros((0, count, 3), np.float32)
        components, deviations = of
        return np.ascontiguousarray((components * deviations).T).reshape(-1, count, 3)

    mean = mean.reshape(count, 3)
    model = MorphableModel(
        mean=mean,
        identity=columns(identity),
        expression=columns(expression),
        faces=faces,
        landmarks={},
        mirror=None,
        uv=None,
        unit=_MILLIMETRE,
        name=name,
        licence=_LICENCE,
    )
    with refusing(f"{path}: "):
        return model_checks.with_mirror(model_checks.checked(model))
