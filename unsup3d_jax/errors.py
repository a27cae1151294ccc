"""The one exception that means "the user can fix this"."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Bad input from outside: a flag, a config key, a file, a folder.

    The message is one line that names the key or file, what was expected and
    what to do. `main.py` prints it on stderr and exits with status 2, without
    a stack trace. Everything else that goes wrong is a bug and keeps its trace.
    """


def one_line(error: BaseException, most: int = 10_000) -> str:
    """The text of an error on one line, cut off after `most` characters.

    What would steer a terminal, such as a name out of a stranger's file, is spelt out.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return text if len(text) < most else f"{text[:most]} ..."


@contextlib.contextmanager
def refusing(prefix: str = "") -> Iterator[None]:
    """Makes a UserError of a ValueError of the body, which is about a user's value."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from None


@contextlib.contextmanager
def writing(path: str | Path, hint: str = "") -> Iterator[None]:
    """Makes a UserError that names `path` of an OSError of the body.

    Args:
        hint: a sentence to add, such as what to do next.
    """
    try:
        yield
    except OSError as error:
        # The system may refuse a folder above, or a temporary file beside.
        culprit = str(error.filename or path)
        where = "" if culprit == str(path) else f" ({culprit})"
        text = f"cannot write {path}: {error.strerror or error}{where}."
        raise UserError(f"{text} {hint}".rstrip()) from error
