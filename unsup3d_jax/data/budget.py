"""Memory that threads share: who needs more than is left waits."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """So many bytes for all threads of the process together.

    One holder alone may take more than there is: a large photo is read while no other
    is. It may be overtaken by small ones, but not for ever where their readers look
    ahead by a bounded number, as grain's do.
    """

    def __init__(self, total: int):
        self._total = total
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, need: int) -> Iterator[None]:
        """Holds `need` bytes in the body; waits for them first.

        A thread that holds some must not ask for more: it may wait for itself.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: not self._held or self._held + need <= self._total
            )
            self._held += need
        try:
            yield
        finally:
            with self._changed:
                self._held -= need
                self._changed.notify_all()
