"""Many files -> one checked, decoded, cached array set."""

import collections
import json
import logging
import os
import pathlib
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from unsup3d_jax.data import array_files
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.errors import UserError

logger = logging.getLogger(__name__)
# Part of every cache key: raise it when the decoded pixels change, or which files are
# read.
VERSION = 4
_PART = 4096  # items of a part
_FACTS = "facts"  # of the stored arrays: what else `Prepared` holds, as JSON


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

    Of many items each part that is done is kept until all are: a preparation that was
    interrupted goes on, and what is incomplete is never taken for the whole.

    The cache key covers the items' names, sizes and modification times, the
    options and the versions of the decoder, so a changed folder is read anew.
    A cache that cannot be written or read, or is not what was written, costs time,
    never the run.

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
    stats = _stats(items)
    key = ds.digest_of(VERSION, PIL.__version__, options, keep, stats)
    path = cache_root(cache_dir) / "prepared" / f"{key}.npz"
    cached = _load(path)
    if cached is not None:
        return cached

    parts = path.with_suffix(".parts")
    arrays: dict[str, np.ndarray] = {}
    broken: list[tuple[int, str]] = []
    sizes: collections.Counter[str] = collections.Counter()
    cacheable = True
    count = 0
    with tqdm(
        total=len(items), desc=label, unit=" images", delay=2.0,
        leave=False, disable=None,
    ) as progress:  # fmt: skip
        for start in range(0, len(items), _PART):
            some = items[start : start + _PART]
            file = parts / f"{start:09d}.npz" if len(items) > _PART else None
            part = _load(file) if file is not None else None
            if part is not None:
                progress.update(len(some))
            else:
                known = [stat for _, stat in stats[start : start + _PART]]
                part, lasting = _read(some, read, known, keep, workers, progress)
                cacheable = cacheable and lasting
                if file is not None and lasting:
                    _save(file, part)
            usable = len(some) - len(part.broken)
            for name, values in part.arrays.items():
                if name not in arrays:
                    shape = (len(items), *values.shape[1:])
                    arrays[name] = np.empty(shape, values.dtype)
                arrays[name][count : count + usable] = values
            count += usable
            broken += [(start + index, reason) for index, reason in part.broken]
            sizes.update(part.sizes)
    arrays = {name: array[:count] for name, array in arrays.items()}
    prepared = Prepared(arrays, tuple(broken), dict(sizes), cached=False)
    if cacheable and _save(path, prepared):
        shutil.rmtree(parts, ignore_errors=True)
    return prepared


def _read(
    items: Sequence[ds.Item],
    read: ds.Reader,
    stats: Sequence[list],
    keep: bool,
    workers: int,
    progress: tqdm,
) -> tuple[Prepared, bool]:
    """Reads items in parallel; also tells whether the result may be remembered.

    Args:
        stats: of each item, as `_stats` has it.
        progress: told of every item.

    Raises:
        UserError: if the crop does not fit into one of the images.
    """
    import grain  # only trainings and scores wait for it

    source = grain.MapDataset.source(items).map(lambda item: ds.read_item(item, read))
    arrays: dict[str, np.ndarray] = {}
    broken: list[tuple[int, str]] = []
    sizes: collections.Counter[str] = collections.Counter()
    lasting, count = True, 0
    for index, result in enumerate(ds.parallel(source, workers, ahead=64)):
        progress.update()
        if isinstance(result, ds.Failure):
            if result.is_crop:
                raise UserError(
                    f"{ds.printable(items[index].name)}: {result.reason}. Choose "
                    "--config.data.crop to fit the smallest image."
                )
            # What was no file before it was read is so in the key: it is read anew
            # when it has become one.
            if result.is_transient and None not in stats[index]:
                lasting = False
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
    return Prepared(arrays, tuple(broken), dict(sizes), cached=False), lasting


def _stats(items: Sequence[ds.Item]) -> list[tuple[str, list]]:
    """Each item's name, and (path, bytes, time) of its files; None: it is none."""
    return [(item.name, [_stat(path) for path in item.paths]) for item in items]


def _stat(path: str) -> tuple[str, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return path, found.st_size, found.st_mtime_ns


def _save(path: pathlib.Path, prepared: Prepared) -> bool:
    """Whether it could be written."""
    facts = {"broken": prepared.broken, "sizes": prepared.sizes}
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    try:
        array_files.write(path, {**prepared.arrays, _FACTS: text})
    except OSError as error:
        logger.warning("cannot cache prepared images in %s: %s", path, error)
        return False
    return True


def _load(path: pathlib.Path) -> Prepared | None:
    arrays = array_files.read(path)
    if arrays is None or _FACTS not in arrays:
        return None
    facts = json.loads(arrays.pop(_FACTS).tobytes())
    broken = tuple((int(i), str(reason)) for i, reason in facts["broken"])
    return Prepared(arrays, broken, facts["sizes"], cached=True)
