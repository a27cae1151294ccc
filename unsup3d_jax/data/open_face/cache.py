"""Rendered faces on disk: one file for each request, whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from unsup3d_jax.data import array_files
from unsup3d_jax.data.open_face import model

VERSION = 3  # raise it whenever the same request would give other arrays


def made_once(
    cache_dir: str | os.PathLike | None,
    name: str,
    request: dict,
    make: Callable[[], dict[str, np.ndarray]],
    fields: Collection[str] | None,
) -> dict[str, np.ndarray]:
    """What `make` gives, from the cache where it has that: `array_files.made_once`.

    Args:
        cache_dir: None to make the arrays anew.
        name: for people who look into the folder.
        request: JSON-able; all that the arrays follow from, besides the code.
        make: gives the arrays.
        fields: arrays that are wanted; None for all. Others may be there too.
    """
    if cache_dir is None:
        return make()
    path = Path(cache_dir) / f"open_faces-{name}-{_fingerprint(request)}.npz"
    # Depth is always among them, because the mask follows from it.
    wanted = None if fields is None else {*fields, "depth"}
    return array_files.made_once(path, make, wanted)


def _fingerprint(request: dict) -> str:
    digest = hashlib.sha256(model.MODEL_PATH.read_bytes())
    digest.update(json.dumps([VERSION, request], sort_keys=True).encode())
    return digest.hexdigest()[:20]
