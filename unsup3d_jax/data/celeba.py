"""CelebA, from whatever of it lies below `data.path`; the first of these that does:

1. train/, val/ and test/ of the authors' crops (celeba_cropped), read as any folder;
2. the images in the wild and a list of boxes. The authors' list (celeba_crop_bbox.txt):
   each box as it is. CelebA's own (list_bbox_celeba): the square about the middle of
   the box, as wide as its longer side, which is ours. What of a box lies beside the
   image repeats the image's edge, as in the authors' code;
3. the aligned images, in a folder or a zip file: of 178 x 218 pixels the 128 x 128 from
   column 25 and row 57 (`ALIGNED_CROP`), which hold the face from brow to chin, and the
   hair above it;
4. celeb_a of TensorFlow Datasets as array records, cut as the aligned images.

`data.crop` replaces what 2 to 4 cut. Images are scaled from the box to the model's size
in one step, antialiased; the authors' are 128 px JPEGs in between, not antialiased.

Splits: list_eval_partition, else those of the authors' list, else the published ranges
of names (`RANGES`).
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.data import celeba_files, folder, images, tfds_images
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.celeba_files import Found, Images, Table
from unsup3d_jax.data.file_set import Listing, check_options, from_listing
from unsup3d_jax.errors import UserError, one_line

ALIGNED_CROP = (57, 25, 128, 128)  # y0, x0, h, w
# First image of val and of test, as list_eval_partition has it.
RANGES = (162771, 182638)
HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_HOST = "drive.google.com"  # where TensorFlow Datasets fetches it
Box = tuple[int, int, int, int]  # x0, y0, width, height


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split; field `image` only.

    Raises:
        UserError: if nothing of CelebA is there, telling what to fetch from where; else
            as `file_set.from_listing`.
    """
    check_options(config)
    root = Path(config.data.path).expanduser()
    found = celeba_files.look(root)
    tables = {stem: found.table(stem) for stem in celeba_files.LISTS}
    boxes, own = _boxes(tables)
    crop = tuple(config.data.crop)
    if found.cropped:
        return folder.load(_changed(config, "folder", found.cropped[0], crop), split)
    wild = [some for some in found.images if not some.aligned]
    aligned = [some for some in found.images if some.aligned]
    if wild and (boxes or crop):
        return _load(config, split, wild[0], tables, None if crop else boxes, own)
    if aligned:
        return _load(config, split, aligned[0], tables, None, own)
    prepared = found.prepared or _prepared_at_home()
    why = ""
    if not prepared and not wild and not found.odd:
        why = _prepare(root)
        prepared = [] if why else [root]
    if prepared:
        config = _changed(config, "celeba", prepared[0], crop or ALIGNED_CROP)
        return tfds_images.load(config, split)
    raise UserError(_what_to_fetch(config.data.path, wild, found, why))


def _changed(
    config: ConfigDict, name: str, path: Path, crop: tuple[int, ...]
) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.data.name, config.data.path, config.data.crop = name, str(path), crop
    config.data.tfds_name = "celeb_a"
    return config


def _boxes(tables: Mapping[str, Table | None]) -> tuple[dict[str, Box], bool]:
    """Six digits -> box to cut; and whether the boxes are the authors'."""
    if authors := tables["celeba_crop_bbox"]:
        return {s: (r[1], r[2], r[3], r[4]) for s, r in authors.rows.items()}, True
    if own := tables["list_bbox_celeba"]:
        return {s: _square(r[0], r[1], r[2], r[3]) for s, r in own.rows.items()}, False
    return {}, False


def _square(x: int, y: int, width: int, height: int) -> Box:
    side = max(width, height)
    return x + (width - side) // 2, y + (height - side) // 2, side, side


def _splits(tables: Mapping[str, Table | None], stem: str) -> str | None:
    """Split of an image; None if the lists have it in none."""
    for table in (tables["list_eval_partition"], tables["celeba_crop_bbox"]):
        if table is not None and table.rows:
            return ds.SPLITS[table.rows[stem][0]] if stem in table.rows else None
    return ds.SPLITS[sum(int(stem) >= first for first in RANGES)]


def _load(
    config: ConfigDict,
    split: str,
    some: Images,
    tables: Mapping[str, Table | None],
    boxes: Mapping[str, Box] | None,
    authors: bool,
) -> ds.Dataset:
    data, size = config.data, config.data.image_size
    mine = [s for s in sorted(some.names) if _splits(tables, s) == split]
    stems = mine if boxes is None else [s for s in mine if s in boxes]
    crop = tuple(data.crop) or (ALIGNED_CROP if some.aligned else ())
    cut = None if boxes is None else {stem: boxes[stem] for stem in stems}
    options = {
        "image_size": size,
        "crop": crop,
        "aligned": some.aligned,
        "boxes": ds.digest_of(list(cut.values())) if cut is not None else None,
    }
    items = [ds.Item(f"{stem}.jpg", (some.path(stem),)) for stem in stems]
    notes = _notes(split, some, tables, len(mine)) if split == "train" else ()
    if split == "train" and cut is not None:
        whose = "the authors' boxes" if authors else "squares about CelebA's own boxes"
        notes += (f"cut by {whose}",)
    dataset = from_listing(
        config,
        split,
        Listing(
            items,
            unpaired=[f"{s}.jpg" for s in mine if boxes is not None and s not in boxes],
            partner="a box",
            notes=notes,
        ),
        partial(_read, some=some, boxes=cut, crop=crop, image_size=size),
        options=options,
        bytes_each=size * size * 3,
        content=lambda item: _content(some, cut, item),
    )
    return dataset


def _content(some: Images, boxes: Mapping[str, Box] | None, item: ds.Item) -> list:
    """The same for a folder and for the archive that it was unpacked from."""
    stem = item.name[:6]
    return [some.size(stem), *(boxes[stem] if boxes is not None else ())]


def _notes(
    split: str, some: Images, tables: Mapping[str, Table | None], here: int
) -> tuple[str, ...]:
    """Clauses about the lists, and about images that they have and the disk has not."""
    notes = [f"read from {ds.printable(some.place)}"]
    for table in tables.values():
        if table is not None and table.bad:
            number, line = table.bad[0]
            notes.append(
                f"{len(table.bad):,} lines of {table.name} are no rows and skipped, "
                f"the first is line {number}: '{ds.printable(line[:60])}'"
            )
    table = tables["list_eval_partition"] or tables["celeba_crop_bbox"]
    if table is None or not table.rows:
        notes.append(
            "no list_eval_partition: names up to 162770 are taken for training, then "
            "up to 182637 for validation, as that list has them"
        )
        return tuple(notes)
    lost = sorted(table.rows.keys() - some.names.keys())
    if lost:
        notes.append(
            f"{len(lost):,} of the {len(table.rows):,} images of {table.name} are not "
            f"there, the first is {lost[0]}.jpg"
        )
    homeless = sorted(some.names.keys() - table.rows.keys())
    if homeless:
        notes.append(
            f"{len(homeless):,} images are in no split of {table.name} and skipped, "
            f"the first is {homeless[0]}.jpg"
        )
    return tuple(notes)


def _read(
    item: ds.Item,
    *,
    some: Images,
    boxes: Mapping[str, Box] | None,
    crop: tuple[int, ...],
    image_size: int,
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    stem = item.name[:6]
    with some.open(stem) as image:
        if boxes is not None:
            pixels = images.rgb_box(image, boxes[stem], image_size=image_size)
        elif crop == ALIGNED_CROP and image.size != celeba_files.ALIGNED_SIZE:
            raise ValueError(
                f"{image.width} x {image.height} pixels, not 178 x 218 as aligned "
                "images have"
            )
        else:
            pixels = images.rgb_square(image, crop=crop, image_size=image_size)
        return {"image": pixels}, image.size


def _prepared_at_home() -> list[Path]:
    """Where TensorFlow Datasets keeps what it prepares, if celeb_a is there."""
    usual = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    place = Path(usual).expanduser()
    return [place] if any((place / "celeb_a").glob("*/dataset_info.json")) else []


def _prepare(root: Path) -> str:
    """Has TensorFlow Datasets download and prepare celeb_a; "", or why it cannot.

    Interrupted, it begins again; what it has not finished is never taken for the set.
    """
    if importlib.util.find_spec("tensorflow") is None:
        return "without TensorFlow this program cannot fetch it itself"
    try:
        socket.create_connection((_HOST, 443), timeout=5.0).close()
    except OSError:
        return f"{_HOST} cannot be reached from here"
    print(
        f"data: no CelebA below {root}. TensorFlow Datasets now downloads it there, "
        "1.4 GB, and prepares it: some minutes. It may be used for non-commercial "
        f"research alone ({HOME}). Ctrl-C stops this.",
        file=sys.stderr,
        flush=True,
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / ".celeb_a.lock"):  # of several processes one
            builder: Any = tfds.builder(
                "celeb_a", data_dir=str(root), file_format="array_record"
            )
            builder.download_and_prepare()
    except Exception as error:  # the library raises many types
        return f"TensorFlow Datasets could not fetch it ({one_line(error, 200)})"
    return ""


def _what_to_fetch(path: str, wild: list[Images], found: Found, why: str) -> str:
    clauses = [*found.odd, *([why] if why else [])]
    beside = f" ({'; '.join(clauses)})" if clauses else ""
    command = f"python main.py --config=configs/celeba.py --config.data.path={path}"
    if wild:
        return (
            f"data.path: '{path}' has CelebA's images in the wild, in "
            f"{ds.printable(wild[0].place)}, but no list of boxes{beside}: put "
            "data/celeba_crop_bbox.txt of github.com/elliottwu/unsup3d (the paper's "
            f"crops) or list_bbox_celeba.txt of {HOME} there, then: {command}"
        )
    return (
        f"data.path: no CelebA below '{path}'{beside}. Fetch img_align_celeba.zip and "
        f"list_eval_partition.txt from {HOME} (for non-commercial research alone) and "
        f"put them there as they are, then: {command}. For the paper's crops, or if "
        "you have CelebA in another form, see docs/data.md."
    )
