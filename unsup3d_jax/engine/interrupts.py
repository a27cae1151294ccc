"""Ctrl-C, SIGTERM, SIGHUP: finish the step, save, leave with status 0, in time."""

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# With nothing left to save for this many seconds, a main thread that has not left
# sits in compiled code (XLA compiles for minutes) and is not waited for.
GRACE = 5.0


def _signals() -> set[signal.Signals]:
    """Those that stop a run: SIGHUP, of a terminal that is closed, unless the run was
    started to outlive that (nohup, disown)."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    stops = {signal.SIGINT, signal.SIGTERM}
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        stops.add(hangup)
    return stops


def _tell(text: str) -> None:
    """Says it on stderr if that is still there; not print: its buffer may be in use
    where the signal struck."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


class Interrupted(BaseException):
    """A first Ctrl-C, SIGTERM or SIGHUP, at a moment when stopping at once is safe.

    Not an `Exception`: whoever catches whatever a library may raise over a broken
    file would take a signal for one.
    """


class Interrupts:
    """Turns signals into a request that the training loop reads.

    Use it as a context manager around a run. Outside `deferred` a first signal
    raises `Interrupted`; inside, it sets `requested` and the loop finishes its
    step. A second Ctrl-C always raises KeyboardInterrupt: abort now. Off the
    main thread Python cannot install handlers, and nothing is changed.

    Python drops what is raised in a `__del__`, or in a callback of its garbage
    collector, where a signal may strike too; it is raised again soon afterwards.

    Python runs handlers between bytecodes, so none runs while the main thread
    compiles or waits for a device. A second thread therefore keeps the time:
    it ends the process `deadline` seconds after the first signal, and once
    nothing was unsaved for `GRACE`. Its exit status is 0 if nothing is lost.

    Attributes:
        requested: whether a signal has come.
        deadline: seconds; config.checkpoint.deadline.
    """

    def __init__(self, deadline: float = 30.0):
        self.requested = False
        self.deadline = deadline
        self._unsaved: Callable[[], bool] = lambda: False
        self._deferred = False
        self._previous: dict[int, Any] = {}
        self._lost: type[BaseException] | None = None
        self._previous_hook = sys.unraisablehook
        self._left = threading.Event()
        self._pipe: tuple[socket.socket, socket.socket] | None = None
        self._previous_fd = -1

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in _signals():
                self._previous[number] = signal.signal(number, self._handle)
            self._previous_hook = sys.unraisablehook
            sys.unraisablehook = self._notice
            self._left.clear()
            self._pipe = socket.socketpair()  # Windows has no such os.pipe
            self._pipe[1].setblocking(False)
            # Written by the C handler at once, whatever the main thread does.
            self._previous_fd = signal.set_wakeup_fd(
                self._pipe[1].fileno(), warn_on_full_buffer=False
            )
            self._timer = threading.Thread(
                target=self._keep_time,
                args=(self._pipe[0], set(self._previous)),
                daemon=True,
            )
            self._timer.start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        self._lost = None
        if self._pipe is not None:
            # Who has wrapped ours meanwhile (`checkpoint`) stays: what it waits for may
            # come later than this. Ours then hands on what it is given.
            if sys.unraisablehook == self._notice:
                sys.unraisablehook = self._previous_hook
            signal.set_wakeup_fd(self._previous_fd)
            self._left.set()
            self._pipe[1].send(b"\0")
            self._timer.join()
            for end in self._pipe:
                end.close()
            self._pipe = None

    def request(self) -> None:
        """As a SIGTERM to this process would; from any thread."""
        if not self._previous:  # no handler: it would kill
            return
        if os.name == "nt":  # where os.kill always kills
            signal.raise_signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, _frame: object) -> None:
        if self.requested:
            lost, self._lost = self._lost, None
            if number == signal.SIGINT or lost is KeyboardInterrupt:
                raise KeyboardInterrupt
            if lost is not None and not self._deferred:
                raise lost
            return  # a second SIGTERM or SIGHUP: already stopping
        self.requested = True
        if not self._deferred:
            raise Interrupted(signal.Signals(number).name)
        _tell("\nfinishing this step and saving; Ctrl-C aborts at once.\n")

    @staticmethod
    def below(hook: Any) -> Any:
        """The hook that was there before one of these; None if it is another's."""
        found = getattr(hook, "__self__", None)
        return found._previous_hook if isinstance(found, Interrupts) else None

    def _notice(self, dropped: Any) -> None:
        """Python has dropped an exception: ours is kept, others are printed."""
        if issubclass(dropped.exc_type, Interrupted | KeyboardInterrupt):
            self._lost = dropped.exc_type
        else:
            self._previous_hook(dropped)

    def _keep_time(self, reader: socket.socket, stops: set[int]) -> None:
        while not self._left.is_set() and not stops & set(reader.recv(64)):
            pass
        start = busy = time.monotonic()
        while not self._left.wait(0.05):
            if self._lost is not None:
                # From here, because it would strike in the hook itself. Nothing
                # happens if the handlers are gone.
                _thread.interrupt_main(signal.SIGTERM)
            now, unsaved = time.monotonic(), self._is_unsaved()
            busy = now if unsaved else busy
            if now - start >= self.deadline or now - busy >= GRACE:
                self._give_up(now - start, unsaved)

    def _is_unsaved(self) -> bool:
        try:
            return self._unsaved()
        except Exception:  # a folder that is gone may not end this thread
            return True

    def _give_up(self, waited: float, unsaved: bool) -> None:
        what = (
            "the newest steps are not saved; the checkpoint before them is kept"
            if unsaved
            else "everything is saved"
        )
        _tell(f"\nstopped {waited:.0f} s after the signal: {what}.\n")
        os._exit(1 if unsaved else 0)

    @contextlib.contextmanager
    def deferred(self, unsaved: Callable[[], bool]) -> Iterator[None]:
        """While inside, a first signal only sets `requested`.

        Args:
            unsaved: tells whether leaving at once would lose work; called from
                the thread that keeps the time.
        """
        before, self._unsaved = self._unsaved, unsaved
        try:
            with self._mode(True):
                yield
        finally:
            self._unsaved = before

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
