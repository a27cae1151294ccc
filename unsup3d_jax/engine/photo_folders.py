"""Which folder is whose photo's, and whether it still shows what it should.

Every folder that mode `reconstruct` writes holds a record of what it was made from.
By it the same command skips what is done, and a photo keeps its folder when others
are added.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from unsup3d_jax.data.dataset import digest_of
from unsup3d_jax.engine.packing import checksums
from unsup3d_jax.files import finite, need_regular

RECORD = "record.json"

# To be raised when the same photo and parameters get other files than before.
_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Made:
    """What a folder is made from, beside its photo; equal ones make equal folders.

    Attributes:
        parameters: digest of the model's parameters.
        options: digest of the model's options and of what is exported.
    """

    parameters: str
    options: str


def made_from(params: Any, options: Any, *exported: Any) -> Made:
    """What all photos of one command share.

    Args:
        params: of the model; a pytree of arrays.
        options: of the model: dataclasses of plain numbers, whose text is exact.
        exported: what else decides what is found and written; JSON-able.
    """
    return Made(
        parameters=digest_of(checksums(jax.device_get(params))),
        options=digest_of(_FORMAT, repr(options), *exported),
    )


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as a record knows it.

    Attributes:
        path: absolute; links are kept.
        size: bytes.
        content: digest of the file.
    """

    path: str
    size: int
    content: str


def photo_of(file: Path) -> Photo:
    """Reads a photo's identity.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    need_regular(file)
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
        size = opened.tell()
    return Photo(os.path.abspath(file), size, content)


def write_record(
    folder: Path,
    photo: Photo,
    crop: Sequence[int],
    made: Made,
    found: Mapping[str, Any],
) -> None:
    """Writes a folder's record, when all its other files are there.

    Args:
        crop: what was cut from the photo.
        found: what else is told about it; JSON-able.
    """
    sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    record = {
        "photo": dataclasses.asdict(photo),
        "crop": list(crop),
        **dataclasses.asdict(made),
        **finite(found),
        "files": sizes,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def is_current(folder: Path, file: Path, crop: Sequence[int], made: Made) -> bool:
    """Whether a folder is complete and would be written again as it is."""
    record = read_record(folder)
    expected = {"crop": list(crop), **dataclasses.asdict(made)}
    if record is None or any(record.get(k) != v for k, v in expected.items()):
        return False
    for name, size in record["files"].items():
        try:
            if (folder / name).stat().st_size != size:
                return False
        except OSError:
            return False
    return _is_photo(record, file)


def written_names(folder: Path) -> set[str]:
    """Names of the files that the record of a folder lists, and its own."""
    record = read_record(folder)
    return set() if record is None else {RECORD, *record["files"]}


def folders_of(
    files: Sequence[Path], output: Path, taken: Collection[str] = ()
) -> dict[Path, Path]:
    """The folder of every photo: the one that is recorded as its own, or a new one.

    A new one is named after the stem: face, face-2, face-3, in the order of the files,
    past names that other photos have. A photo that was moved is known by its content.
    A folder of the very name that holds none but a reconstruction without a record,
    of an earlier version, is taken over; one that holds something else is left alone.

    Args:
        taken: names in the output that no folder may have.
    """
    entries = output.iterdir() if output.is_dir() else ()
    # A link to a folder is a folder; hidden ones are none of ours.
    there = sorted(p for p in entries if p.is_dir() and not p.name.startswith("."))
    records = {folder: read_record(folder) for folder in there}
    of_path: dict[str, Path] = {}
    for folder, record in records.items():
        if record is not None:
            of_path.setdefault(record["photo"]["path"], folder)
    names = {file: os.path.abspath(file) for file in files}
    folders = {file: of_path[n] for file, n in names.items() if n in of_path}
    moved = {f: r for p, f in of_path.items() if (r := records[f]) and _is_gone(p)}
    for file in files:
        if file in folders or not moved:
            continue
        if same := next((f for f, r in moved.items() if _is_photo(r, file)), None):
            folders[file] = same
            del moved[same]
    # Case is folded because some file systems do.
    names_taken = {name.casefold() for name in taken} | {
        folder.name.casefold()
        for folder, record in records.items()
        if record is not None or not _may_take(folder)
    }
    for file in files:
        if file not in folders:
            folders[file] = output / _new_name(file, names_taken)
    return {file: folders[file] for file in files}


def _new_name(file: Path, taken: set[str]) -> str:
    """The stem, or with a number behind it, and adds it to what is taken.

    A file may be called "...jpg", whose stem is the folder above; hidden folders are
    not ours.
    """
    stem = file.stem.lstrip(". ") or "photo"
    name, count = stem, 1
    while name.casefold() in taken:
        count += 1
        name = f"{stem}-{count}"
    taken.add(name.casefold())
    return name


def _may_take(folder: Path) -> bool:
    """Whether it is empty or an earlier version's reconstruction."""
    try:
        return (folder / "factors.npz").exists() or not any(folder.iterdir())
    except OSError:  # not ours to look into
        return False


def _is_gone(path: str) -> bool:
    return not os.path.lexists(path)


def _is_photo(record: Mapping[str, Any], file: Path) -> bool:
    """Whether a record is of these bytes."""
    known = record["photo"]
    try:
        return (
            file.stat().st_size == known["size"]
            and photo_of(file).content == known["content"]
        )
    except OSError:
        return False


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None if there is none, or it is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        Photo(**record["photo"])
        sound = isinstance(record["files"], dict)
        sound = sound and isinstance(record["photo"]["path"], str)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if sound else None
