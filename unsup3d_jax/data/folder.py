"""Any folder of images: which files it holds, and to which split each belongs."""

import collections
import hashlib
import os
import pathlib
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images
from unsup3d_jax.data.prepare import prepare
from unsup3d_jax.errors import UserError

# What this program writes: a folder that holds all names of a line is no place of
# photos. A run whose own pictures joined its data could not be resumed.
_OUTPUTS = (
    {"config.json", "checkpoints"},  # a run
    {"report.json", "train.png"},  # mode data
    {"factors.npz"},  # a photo's folder of mode reconstruct
    {"table.json", "rows"},  # mode tables
)


def list_images(root: str | pathlib.Path) -> list[str]:
    """Lists the image files below `root`, recursively.

    Hidden files and folders (".name", among them macOS's "._name" twins of
    every photo) are left out, and sub-folders that this program has written
    (runs, reports, reconstructions). Linked folders are followed, each once.

    Returns:
        Paths relative to `root` with "/", sorted by code point.
    """
    return sorted(
        name for name in _visible_files(root) if _suffix(name) in images.EXTENSIONS
    )


def other_types(root: str | pathlib.Path) -> dict[str, int]:
    """Counts the files below `root` that are no images, by their extension.

    A phone's ".heic" photos are such: their owner should hear of it. The most
    frequent comes first.
    """
    suffixes = collections.Counter(map(_suffix, _visible_files(root)))
    return {s: n for s, n in suffixes.most_common() if s not in images.EXTENSIONS}


def closed_folders(root: str | pathlib.Path) -> tuple[tuple[str, str], ...]:
    """(name, reason) of the folders below `root`, or itself, that cannot be listed.

    Their photos are missing from `list_images`.
    """
    closed: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        name = pathlib.Path(error.filename).relative_to(root).as_posix()
        closed.append((name, error.strerror or type(error).__name__))

    collections.deque(_visible_files(root, note), maxlen=0)  # walks through
    return tuple(sorted(closed))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _visible_files(
    root: str | pathlib.Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[str]:
    root = str(root)
    visited = set()
    for folder, subfolders, names in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        if folder != root and any(out <= {*subfolders, *names} for out in _OUTPUTS):
            subfolders.clear()
            continue
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        prefix = pathlib.Path(folder).relative_to(root)
        for name in names:
            if not name.startswith("."):
                yield (prefix / name).as_posix()


def hash_split(name: str, percent: Sequence[int]) -> str:
    """Assigns a file to a split by a hash of its relative path.

    Independent of the machine, of the order and of the other files, so adding
    photos never moves one from train to test.

    Args:
        name: relative path with "/"; compared in Unicode form NFC, because
            macOS stores another form.
        percent: shares of train, val and test; sum 100.
    """
    raw = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    bucket = int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") % 100
    if bucket < percent[0]:
        return "train"
    return "val" if bucket < percent[0] + percent[1] else "test"


def data_root(config: ConfigDict) -> pathlib.Path:
    """Returns config.data.path as an existing folder.

    Raises:
        UserError: if it is empty or no folder.
    """
    if not config.data.path:
        raise UserError(
            f"data.path: the data set '{config.data.name}' needs a folder of images; "
            "set --config.data.path=FOLDER."
        )
    root = pathlib.Path(config.data.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path: '{root}' is not a folder.")
    return root


def check_output(config: ConfigDict, output: pathlib.Path, flag: str) -> None:
    """Refuses to write where the photos themselves lie.

    A folder of outputs below them is no trouble, because `list_images` leaves it
    out. In the very folder, what is written would be the next photos.

    Raises:
        UserError: naming the flag.
    """
    if config.data.name != "folder" or not config.data.path:
        return
    # Whether there are photos is asked later: a finished run needs none.
    root = pathlib.Path(config.data.path).expanduser()
    if output.resolve() in [
        p.resolve() for p in (root, *map(root.joinpath, ds.SPLITS))
    ]:
        raise UserError(
            f"{flag}: {output} is the folder of the photos; name another one, which "
            "may lie inside it."
        )


def split_items(config: ConfigDict, split: str) -> list[ds.Item]:
    """Lists the examples of one split; see config.data.split.

    Raises:
        UserError: if the split is missing or empty, or an option is wrong.
    """
    root, mode = data_root(config), _split_mode(config)
    percent = tuple(config.data.hash_split_percent)
    if mode == "folder":
        if not (root / split).is_dir():
            raise UserError(
                f"data.path: '{root}' has no folder '{split}'; make one, or split "
                "all its images by --config.data.split=hash."
            )
        names = [f"{split}/{name}" for name in list_images(root / split)]
    else:
        names = [n for n in list_images(root) if hash_split(n, percent) == split]
    if not names:
        kinds = " ".join(sorted(suffix[1:] for suffix in images.EXTENSIONS))
        where = root / split if mode == "folder" else root
        share = "" if mode == "folder" else " fall into this share of the hash split"
        others, closed = other_types(where), closed_folders(where)
        left_out = f"; left out: {ds.kinds_text(others)}" if others else ""
        left_out += f"; {ds.closed_text(closed)}" if closed else ""
        raise UserError(
            f"data.path: split '{split}' is empty: no image files ({kinds}) under "
            f"'{where}'{share}{left_out}."
        )
    return [ds.Item(name, (str(root / name),)) for name in names]


def _split_mode(config: ConfigDict) -> str:
    """Whether folders name the splits ("folder") or names are hashed ("hash")."""
    mode, percent = config.data.split, tuple(config.data.hash_split_percent)
    if mode not in ("folder", "hash", "auto"):
        raise UserError(f"data.split: expected folder, hash or auto, got '{mode}'.")
    if len(percent) != 3 or min(percent) < 0 or sum(percent) != 100:
        raise UserError(
            "data.hash_split_percent: expected three shares (train, val, test) that "
            f"add up to 100, got {percent}."
        )
    if mode != "auto":
        return mode
    # A lone train/ is only how somebody named a folder of photos.
    named = [name for name in ds.SPLITS if (data_root(config) / name).is_dir()]
    return "folder" if "train" in named and len(named) > 1 else "hash"


def _share(config: ConfigDict, split: str) -> str:
    """Which share of all images a split is; "" where folders name the splits."""
    if _split_mode(config) == "folder":
        return ""
    count = len(list_images(data_root(config)))
    percent = config.data.hash_split_percent[ds.SPLITS.index(split)]
    return (
        f"; {count:,} images were found, of which this split takes {percent} % "
        "(data.hash_split_percent)"
    )


def check_options(config: ConfigDict) -> None:
    """Checks the options that all file data sets share.

    Raises:
        UserError: naming the key.
    """
    crop = tuple(config.data.crop)
    try:
        images.crop_box(crop, 1 << 30, 1 << 30)
    except ValueError as error:
        raise UserError(f"data.crop: {error}") from None
    for key, least in (("image_size", 1), ("max_images", 0), ("workers", 0)):
        if config.data[key] < least:
            raise UserError(
                f"data.{key}: must be at least {least}, got {config.data[key]}."
            )


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split of a folder of photos; field `image` only.

    Raises:
        UserError: see `split_items` and `from_items`.
    """
    check_options(config)
    items = split_items(config, split)
    size, crop = config.data.image_size, tuple(config.data.crop)
    return from_items(
        config,
        split,
        items,
        partial(_read, crop=crop, image_size=size),
        options={"image_size": size, "crop": crop},
        bytes_each=size * size * 3,
        others=other_types(data_root(config)),
        closed=closed_folders(data_root(config)),
        share=partial(_share, config, split),
    )


def from_items(
    config: ConfigDict,
    split: str,
    items: Sequence[ds.Item],
    read: ds.Reader,
    *,
    options: dict,
    bytes_each: int,
    unpaired: Sequence[str] = (),
    others: Mapping[str, int] = MappingProxyType({}),
    closed: Sequence[tuple[str, str]] = (),
    share: Callable[[], str] = str,
) -> ds.Dataset:
    """Reads or checks the items of a split and describes what was found.

    Decoded sets of at most data.device_memory_mib are kept in arrays; larger
    ones are only checked here, and read again while training.

    Args:
        items: all of the split; data.max_images is applied here.
        read: reads one item.
        options: all that changes the pixels besides the files.
        bytes_each: decoded bytes of one example.
        unpaired: names left out by the caller.
        others: extension -> number of files that are no images.
        closed: (name, reason) of folders that cannot be listed.
        share: for the error: tells which share of what was found this split is.

    Raises:
        UserError: if no file is usable, or fewer than data.min_images of the
            training split, or the crop does not fit.
    """
    start = time.monotonic()
    data = config.data
    items = items[: data.max_images] if data.max_images else items
    keep = len(items) * bytes_each <= data.device_memory_mib * 2**20
    prepared = prepare(
        items,
        read,
        options={"name": data.name, **options},
        keep=keep,
        workers=data.workers,
        cache_dir=data.cache_dir,
        label=f"reading {split}",
    )
    bad = dict(prepared.broken)
    usable = tuple(item for i, item in enumerate(items) if i not in bad)
    broken = tuple((items[i].name, reason) for i, reason in prepared.broken)
    least = data.min_images if split == "train" else 1
    if len(usable) < max(least, 1):
        skipped = f"; {len(broken)} cannot be read" if broken else ""
        if broken:
            name, reason = broken[0]
            skipped += f", the first is {ds.printable(name)}: {reason}"
        if others:
            skipped += f"; left out: {ds.kinds_text(others)}"
        if closed:
            skipped += f"; {ds.closed_text(closed)}"
        raise UserError(
            f"data.path: '{data.path}' has {len(usable)} usable images in split "
            f"'{split}', fewer than {max(least, 1)} (data.min_images)"
            f"{share()}{skipped}."
        )
    report = ds.Report(
        name=data.name,
        split=split,
        root=str(data.path),
        found=len(items),
        broken=broken,
        unpaired=tuple(unpaired),
        others=dict(others),
        closed=tuple(closed),
        sizes=prepared.sizes,
        cached=prepared.cached,
        seconds=time.monotonic() - start,
    )
    content = [[item.name, *map(os.path.getsize, item.paths)] for item in usable]
    return ds.Dataset(
        arrays=prepared.arrays,
        report=report,
        digest=ds.digest_of(data.name, options, content),
        items=() if keep else usable,
        read=None if keep else read,
        workers=data.workers,
    )


def _read(
    item: ds.Item, *, crop: tuple[int, ...], image_size: int
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    image, size = images.read_image(item.paths[0], crop=crop, image_size=image_size)
    return {"image": image}, size
