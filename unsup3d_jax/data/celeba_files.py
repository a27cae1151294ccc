"""Where CelebA lies below a folder, in the layouts that people have, and its lists.

Images are `NNNNNN.jpg` (six digits; .png too) in a folder or, not unpacked, in a zip
file. Two kinds of them are published: *aligned* ones of 178 x 218 pixels
(img_align_celeba) and those *in the wild* (img_celeba), of any size. Lists are text:
a name and whole numbers a line, divided by spaces or commas, with or without headings.

    list_eval_partition.txt, .csv   name, split: 0 train, 1 val, 2 test
    list_bbox_celeba.txt, .csv      name, x, y, width, height: a face in the wild
    celeba_crop_bbox.txt            name, split, x, y, width, height: the authors' crops

Lists may lie anywhere below the folder, or in a zip file. Nothing is ever unpacked.
"""

import contextlib
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images
from unsup3d_jax.data.keypoint_files import text_lines
from unsup3d_jax.errors import UserError

ALIGNED_SIZE = (178, 218)
# stem of a list's file -> how many numbers its lines have.
LISTS = {"list_eval_partition": 1, "list_bbox_celeba": 4, "celeba_crop_bbox": 5}
_DEPTH = 4  # folders below data.path that are looked through
_STEM = re.compile(r"\d{6}\b")
_IMAGE = re.compile(r"(\d{6})\.(?:jpg|jpeg|png)", re.IGNORECASE)
# A row: the name of an image, perhaps with a folder, and numbers.
_ROW = re.compile(
    r"""\s*["']?(?:[^\s,;]*/)?(\d{6})\.\w+["']?((?:[\s,;]+[+-]?\d{1,9}(?:\.0*)?)+)\s*"""
)
# Far more than any image or list of the set; a zip bomb is refused before it is read.
_MOST_IMAGE, _MOST_LIST = 64 << 20, 64 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Zip:
    """A zip file whose members are read one at a time, by any thread.

    Raises:
        zipfile.BadZipFile, OSError: if it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = zipfile.ZipFile(path)
        self._lock = threading.Lock()
        self.members = {
            info.filename: info for info in self._file.infolist() if not info.is_dir()
        }

    def read(self, name: str, most: int) -> bytes:
        """A whole member; its checksum is right.

        Raises:
            ValueError: if it is larger than `most` bytes, or not readable.
        """
        info = self.members[name]
        if info.file_size > most:
            raise ValueError(
                f"in the archive it claims {info.file_size:,} bytes, more than {most:,}"
            )
        if info.compress_type not in _METHODS or info.flag_bits & 1:
            raise ValueError("in the archive it is encrypted or oddly compressed")
        try:
            with self._lock, self._file.open(info) as member:
                return member.read(most)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise ValueError(f"damaged in the archive: {error}") from None


@dataclass(frozen=True)
class Images:
    """The images of one folder, or of one folder within a zip file.

    Attributes:
        place: of them, for people.
        names: six digits -> path of the file, or name of the archive's member.
        archive: None: they are files.
        aligned: whether they are the aligned ones.
    """

    place: str
    names: Mapping[str, str]
    archive: Zip | None
    aligned: bool

    def path(self, stem: str) -> str:
        """The file that an image is in."""
        return self.names[stem] if self.archive is None else str(self.archive.path)

    def size(self, stem: str) -> int:
        """Bytes of an image."""
        if self.archive is None:
            return os.path.getsize(self.names[stem])
        return self.archive.members[self.names[stem]].file_size

    @contextlib.contextmanager
    def open(self, stem: str) -> Iterator[Image.Image]:
        """See `images.open_upright`; also ValueError as `Zip.read`."""
        name, content = self.names[stem], None
        if self.archive is not None:
            content = self.archive.read(name, _MOST_IMAGE)
        with images.open_upright(name, content) as image:
            yield image


@dataclass(frozen=True)
class Table:
    """A list.

    Attributes:
        name: of its file.
        rows: six digits -> the numbers.
        bad: (line number, its text) of lines that are no row.
    """

    name: str
    rows: Mapping[str, tuple[int, ...]]
    bad: Sequence[tuple[int, str]]


@dataclass
class Found:
    """What lies below a folder.

    Attributes:
        cropped: folders that hold train/ and others, the authors' crops.
        prepared: data_dir of TensorFlow Datasets, with celeb_a in it.
        images: aligned ones and those in the wild.
        lists: stem of the name -> how its lines are read, and its own name.
        odd: clauses about archives that cannot be used.
    """

    cropped: list[Path] = field(default_factory=list)
    prepared: list[Path] = field(default_factory=list)
    images: list[Images] = field(default_factory=list)
    lists: dict[str, tuple[str, Callable[[], list[str]]]] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)

    def table(self, stem: str) -> Table | None:
        """A list, read; None if there is none.

        Raises:
            UserError: if it is no text.
        """
        if stem not in self.lists:
            return None
        name, lines = self.lists[stem]
        return read_table(name, lines(), LISTS[stem])


def look(root: Path) -> Found:
    """Looks through a folder, or into a zip file."""
    found = Found()
    if root.is_dir():
        _look(root, root.name, found, _DEPTH)
    elif root.suffix.lower() == ".zip" and root.is_file():
        _look_into(root, found)
    return found


def _look(root: Path, shown: str, found: Found, depth: int) -> None:
    """Nearer files go before farther ones."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        found.odd.append(f"{root} cannot be listed ({error.strerror})")
        return
    pictures = {e.name: e.path for e in entries if _IMAGE.fullmatch(e.name)}
    _keep_images(found, shown, pictures, None, str(root))
    entries = [entry for entry in entries if entry.name not in pictures]
    files = [entry.name for entry in entries if entry.is_file()]
    below = [entry.name for entry in entries if entry.is_dir()]
    below = [name for name in below if not name.startswith((".", "__MACOSX"))]
    for name in files:
        path = root / name
        if (kind := _kind(name)) and kind not in found.lists:
            found.lists[kind] = (name, lambda path=path: text_lines(path))
        elif name.lower().endswith(".zip"):
            _look_into(path, found)
        elif re.search(r"\.(7z|rar|tar|t?gz)(\.\d+)?$", name.lower()):
            found.odd.append(f"{path} has to be unpacked first")
    lower = {name.lower() for name in below}
    splits = {split for split, names in ds.SPLIT_NAMES.items() if lower & {*names}}
    if "train" in splits and len(splits) > 1:
        found.cropped.append(root)
        return
    for name in below:
        if name == "celeb_a" and any((root / name).glob("*/dataset_info.json")):
            found.prepared.append(root)
        elif depth:
            _look(root / name, f"{shown}/{name}", found, depth - 1)


def _look_into(path: Path, found: Found) -> None:
    try:
        archive = Zip(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        found.odd.append(
            f"{path} cannot be read ({error}); was its download broken off?"
        )
        return
    groups: dict[str, dict[str, str]] = {}
    for member in archive.members:
        # Names are only compared, whatever ".." they hold.
        place, _, name = member.rpartition("/")
        if kind := _kind(name):
            if kind not in found.lists:
                lines = _lines_within(archive, member)
                found.lists[kind] = (f"{path.name}/{name}", lines)
        elif "__MACOSX" not in place:
            groups.setdefault(place, {})[name] = member
    for place, names in groups.items():
        _keep_images(found, f"{path.stem}/{place}", names, archive, f"{path}/{place}")


def _lines_within(archive: Zip, member: str) -> Callable[[], list[str]]:
    def lines() -> list[str]:
        try:
            return text_lines(Path(member), archive.read(member, _MOST_LIST))
        except ValueError as error:
            raise UserError(f"{archive.path}: {member}: {error}.") from None

    return lines


def _kind(name: str) -> str | None:
    """Which list a file is, by its name."""
    stem, suffix = os.path.splitext(name.lower())
    return stem if stem in LISTS and suffix in (".txt", ".csv") else None


def _keep_images(
    found: Found, shown: str, files: Mapping[str, str], archive: Zip | None, place: str
) -> None:
    names = {}
    for name, path in files.items():
        if match := _IMAGE.fullmatch(name):
            names.setdefault(match[1], path)
    if not names:
        return
    text = shown.lower()
    aligned = "align" in text
    some = Images(place, names, archive, aligned)
    if not aligned and "img_celeba" not in text and "wild" not in text:
        with contextlib.suppress(Exception), some.open(min(names)) as image:
            some = Images(place, names, archive, image.size == ALIGNED_SIZE)
    found.images.append(some)


def read_table(name: str, lines: Sequence[str], numbers: int) -> Table:
    """Reads the lines of a list; those that are no row are counted, never guessed."""
    rows: dict[str, tuple[int, ...]] = {}
    bad = []
    for number, line in enumerate(lines, 1):
        match = _ROW.fullmatch(line)
        if match is None:
            # At the top, how many rows there are and the names of columns.
            words = line.split()
            if words and (number > 2 or (len(words) > 1 and _STEM.match(words[0]))):
                bad.append((number, line))
            continue
        stem = match[1]
        fields = match[2].replace(",", " ").replace(";", " ").split()
        values = tuple(int(f.partition(".")[0]) for f in fields)
        is_row = len(values) == numbers and _is_sane(values)
        if not is_row or rows.setdefault(stem, values) != values:
            bad.append((number, line))
    return Table(name, rows, bad)


def _is_sane(values: Sequence[int]) -> bool:
    """A split is 0, 1 or 2; a box has more than ten pixels a side, as the authors'."""
    split = values[:1] if len(values) in (1, 5) else (0,)
    return split[0] in (0, 1, 2) and (len(values) == 1 or min(values[-2:]) > 10)
