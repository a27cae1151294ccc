"""Parameters that ship with the package: half precision, and what they mean."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from unsup3d_jax.configuration import flatten
from unsup3d_jax.engine.task import Identity
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing

_ABOUT = "about"
_ABSENT = object()  # no value of a key


def meaning_of(config: ConfigDict, identity: Identity) -> dict[str, Any]:
    """The keys that give a method's parameters their meaning, JSON-able."""
    values = flatten(json.loads(json.dumps(config.to_dict())))
    return {
        key: value
        for key, value in values.items()
        if key.startswith(identity.meaning) and key not in identity.on_the_way
    }


def save(
    path: Path,
    params: Mapping[str, Any],
    meaning: Mapping[str, Any],
    *,
    step: int,
    seed: int,
) -> None:
    """Writes parameters in half precision, and what they mean, as an .npz.

    Raises:
        OSError: if it cannot be written.
    """
    arrays = {
        name: np.asarray(array, np.float16)
        for name, array in traverse_util.flatten_dict(dict(params), sep="/").items()
    }
    about = {"step": step, "seed": seed, "keys": dict(meaning)}
    arrays[_ABOUT] = np.array(json.dumps(about, sort_keys=True))
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
        UserError: if the config is of another model; names the keys that differ.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; train first (--mode=train).")
    with np.load(path, allow_pickle=False) as stored:
        about = json.loads(str(stored[_ABOUT]))
        arrays = {
            name: stored[name].astype(np.float32)
            for name in stored.files
            if name != _ABOUT
        }
    # A key that the file is older than has its value of then, as in a run's record.
    then = dict(younger) | about["keys"]
    unlike = sorted(key for key in meaning if then.get(key, _ABSENT) != meaning[key])
    unlike += sorted(about["keys"].keys() - meaning.keys())
    if unlike:
        raise UserError(
            f"{what} is of another model; these keys differ: {', '.join(unlike)}. "
            f"{remedy}"
        )
    return traverse_util.unflatten_dict(arrays, sep="/"), int(about["step"])
