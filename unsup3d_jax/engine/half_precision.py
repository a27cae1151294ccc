"""Files of weights: parameters in half precision, and what they mean.

Those that ship with the package, and those that users make of their runs. A file may be
a stranger's: nothing in it is executed, and it is read within a budget.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from unsup3d_jax.configuration import ABOUT, about_weights, flatten
from unsup3d_jax.engine.task import Identity
from unsup3d_jax.engine.workdir import is_harmless
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing
from unsup3d_jax.nets.file_guard import Budget, reading
from unsup3d_jax.nets.zip_members import Archive

_ABSENT = object()  # no value of a key
_PLACES = ("loss.perceptual_weights", "train.init_from")  # of the maker's own disk


def meaning_of(config: ConfigDict, identity: Identity) -> dict[str, Any]:
    """The keys that give a method's parameters their meaning, JSON-able."""
    values = flatten(json.loads(json.dumps(config.to_dict())))
    return {
        key: value
        for key, value in values.items()
        if key.startswith(identity.meaning) and key not in identity.on_the_way
    }


def training_of(config: ConfigDict, identity: Identity) -> dict[str, Any]:
    """The other keys that made a run what it is, JSON-able; no place on a disk."""
    values = flatten(json.loads(json.dumps(config.to_dict())))
    meaning = meaning_of(config, identity)
    return {
        key: value
        for key, value in values.items()
        if key not in (*meaning, *_PLACES) and not is_harmless(key, identity)
    }


def save(
    path: Path,
    params: Mapping[str, Any],
    meaning: Mapping[str, Any],
    *,
    step: int,
    seed: int,
    **more: Any,
) -> None:
    """Writes parameters in half precision, and what they mean, as an .npz.

    Args:
        more: what else the file says of itself, JSON-able; "config": of `training_of`.

    Raises:
        OSError: if it cannot be written.
    """
    arrays = {
        name: np.asarray(array, np.float16)
        for name, array in traverse_util.flatten_dict(dict(params), sep="/").items()
    }
    about = {"step": step, "seed": seed, "keys": dict(meaning), **more}
    arrays[ABOUT] = np.array(json.dumps(about, sort_keys=True))
    with replacing(path) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load(
    path: Path,
    meaning: Mapping[str, Any],
    younger: Mapping[str, Any],
    *,
    what: str,
    remedy: str,
) -> tuple[dict[str, Any], int]:
    """The parameters, float32, and the step they were trained to.

    Args:
        meaning: of the config that wants them.
        younger: of the method's `Keys`: what a key meant before it was there.
        what, remedy: of the error: "the localiser that ships", "Use CONFIG, or train."

    Raises:
        UserError: if the config is of another model; names the keys that differ. If
            the file is none of weights.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; train first (--mode=train).")
    about = about_weights(path)
    if about is None or not isinstance(about.get("step"), int):
        raise UserError(f"{path} is no file of weights.")
    # A key that the file is older than has its value of then, as in a run's record.
    then = dict(younger) | about["keys"]
    unlike = sorted(key for key in meaning if then.get(key, _ABSENT) != meaning[key])
    unlike += sorted(about["keys"].keys() - meaning.keys())
    if unlike:
        raise UserError(
            f"{what} is of another model; these keys differ: {', '.join(unlike)}. "
            f"{remedy}"
        )
    with reading(path, "file of weights"):
        Archive(path, Budget(path))  # refuses what would expand to gigabytes
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != ABOUT}
        if any(array.dtype != np.float16 for array in arrays.values()):
            raise ValueError("an array is not of half precision")
        floats = {name: array.astype(np.float32) for name, array in arrays.items()}
        return traverse_util.unflatten_dict(floats, sep="/"), about["step"]
