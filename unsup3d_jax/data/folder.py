"""Any folder of images: which files it holds, and to which split each belongs."""

import collections
import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images
from unsup3d_jax.data.file_set import Listing, check_options, from_listing
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
    named = [root / name for names in _named(root).values() for name in names]
    if output.resolve() in [p.resolve() for p in (root, *named)]:
        raise UserError(
            f"{flag}: {output} is the folder of the photos; name another one, which "
            "may lie inside it."
        )


def _named(root: pathlib.Path) -> dict[str, list[str]]:
    """split -> folders in `root` whose names mean it, in any case, best first."""
    try:
        folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    except OSError:  # whoever reads the images says so
        folders = []
    named: dict[str, list[str]] = {}
    for split, names in ds.SPLIT_NAMES.items():
        found = [f for f in folders if f.lower() in names]
        if found:
            found.sort(key=lambda f: (f != split, names.index(f.lower())))
            named[split] = found
    return named


def split_folder(root: pathlib.Path, split: str) -> str | None:
    """Name of the folder in `root` that holds a split: val, valid, Validation, ..."""
    return _named(root).get(split, [None])[0]


def unused_folders(config: ConfigDict) -> tuple[str, ...]:
    """A clause about folders that are named as splits and not taken for such.

    Their owner may have meant their photos to be kept from training. A lone train/
    is only how somebody named a folder of photos, and no matter.
    """
    named = _named(data_root(config))
    if _split_mode(config) == "folder":
        more = [f for found in named.values() for f in found[1:]]
        used = [found[0] for found in named.values() if len(found) > 1]
        return (
            (f"{_quoted(more)} not used, as there is {_quoted(used)} already",)
            if more
            else ()
        )
    if not named.keys() - {"train"}:
        return ()
    names = [f for found in named.values() for f in found]
    return (
        f"the folders {_quoted(names)} are not taken for splits: a hash of its name "
        "divides all images (data.split)",
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{ds.printable(name)}'" for name in names)


def split_items(config: ConfigDict, split: str) -> list[ds.Item]:
    """Lists the examples of one split; see config.data.split.

    Raises:
        UserError: if the split is missing or empty, or an option is wrong.
    """
    root, mode = data_root(config), _split_mode(config)
    percent = tuple(config.data.hash_split_percent)
    where = root
    if mode == "folder":
        folder = split_folder(root, split)
        if folder is None:
            others = " or ".join(f"'{n}'" for n in ds.SPLIT_NAMES[split][1:])
            raise UserError(
                f"data.path: '{root}' has no folder '{split}' ({others}); make one, or "
                "split all its images by --config.data.split=hash."
            )
        where = root / folder
        names = [f"{folder}/{name}" for name in list_images(where)]
    else:
        names = [n for n in list_images(root) if hash_split(n, percent) == split]
    if not names:
        kinds = " ".join(sorted(suffix[1:] for suffix in images.EXTENSIONS))
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
    named = _named(data_root(config))
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


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split of a folder of photos; field `image` only.

    Raises:
        UserError: see `split_items` and `file_set.from_listing`.
    """
    check_options(config)
    listing = Listing(
        items=split_items(config, split),
        others=other_types(data_root(config)),
        closed=closed_folders(data_root(config)),
        notes=unused_folders(config) if split == "train" else (),
        share=partial(_share, config, split),
    )
    size, crop = config.data.image_size, tuple(config.data.crop)
    return from_listing(
        config,
        split,
        listing,
        partial(_read, crop=crop, image_size=size),
        options={"image_size": size, "crop": crop},
        bytes_each=size * size * 3,
    )


def _read(
    item: ds.Item, *, crop: tuple[int, ...], image_size: int
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    image, size = images.read_image(item.paths[0], crop=crop, image_size=image_size)
    return {"image": image}, size
