"""Arrays of HDF5 files, which come from strangers; read by h5py where it is installed.

An array counts as the file's own if it can be reached by hard links and its numbers
lie in the file: other links, virtual arrays and outside parts could point at any other
file of this machine, and are refused.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets.file_guard import Budget, Refused, StoredArray, reading, shape_of

_MOST_ARRAYS = 1000
_DEEPEST = 8  # groups within groups that `names` looks into
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


@contextlib.contextmanager
def opened(path: Path) -> Iterator["File"]:
    """An HDF5 file; around nothing but its reading.

    Raises:
        UserError: naming the file, if it is damaged or something in it is refused; or
            the package to install, if h5py is not.
    """
    try:
        import h5py  # optional
    except ImportError:
        raise UserError(
            f"{path}: .h5 files are read by h5py, which is not installed; run "
            "pip install 'unsup3d_jax[h5]'."
        ) from None
    with reading(path, "HDF5 file"), h5py.File(path, "r") as file:
        yield File(path, file, h5py)


class File:
    """What lies in an open file. Made by `opened`."""

    def __init__(self, path: Path, file: Any, h5py: Any):
        self._budget, self._file, self._h5py = Budget(path), file, h5py

    def names(self) -> list[str]:
        """Paths of all arrays that hard links lead to.

        Raises:
            Refused: if they are too many.
        """
        found: list[str] = []

        def look(group: Any, prefix: str, depth: int) -> None:
            for key in group:
                # Others could lead out of the file, or in circles.
                if not self._is_own(group, key):
                    continue
                item, name = group[key], f"{prefix}{key}"
                if isinstance(item, self._h5py.Dataset):
                    found.append(name)
                    if len(found) > _MOST_ARRAYS:
                        raise Refused(f"has more than {_MOST_ARRAYS} arrays.")
                elif isinstance(item, self._h5py.Group) and depth < _DEEPEST:
                    look(item, f"{name}/", depth + 1)

        look(self._file, "", 0)
        return found

    def array(self, name: str) -> StoredArray | None:
        """The array of a path, to be read while the file is open; None: there is none.

        Raises:
            Refused: if it is not this file's own, or does not hold numbers.
        """
        place = self._file
        for part in name.split("/"):
            if not isinstance(place, self._h5py.Group) or part not in place:
                return None
            if not self._is_own(place, part):
                raise Refused(f"{name!r} lies in another place or file; refused.")
            place = place[part]
        if not isinstance(place, self._h5py.Dataset):
            raise Refused(f"{name!r} is no array.")
        if place.is_virtual or place.external:
            raise Refused(f"{name!r} lies in another file; refused.")
        if place.dtype.kind not in "fiub":
            raise Refused(f"{name!r} must hold numbers, found {place.dtype}.")
        shape = shape_of(tuple(map(int, place.shape)))
        return StoredArray(self._budget, shape, int(place.nbytes), lambda: place[()])

    def _is_own(self, group: Any, key: str) -> bool:
        return isinstance(group.get(key, getlink=True), self._h5py.HardLink)
