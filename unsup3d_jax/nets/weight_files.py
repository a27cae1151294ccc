"""Arrays out of weight files: .safetensors, what wrappers hide, and checks.

Pickles and PyTorch's files: `torch_files`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets.torch_files import TensorHandle, existing

# What training scripts wrap a state dictionary in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a .safetensors file.

    Returns:
        {name: array}; bfloat16 is widened to float32.

    Raises:
        UserError: if the file is missing, damaged or of another format.
    """
    path = existing(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    # Beside its own error, what a type makes of it that numpy has not.
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable .safetensors file ({error})."
        ) from error
    return {
        name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        for name, array in arrays.items()
    }


def unwrapped(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dictionary inside what training scripts wrap around it."""
    for name in _WRAPPERS:
        if isinstance(tree.get(name), Mapping):
            return unwrapped(tree[name])
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
        tree: values are `TensorHandle`s or numpy arrays.
        key: name in the dictionary.
        shape: expected.
        source: file (and part of it) for the message.

    Raises:
        UserError: if the key is missing, or its shape or numbers are wrong.
    """
    if key not in tree:
        raise UserError(
            f"{source}: key {key!r} is missing (expected shape {shape}); found "
            f"{len(tree)} keys, the first are {list(tree)[:4]}."
        )
    value = tree[key]
    found = tuple(getattr(value, "shape", ()))
    if found != shape or not isinstance(value, (TensorHandle, np.ndarray)):
        raise UserError(f"{source}: {key!r} must have shape {shape}, found {found}.")
    array = value.array() if isinstance(value, TensorHandle) else value
    if array.dtype.kind != "f" or not math.isfinite(float(np.sum(array))):
        raise UserError(f"{source}: {key!r} must hold finite floating point numbers.")
    return np.asarray(array, np.float32)
