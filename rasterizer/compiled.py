"""Numba's compiler: what it made is kept where there is a place for that.

Compiling takes seconds a process, keeping is no more than a help. Numba itself ends
with an exception where neither the package's folder nor the user's cache nor
`NUMBA_CACHE_DIR` can be written, and on a disk that is full.
"""

import contextlib
from typing import Any

import numba
from numba.core import caching


class _Cache(caching.FunctionCache):
    """Numba's, without which a function is compiled all the same.

    No right to read or write, a full disk, a torn file, of which pickle raises nearly
    anything: whatever it is, it is no reason to stop.
    """

    def load_overload(self, sig, target_context):
        with contextlib.suppress(Exception):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig, data):
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)


def njit(**options: Any) -> Any:
    """`numba.njit(cache=True, **options)`; without a cache where it has no place."""

    def compiled(function):
        dispatcher: Any = numba.njit(**options)(function)
        with contextlib.suppress(RuntimeError, OSError):  # "no locator available"
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compiled
