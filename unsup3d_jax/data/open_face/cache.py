"""Rendered faces on disk: one file for each request, whole or not at all."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from unsup3d_jax.data.open_face import model
from unsup3d_jax.files import replacing

logger = logging.getLogger(__name__)
VERSION = 3  # raise it whenever the same request would give other arrays


def made_once(
    cache_dir: str | os.PathLike | None,
    name: str,
    request: dict,
    make: Callable[[], dict[str, np.ndarray]],
    fields: Collection[str] | None,
) -> dict[str, np.ndarray]:
    """What `make` gives, from the cache where it has that.

    A cache that cannot be read or written costs time, nothing else.

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
    stored = _read_cache(path, fields)
    if stored is None:
        stored = make()
        try:
            _write_cache(path, stored)
        except OSError as error:
            logger.warning("cannot cache the faces in %s: %s", path, error)
    return stored


def _fingerprint(request: dict) -> str:
    digest = hashlib.sha256(model.MODEL_PATH.read_bytes())
    digest.update(json.dumps([VERSION, request], sort_keys=True).encode())
    return digest.hexdigest()[:20]


def _read_cache(
    path: Path, fields: Collection[str] | None = None
) -> dict[str, np.ndarray] | None:
    """The stored arrays; None if there are none or they cannot be read.

    Depth is always among them, because the mask follows from it.
    A zip holds a checksum of each member, so a truncated or altered file shows.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            wanted = stored.files if fields is None else {*fields, "depth"}
            return {k: stored[k] for k in stored.files if k in wanted}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("cache %s is damaged (%s); making it again.", path, error)
        return None


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Other processes may read or make the same set at this moment."""
    with replacing(path, shared=True) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
