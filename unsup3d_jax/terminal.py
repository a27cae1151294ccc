"""Streams that a run outlives: a closed terminal, a pipe that nobody reads any more."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Lasting(io.TextIOBase):
    """A text stream that falls silent, and raises nothing, once it cannot be written.

    What it was to show is in metrics.jsonl and the files of scores; who started a
    training over a connection that breaks, or reads a table by `| head`, loses
    nothing else.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        if not self._gone:
            try:
                self._stream.write(text)
            except OSError:
                self._lose()
        return len(text)

    def flush(self) -> None:
        if not self._gone:
            try:
                self._stream.flush()
            except OSError:
                self._lose()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    @property
    def errors(self) -> str | None:
        return self._stream.errors

    def close(self) -> None:
        """Not the stream, which is its owner's."""

    def _lose(self) -> None:
        self._gone = True
        # What is still in its buffer would be tried again, and raise, at the exit.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Makes standard output and standard error `Lasting` inside."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Lasting(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
