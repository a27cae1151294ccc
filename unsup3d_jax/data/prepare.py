"""Many files -> one checked, decoded, cached array set."""

import collections
import contextlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.errors import UserError

logger = logging.getLogger(__name__)
# Part of every cache key: raise it when the decoded pixels change, or which files are
# read.
VERSION = 3


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`.

    Attributes:
        arrays: decoded usable examples, in the order of the items; empty when
            only checked.
        broken: (index, reason) of the items that cannot be read.
        sizes: "widthxheight" -> count, of the usable items.
        cached: whether nothing had to be read.
    """

    arrays: dict[str, np.ndarray]
    broken: tuple[tuple[int, str], ...]
    sizes: dict[str, int]
    cached: bool


def cache_root(cache_dir: str) -> pathlib.Path:
    """Returns config.data.cache_dir, or its default ~/.cache/unsup3d_jax."""
    if cache_dir:
        return pathlib.Path(cache_dir).expanduser()
    return pathlib.Path.home() / ".cache" / "unsup3d_jax"


def prepare(
    items: Sequence[ds.Item],
    read: ds.Reader,
    *,
    options: dict[str, Any],
    keep: bool,
    workers: int,
    cache_dir: str,
    label: str,
) -> Prepared:
    """Reads every item once, in parallel, or takes the result from the cache.

    The cache key covers the items' names, sizes and modification times, the
    options and the versions of the decoder, so a changed folder is read anew.
    A cache that cannot be written or read costs time, never the run.

    Args:
        items: what to read.
        read: reads one item.
        options: JSON-able; everything besides the files that changes pixels.
        keep: keep the decoded arrays; else only check the files.
        workers: threads.
        cache_dir: config.data.cache_dir.
        label: shown while reading.

    Raises:
        UserError: if the crop does not fit into one of the images.
    """
    key = _cache_key(items, options, keep)
    folder = cache_root(cache_dir) / "prepared" / key
    cached = _load(folder)
    if cached is not None:
        return cached

    source = grain.MapDataset.source(items).map(lambda item: ds.read_item(item, read))
    arrays: dict[str, np.ndarray] = {}
    broken: list[tuple[int, str]] = []
    sizes: collections.Counter[str] = collections.Counter()
    cacheable = True
    count = 0
    with warnings.catch_warnings():
        # We count bombs ourselves; other oddities of a readable file
        # (corrupt EXIF and the like) are none of the user's concern.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        progress = tqdm(
            ds.parallel(source, workers, ahead=64),
            total=len(items), desc=label, unit=" images", delay=2.0,
            leave=False, disable=None,
        )  # fmt: skip
        for index, result in enumerate(progress):
            if isinstance(result, ds.Failure):
                if result.is_crop:
                    raise UserError(
                        f"{ds.printable(items[index].name)}: {result.reason}. Choose "
                        "--config.data.crop to fit the smallest image."
                    )
                cacheable = cacheable and not result.is_transient
                broken.append((index, result.reason))
                continue
            example, (width, height) = result
            sizes[f"{width}x{height}"] += 1
            if keep:
                for name, value in example.items():
                    if name not in arrays:
                        arrays[name] = np.empty((len(items), *value.shape), value.dtype)
                    arrays[name][count] = value
            count += 1
    arrays = {name: array[:count] for name, array in arrays.items()}
    prepared = Prepared(arrays, tuple(broken), dict(sizes), cached=False)
    if cacheable:
        _save(folder, prepared)
    return prepared


def _cache_key(items: Sequence[ds.Item], options: dict[str, Any], keep: bool) -> str:
    stats = []
    for item in items:
        stats.append((item.name,))  # all there is of items without files
        for path in item.paths:
            try:
                stat = os.stat(path)
                stats.append((path, stat.st_size, stat.st_mtime_ns))
            except OSError:
                stats.append((path, -1, -1))
    return ds.digest_of(VERSION, PIL.__version__, options, keep, stats)


def _save(folder: pathlib.Path, prepared: Prepared) -> None:
    """Writes beside `folder`, then renames: readers see all or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(
            tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
        )
    except OSError as error:
        logger.warning("cannot cache prepared images under %s: %s", folder, error)
        return
    try:
        for name, array in prepared.arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        manifest = {
            "arrays": sorted(prepared.arrays),
            "broken": prepared.broken,
            "sizes": prepared.sizes,
            "count": sum(prepared.sizes.values()),
            "time": time.time(),
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest))
        shutil.rmtree(folder, ignore_errors=True)  # only ever an unreadable one
        with contextlib.suppress(FileExistsError):
            os.rename(temporary, folder)
    except OSError as error:  # disk full; or another process was first
        if not (folder / "manifest.json").exists():
            logger.warning("cannot cache prepared images in %s: %s", folder, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(folder: pathlib.Path) -> Prepared | None:
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in manifest["arrays"]
        }
        if any(len(array) != manifest["count"] for array in arrays.values()):
            raise ValueError("array length differs from the manifest")
        broken = tuple((int(i), str(reason)) for i, reason in manifest["broken"])
        return Prepared(arrays, broken, dict(manifest["sizes"]), cached=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("ignoring damaged cache %s: %s", folder, error)
        return None
