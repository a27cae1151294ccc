"""Ctrl-C and SIGTERM: finish the step, save, leave with status 0."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):
    """A first Ctrl-C or SIGTERM, at a moment when stopping at once is safe."""


class Interrupts:
    """Turns signals into a request that the training loop reads.

    Use it as a context manager around a run. Outside `deferred` a first signal
    raises `Interrupted`; inside, it sets `requested` and the loop finishes its
    step. A second Ctrl-C always raises KeyboardInterrupt: abort now. Off the
    main thread Python cannot install handlers, and nothing is changed.
    """

    def __init__(self):
        self.requested = False
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # a second SIGTERM: already stopping
        self.requested = True
        if not self._deferred:
            raise Interrupted(signal.Signals(number).name)
        # Not print: its buffer may be in use where the signal struck.
        os.write(2, b"\nfinishing this step and saving; Ctrl-C aborts at once.\n")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While inside, a first signal only sets `requested`."""
        with self._mode(True):
            yield

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside `deferred`: while inside this, a first signal raises again."""
        with self._mode(False):
            if self.requested:
                raise Interrupted
            yield

    @contextlib.contextmanager
    def _mode(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before
