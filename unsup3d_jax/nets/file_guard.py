"""What all readers of weight files share: one budget, one kind of error, late reading.

A file of weights comes from a stranger. Its readers say first what it holds, names
and shapes, and read an array's numbers only when a network has asked for an array of
that shape. So no more is held than the network needs, whatever the file declares.
"""

import contextlib
import dataclasses
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.errors import UserError, one_line
from unsup3d_jax.files import need_regular

# Bytes that the content of a file may have beyond the file itself, all it declares
# added up. All of VGG16 is 0.55 GB.
LIMIT = 2**30


class Refused(Exception):
    """A file asks for what no file of weights needs; says what, for `reading`."""


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Makes a UserError that names the file of whatever its content leads to.

    A damaged file can raise nearly anything in the libraries that read it. Around
    nothing but their calls.
    """
    try:
        yield
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path}: {one_line(error, 500)}") from error
    except Exception as error:
        raise UserError(
            f"{path}: not a readable {kind} ({one_line(error, 200)}); the file is "
            "damaged or of another format."
        ) from error


def shown(value: Any) -> str:
    """A short text of what a file holds; the `repr` of what holds itself many times
    is endless."""
    return reprlib.repr(value)[:200]


class Budget:
    """How many bytes the content of a file may still take.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.limit = self._left = LIMIT + path.stat().st_size

    def take(self, count: int) -> None:
        """Books bytes before they are made.

        Raises:
            Refused: if there are not so many left.
        """
        if count < 0 or count > self._left:
            raise Refused(
                f"expands to more than {self.limit / 2**20:,.0f} MiB; no file of "
                "weights does, refused."
            )
        self._left -= count

    def may_hold(self, total: int) -> None:
        """Refuses a file whose parts, as it declares them, add up to too much."""
        if total > self.limit:
            self.take(total)


@dataclasses.dataclass
class StoredArray:
    """An array that is still in its file.

    Attributes:
        budget: of the file.
        shape: as the file declares it.
        size: bytes that reading it takes beyond those of the file.
        read: gives it, of `shape`; may raise anything.
    """

    budget: Budget
    shape: tuple[int, ...] = ()
    size: int = 0
    read: Callable[[], np.ndarray] | None = None

    def array(self) -> np.ndarray:
        """The numbers, in native byte order and memory of their own.

        Raises:
            UserError: if they are not all there, or too many.
        """
        with reading(self.budget.path, "array"):
            if self.read is None:
                raise Refused("an array has no numbers; the file is damaged.")
            self.budget.take(self.size)
            array = np.array(self.read())
            return array.astype(array.dtype.newbyteorder("="), copy=False)


def existing(path: str | Path) -> Path:
    """The path of a regular file that is there.

    Raises:
        UserError: if it is not, or is something else.
    """
    path = Path(path).expanduser()
    try:
        need_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}).") from None
    return path


def shape_of(numbers: Any) -> tuple[int, ...]:
    """A shape, or strides, that a file declares.

    Raises:
        Refused: if it is none.
    """
    if not isinstance(numbers, tuple | list) or len(numbers) > 32:
        raise Refused("an array has no shape; the file is damaged.")
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise Refused("an array has an impossible shape; the file is damaged.")
    return tuple(numbers)
