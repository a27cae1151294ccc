"""Named arrays in one file, checked by their checksums whenever they are read."""

import logging
import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from unsup3d_jax.files import replacing

logger = logging.getLogger(__name__)
_BLOCK = 1 << 20


def read(
    path: Path, fields: Collection[str] | None = None
) -> dict[str, np.ndarray] | None:
    """The stored arrays; None if there are none, or they are not what was written.

    Nothing is taken from an array whose checksum does not hold; a line says so.

    Args:
        path: what `write` wrote.
        fields: names of arrays that are wanted, where they are stored; None for all.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist()]
            if len(names) != _count(path):
                raise zipfile.BadZipFile("its directory lacks an array")
            names = [name for name in names if fields is None or name in fields]
            for name in names:
                with file.open(f"{name}.npy") as member:
                    while member.read(_BLOCK):  # raises where the checksum differs
                        pass
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile and NumPy raise nearly anything on damage
        logger.warning("cache %s is damaged (%s); making it again.", path, error)
        return None


def _count(path: Path) -> int:
    """How many arrays the last bytes of the file say there are; zipfile looks away."""
    with path.open("rb") as file:
        file.seek(-12, os.SEEK_END)
        return int.from_bytes(file.read(2), "little")


def made_once(
    path: Path,
    make: Callable[[], dict[str, np.ndarray]],
    fields: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """What `make` gives, from the file where it has that.

    A file that cannot be read or written costs time, nothing else.

    Args:
        path: of the arrays' own: named after all that they follow from.
        make: gives the arrays.
        fields: see `read`.
    """
    stored = read(path, fields)
    if stored is None:
        stored = make()
        try:
            write(path, stored)
        except OSError as error:
            logger.warning("cannot cache %s: %s", path, error)
    return stored


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores arrays, whole or not at all.

    Other processes may read or make the same file at this moment.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(Path(path), shared=True) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
