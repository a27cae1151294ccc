"""Files that are there whole or not at all."""

import contextlib
import errno
import math
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` if the body ends without an exception.

    So a reader, or whoever comes after a kill, finds the old file or the new one.

    Args:
        path: its folder is made where it lacks.
        shared: another process or thread may write it at this moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{secrets.token_hex(4)}.part" if shared else ".part"
    part = path.with_name(path.name + mark)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


@contextlib.contextmanager
def replacing_folder(
    path: Path, aside: Path, *, ours: Collection[str] = ()
) -> Iterator[Path]:
    """A folder that takes the place of `path` if the body ends without an exception.

    A kill at any moment leaves the old folder, the new one, or for an instant none
    until `restore_folders` runs. What else lies in the old folder, somebody's notes
    say, is carried over.

    Args:
        path: its own folder exists.
        aside: a folder on the same file system, for this process alone; made.
        ours: names in the old folder that are not carried over.

    Yields:
        The new folder, empty.
    """
    if path.exists() and not path.is_dir():  # before the body's work, not after
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(path))
    new, old = aside / "new" / path.name, aside / "old" / path.name
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        _carry_over(path, new, ours)
        for file in (f for f in new.rglob("*") if f.is_file() and not f.is_symlink()):
            with file.open("rb") as opened:  # else a power cut empties what is named
                os.fsync(opened.fileno())
        if path.is_dir():
            old.parent.mkdir(exist_ok=True)
            os.replace(path, old)
        os.replace(new, path)
        restore_folders(aside, path.parent)
    except BaseException:
        restore_folders(aside, path.parent)
        raise


def _carry_over(old: Path, new: Path, ours: Collection[str]) -> None:
    if not old.is_dir():
        return
    for entry in old.iterdir():
        if entry.name in ours or os.path.lexists(new / entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def restore_folders(aside: Path, parent: Path) -> None:
    """Clears up what a kill inside `replacing_folder` left in `aside`.

    Args:
        parent: of the folders that were replaced.
    """
    if (aside / "old").is_dir():
        for old in (aside / "old").iterdir():
            if not os.path.lexists(parent / old.name):
                os.replace(old, parent / old.name)
    for name in ("new", "old"):
        shutil.rmtree(aside / name, ignore_errors=True)


def need_regular(path: str | os.PathLike) -> None:
    """Refuses what would be waited for, or read, for ever: pipes, sockets, devices.

    Raises:
        OSError: if the file is such, a folder, or not there.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by a text, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def finite(value: Any) -> Any:
    """The content of a JSON file, which has no NaN: such numbers become null.

    Args:
        value: mappings, lists and tuples of anything; tuples become lists.
    """
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
