"""Memory of the host, for programs that run on it."""

import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Lets this process keep the memory that it frees, to use it again.

    XLA's CPU programs ask for their intermediate results anew at each call. Above
    32 MB glibc takes such memory from the kernel and gives it back, and every page
    is cleared and mapped again: a sixth of a training step's time. Afterwards the
    process holds at least the most that it ever needed.

    Call it before any thread is started: half of the later threads would go on
    asking the kernel. A user's own settings (MALLOC_..., GLIBC_TUNABLES) stay.

    Returns:
        Whether the C library took the settings; others than glibc have none.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return False
    # One arena: the others are made of pieces that large arrays do not fit in.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all(mallopt(name, value) for name, value in settings.items())
