"""Any folder of images: which files it holds, and to which split each belongs."""

import dataclasses
import hashlib
import pathlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images, near_copies, photos
from unsup3d_jax.data.file_set import Listing, check_options, from_listing, sizes
from unsup3d_jax.errors import UserError


def hash_split(name: str, percent: Sequence[int]) -> str:
    """Assigns a file to a split by a hash of its relative path.

    Independent of the machine, of the order and of the other files, so adding
    photos never moves one from train to test; but for near-copies of what is added
    (data.near_copies), which lie where the member of the lowest hash does.

    Args:
        name: relative path with "/"; compared in Unicode form NFC, because
            macOS stores another form.
        percent: shares of train, val and test; sum 100.
    """
    bucket = _hash_of(name) % 100
    if bucket < percent[0]:
        return "train"
    return "val" if bucket < percent[0] + percent[1] else "test"


def _hash_of(name: str) -> int:
    raw = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")


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

    A folder of outputs below them is no trouble, because `photos.look` leaves it
    out. In the very folder, what is written would be the next photos.

    Raises:
        UserError: naming the flag.
    """
    if (
        config.data.name not in ("celeba", "folder", "landmarks")
        or not config.data.path
    ):
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

    Near-copies lie where their names say; `load` brings them together.

    Raises:
        UserError: if the split is missing or empty, or an option is wrong.
    """
    return _items(config, split, _names(config)[split])


def _names(config: ConfigDict) -> dict[str, list[str]]:
    """split -> names of its photos, as its folder or the hash of a name has it."""
    root = data_root(config)
    names: dict[str, list[str]] = {split: [] for split in ds.SPLITS}
    if _split_mode(config) == "folder":
        for split, (folder, *_) in _named(root).items():
            found = photos.look(root / folder).images
            names[split] = [f"{folder}/{name}" for name in found]
    else:
        for name in photos.look(root).images:
            split = hash_split(name, config.data.hash_split_percent)
            names[split].append(name)
    return names


def _items(config: ConfigDict, split: str, names: Sequence[str]) -> list[ds.Item]:
    """The examples of a split.

    Raises:
        UserError: if there is none, telling why.
    """
    root, share = data_root(config), " fall into this share of the hash split"
    if not names:
        where = root
        if _split_mode(config) == "folder":
            folder = split_folder(root, split)
            if folder is None:
                others = " or ".join(f"'{n}'" for n in ds.SPLIT_NAMES[split][1:])
                raise UserError(
                    f"data.path: '{root}' has no folder '{split}' ({others}); make "
                    "one, or split all its images by --config.data.split=hash."
                )
            where, share = root / folder, ""
        kinds = " ".join(sorted(suffix[1:] for suffix in images.EXTENSIONS))
        clauses = [f"'{where}'{share}", *ds.left_out(photos.look(where))]
        raise UserError(
            f"data.path: split '{split}' is empty: no image files ({kinds}) under "
            f"{'; '.join(clauses)}."
        )
    return [ds.Item(name, (str(root / name),)) for name in names]


def _compared(
    config: ConfigDict, names: Mapping[str, Sequence[str]]
) -> tuple[Mapping[str, Sequence[str]], tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Looks for near-copies, and brings each group into one split.

    Those are left where they are whose owner has named the splits, and groups that
    are too large for copies.

    Returns:
        Names by split, the groups, and clauses about them.

    Raises:
        UserError: if data.near_copies has another value.
    """
    data = config.data
    if data.near_copies not in ("together", "apart"):
        raise UserError(
            f"data.near_copies: expected together or apart, got '{data.near_copies}'."
        )
    if data.near_copies == "apart":
        return names, (), ()
    if data.max_images:
        names = {split: some[: data.max_images] for split, some in names.items()}
    root, home = data_root(config), {n: s for s in names for n in names[s]}
    items = [ds.Item(name, (str(root / name),)) for name in home]
    found = near_copies.search(
        items, crop=tuple(data.crop), workers=data.workers, cache_dir=data.cache_dir
    )
    groups, scenes = (
        tuple(tuple(sorted(items[i].name for i in g)) for g in part)
        for part in (found.groups, found.scenes)
    )
    by_hash = _split_mode(config) == "hash"
    across = [g for g in groups if len({home[name] for name in g}) > 1]
    notes = []
    if by_hash and groups:
        notes.append(
            f"{_counted(groups)}, each of which lies in one split (data.near_copies): "
            f"{_first(groups)}"
        )
    elif across:
        notes.append(
            f"{_counted(across)} lie in more than one split, which flatters its "
            f"scores: {_first(across)}"
        )
    if scenes:
        notes.append(
            f"{max(map(len, scenes)):,} photos look alike, as frames of one film do, "
            f"and stay in the splits of their names: {_first(scenes)}"
        )
    if by_hash and across:
        for group in across:
            split = home[min(group, key=_hash_of)]
            home |= dict.fromkeys(group, split)
        moved: dict[str, list[str]] = {split: [] for split in names}
        for name in sorted(home):
            moved[home[name]].append(name)
        names = moved
    return names, groups, tuple(notes)


def _counted(groups: Sequence[Sequence[str]]) -> str:
    plural = "" if len(groups) == 1 else "s"
    return f"{sum(map(len, groups)):,} near-copies in {len(groups):,} group{plural}"


def _first(groups: Sequence[tuple[str, ...]]) -> str:
    one, other, *_ = min(groups)
    return f"'{ds.printable(one)}' and '{ds.printable(other)}', for example"


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


def _share(config: ConfigDict, split: str, count: int) -> str:
    """Which share of `count` images a split is; "" where folders name the splits."""
    if _split_mode(config) == "folder":
        return ""
    percent = config.data.hash_split_percent[ds.SPLITS.index(split)]
    return (
        f"; {count:,} images were found, of which this split takes {percent} % "
        "(data.hash_split_percent)"
    )


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split of a folder of photos; field `image` only.

    Raises:
        UserError: see `load_photos`.
    """
    size, crop = config.data.image_size, tuple(config.data.crop)
    return load_photos(
        config,
        split,
        partial(_read, crop=crop, image_size=size),
        options={"image_size": size, "crop": crop},
        bytes_each=size * size * 3,
    )


def load_photos(
    config: ConfigDict,
    split: str,
    read: ds.Reader,
    *,
    options: dict,
    bytes_each: int,
    examples: Callable[[str], Sequence[ds.Item]] | None = None,
    partner: str = "",
    notes: tuple[str, ...] = (),
    keypoint_flip: tuple[int, ...] = (),
    content: Callable[[ds.Item], list] = sizes,
) -> ds.Dataset:
    """Loads a split of a folder, of whose photos something else may be known.

    Args:
        read, options, bytes_each, content: as `file_set.from_listing`.
        examples: those that a photo holds, by its name; None: each is one. Photos
            without any are left out and named.
        partner: what those want.
        notes: of this set, for the report.
        keypoint_flip: see `Dataset`.

    Raises:
        UserError: see `split_items` and `file_set.from_listing`.
    """
    check_options(config)
    names = _names(config)
    _items(config, split, names[split])  # before others are read
    count = sum(map(len, names.values()))
    names, groups, about = _compared(config, names)
    found = photos.look(data_root(config))
    items, unpaired = _items(config, split, names[split]), []
    if examples is not None:
        held = {item.name: examples(item.name) for item in items}
        items = [item for some in held.values() for item in some]
        unpaired = [name for name, some in held.items() if not some]
    listing = Listing(
        items=items,
        unpaired=unpaired,
        partner=partner,
        others=found.others,
        leftovers=found.leftovers,
        closed=found.closed,
        near_copies=groups,
        notes=(*unused_folders(config), *about, *notes) if split == "train" else (),
        share=partial(_share, config, split, count),
    )
    dataset = from_listing(
        config,
        split,
        listing,
        read,
        options=options,
        bytes_each=bytes_each,
        content=content,
    )
    return dataclasses.replace(dataset, keypoint_flip=keypoint_flip)


def _read(
    item: ds.Item, *, crop: tuple[int, ...], image_size: int
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    image, size = images.read_image(item.paths[0], crop=crop, image_size=image_size)
    return {"image": image}, size
