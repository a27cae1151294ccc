"""Which code does the work on a CPU."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial

import jax


def numba_installed() -> bool:
    """Never on Windows, whose threads the loops do not know."""
    return os.name == "posix" and importlib.util.find_spec("numba") is not None


def compiles_loops(backend: str) -> bool:
    """Whether Numba's loops do the work on a CPU, and not XLA.

    Raises:
        ValueError: for an unknown backend, or "numba" where it is not installed.
    """
    if backend not in ("auto", "xla", "numba"):
        raise ValueError(f"backend must be auto, xla or numba, got {backend!r}.")
    if backend == "numba" and not numba_installed():
        raise ValueError(
            'backend="numba" needs the package numba: pip install numba, or '
            'backend="auto" to do without it.'
        )
    return backend != "xla" and numba_installed()


def choose(loops: bool, *, by_loops: Callable, by_list: Callable) -> Callable:
    """What works on a CPU, and what elsewhere; by the platform compiled for."""
    if not loops:
        return by_list
    return partial(jax.lax.platform_dependent, cpu=by_loops, default=by_list)
