"""Files that are there whole or not at all."""

import contextlib
import errno
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
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
