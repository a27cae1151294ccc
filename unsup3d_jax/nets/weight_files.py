"""Arrays out of weight files: .safetensors, .npz, what wrappers hide, and checks.

Pickles and PyTorch's files: `torch_files`. Every reader gives `StoredArray`s, whose
numbers `require_array` reads.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import zip_members
from unsup3d_jax.nets.file_guard import (
    Budget,
    Refused,
    StoredArray,
    existing,
    reading,
    shape_of,
    shown,
)

# What training scripts wrap a state dictionary in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_DEEPEST = 8  # wrappers in wrappers; one that holds itself has no end
_NPY_HEADER = 16 * 1024  # bytes, more than any array of numbers has


def read_safetensors(path: str | Path) -> dict[str, StoredArray]:
    """Reads what arrays a .safetensors file holds.

    Returns:
        {name: array}; bfloat16 is widened to float32.

    Raises:
        UserError: if the file is missing, damaged or of another format.
    """
    path = existing(path)
    with reading(path, ".safetensors file"):
        budget, arrays = Budget(path), {}
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():
                shape = shape_of(file.get_slice(name).get_shape())
                arrays[name] = _of_safetensors(path, name, budget, shape)
        return arrays


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """What a .safetensors file says about itself.

    Raises:
        UserError: if the file is missing, damaged or of another format.
    """
    path = existing(path)
    with reading(path, ".safetensors file"):
        with safetensors.safe_open(path, "np") as file:
            return dict(file.metadata() or {})


def _of_safetensors(
    path: Path, name: str, budget: Budget, shape: tuple[int, ...]
) -> StoredArray:
    def read() -> np.ndarray:
        with safetensors.safe_open(path, "np") as file:
            array = file.get_tensor(name)
        widened = array.dtype == ml_dtypes.bfloat16
        return array.astype(np.float32) if widened else array

    # No more than the file has: the format has no compression.
    return StoredArray(budget, shape, 0, read)


def read_npz(path: str | Path) -> dict[str, StoredArray]:
    """Reads what arrays of numbers a .npz file holds; others are left out.

    Raises:
        UserError: if the file is missing, damaged or of another format.
    """
    path = existing(path)
    with reading(path, ".npz file"):
        budget = Budget(path)
        archive = zip_members.Archive(path, budget)
        arrays = {}
        for name in archive.sizes:
            if name.endswith(".npy"):
                array = _of_npz(archive, name, budget)
                if array is not None:
                    arrays[name.removesuffix(".npy")] = array
        return arrays


def _of_npz(
    archive: zip_members.Archive, name: str, budget: Budget
) -> StoredArray | None:
    form = np.lib.format
    header = archive.head(name, _NPY_HEADER)
    version = form.read_magic(header)
    if version not in ((1, 0), (2, 0)):
        raise Refused(f"array {name!r} is of an unknown version of .npy.")
    read_header = (
        form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
    )
    shape, in_columns, dtype = read_header(header)
    shape, start = shape_of(shape), header.tell()
    if dtype.kind not in "fiub":
        return None
    if archive.sizes[name] != start + math.prod(shape) * dtype.itemsize:
        raise Refused(f"array {name!r} of shape {shape} is not all there.")

    def read() -> np.ndarray:
        flat = np.frombuffer(archive.read(name), dtype, offset=start)
        return flat.reshape(shape, order="F" if in_columns else "C")

    return StoredArray(budget, shape, 0, read)


def unwrapped(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dictionary inside what training scripts wrap around it."""
    for _ in range(_DEEPEST):
        inner = [tree[n] for n in _WRAPPERS if isinstance(tree.get(n), Mapping)]
        if not inner:
            break
        tree = inner[0]
    return tree


def prefix_of(state: Mapping[str, Any], name: str) -> str | None:
    """What stands before `name` in the one key that ends in it; None if absent.

    Such as "module.", which training on several GPUs leaves.
    """
    found = [key for key in state if key == name or key.endswith(f".{name}")]
    return min(found, key=len)[: -len(name)] if found else None


def require_array(
    tree: Mapping[str, Any], key: str, shape: tuple[int, ...], *, source: str
) -> np.ndarray:
    """Reads one float32 array out of a state dictionary and checks its shape.

    Args:
        tree: values are `StoredArray`s or numpy arrays.
        key: name in the dictionary.
        shape: expected.
        source: file (and part of it) for the message.

    Raises:
        UserError: if the key is missing, or its shape or numbers are wrong.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: expected a dictionary with key {key!r}.")
    if key not in tree:
        raise UserError(
            f"{source}: key {key!r} is missing (expected shape {shape}); found "
            f"{len(tree)} keys, the first are {shown(list(tree)[:4])}."
        )
    value = tree[key]
    found = tuple(getattr(value, "shape", ()))
    if found != shape or not isinstance(value, (StoredArray, np.ndarray)):
        raise UserError(f"{source}: {key!r} must have shape {shape}, found {found}.")
    array = value.array() if isinstance(value, StoredArray) else value
    is_float = array.dtype.kind == "f"
    with np.errstate(over="ignore"):  # a float64 may be no float32
        array = np.asarray(array, np.float32)
    if not is_float or not np.isfinite(array).all():
        raise UserError(f"{source}: {key!r} must hold finite floating point numbers.")
    return array
