"""Morphable models in files of our own: plain .npz, arrays of numbers only.

Keys: mean, identity, expression, faces, mirror, uv (the last two where there are
any), unit, name, licence (texts as bytes of UTF-8), and of each set of landmarks NAME
landmarks.NAME.ids, .weights, .flip.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unsup3d_jax.data import array_files
from unsup3d_jax.errors import UserError, refusing, writing
from unsup3d_jax.nets.file_guard import StoredArray
from unsup3d_jax.nets.weight_files import read_npz, require_array
from unsup3d_jax.stn3dmm import model_checks
from unsup3d_jax.stn3dmm.types import LandmarkSet, MorphableModel

_LONGEST_TEXT = 10_000
_MOST_SETS = 20


def save_model(path: str | Path, model: MorphableModel) -> None:
    """Writes a model, whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    arrays = {
        "mean": model.mean,
        "identity": model.identity,
        "expression": model.expression,
        "faces": model.faces,
        "unit": np.asarray(model.unit, np.float64),
        "name": _bytes(model.name),
        "licence": _bytes(model.licence),
    }
    if model.mirror is not None:
        arrays["mirror"] = model.mirror
    if model.uv is not None:
        arrays["uv"] = model.uv
    for name, points in model.landmarks.items():
        arrays[f"landmarks.{name}.ids"] = points.ids
        arrays[f"landmarks.{name}.weights"] = points.weights
        arrays[f"landmarks.{name}.flip"] = points.flip
    with writing(path):
        array_files.write(path, arrays)


def read_model(path: str | Path) -> MorphableModel:
    """Reads what `save_model` wrote.

    Raises:
        UserError: naming the file and the array that is missing or wrong.
    """
    source, arrays = str(path), read_npz(path)
    count = _rows(arrays, "mean", source)
    floats: dict[str, np.ndarray] = {
        key: require_array(arrays, key, shape, source=source)
        for key, shape in (
            ("mean", (count, 3)),
            ("identity", (_rows(arrays, "identity", source), count, 3)),
            ("expression", (_rows(arrays, "expression", source), count, 3)),
            *((("uv", (count, 2)),) if "uv" in arrays else ()),
        )
    }
    sets = {key.split(".")[1] for key in arrays if key.count(".") == 2}
    if len(sets) > _MOST_SETS:
        raise UserError(f"{source}: holds {len(sets)} sets of landmarks; refused.")
    landmarks = {name: _landmarks(arrays, name, source) for name in sorted(sets)}
    mirror = None
    if "mirror" in arrays:
        mirror = integers(arrays, "mirror", (count,), source)
    faces = integers(arrays, "faces", (_rows(arrays, "faces", source), 3), source)
    require_array(arrays, "unit", (), source=source)
    unit = arrays["unit"].array()  # float64, which the check narrows
    model = MorphableModel(
        mean=floats["mean"],
        identity=floats["identity"],
        expression=floats["expression"],
        faces=faces,
        landmarks=landmarks,
        mirror=mirror,
        uv=floats.get("uv"),
        unit=float(unit),
        name=_text(arrays, "name", source) or Path(path).stem,
        licence=_text(arrays, "licence", source),
    )
    with refusing(f"{source}: "):
        return model_checks.checked(model)


def _landmarks(
    arrays: Mapping[str, StoredArray], name: str, source: str
) -> LandmarkSet:
    ids = f"landmarks.{name}.ids"
    number, each = _rows(arrays, ids, source), arrays[ids].shape[-1]
    return LandmarkSet(
        ids=integers(arrays, ids, (number, each), source),
        weights=require_array(
            arrays, f"landmarks.{name}.weights", (number, each), source=source
        ),
        flip=integers(arrays, f"landmarks.{name}.flip", (number,), source),
    )


def _rows(arrays: Mapping[str, StoredArray], key: str, source: str) -> int:
    """The first axis of an array that must be there, whatever the others."""
    if key not in arrays:
        raise UserError(
            f"{source}: array {key!r} is missing; a morphable model has mean, "
            "identity, expression, faces and unit."
        )
    shape = arrays[key].shape
    if not shape:
        raise UserError(f"{source}: {key!r} must have axes, found a number.")
    return shape[0]


def integers(
    arrays: Mapping[str, StoredArray | np.ndarray],
    key: str,
    shape: tuple[int, ...],
    source: str,
) -> np.ndarray:
    """An array of whole numbers as int32; `require_array` for indices.

    Floating point numbers that are whole, as MATLAB's are, count.

    Raises:
        UserError: if the key is missing, or its shape or numbers are wrong.
    """
    value = arrays.get(key)
    there = tuple(getattr(value, "shape", ()))
    if not isinstance(value, (StoredArray, np.ndarray)) or there != shape:
        found = "nothing" if value is None else there
        raise UserError(f"{source}: {key!r} must have shape {shape}, found {found}.")
    array = value.array() if isinstance(value, StoredArray) else value
    limit = np.iinfo(np.int32)
    whole = array.dtype.kind in "iu" or (
        array.dtype.kind == "f"
        and bool(np.isfinite(array).all())
        and bool((array == np.floor(array)).all())
    )
    if not whole or (
        array.size and not limit.min <= array.min() <= array.max() <= limit.max
    ):
        raise UserError(f"{source}: {key!r} must hold whole numbers.")
    return array.astype(np.int32)


def _bytes(text: str) -> np.ndarray:
    return np.array(bytearray(text.encode()), np.uint8)


def _text(arrays: Mapping[str, StoredArray], key: str, source: str) -> str:
    if key not in arrays:
        return ""
    value = arrays[key]
    if len(value.shape) != 1 or value.shape[0] > _LONGEST_TEXT:
        raise UserError(f"{source}: {key!r} must be a text as bytes.")
    return value.array().astype(np.uint8).tobytes().decode("utf-8", "replace")
