"""Which code does the work on which platform."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax

from .engines import INTERPRETED, KERNELS, LIST

BACKENDS = ("auto", "xla", "numba", "pallas")


class Workers(NamedTuple):
    """What does the work, by platform; the work list does it on all others.

    Attributes:
        cpu: "list", "loops" (Numba's) or "interpreted" (the kernels, by XLA).
        cuda: "list" or "kernels".
    """

    cpu: str = "list"
    cuda: str = "list"


def numba_installed() -> bool:
    """Never on Windows, whose threads the loops do not know."""
    return os.name == "posix" and importlib.util.find_spec("numba") is not None


@cache
def kernels_compile() -> bool:
    """Whether this JAX has what the kernels are made of."""
    try:
        importlib.import_module("rasterizer.kernels")
    except (ImportError, AttributeError):
        return False
    return True


def find_workers(backend: str) -> Workers:
    """The Workers of an option.

    Raises:
        ValueError: for an unknown backend, or one that is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}.")
    if backend == "numba" and not numba_installed():
        raise ValueError(
            'backend="numba" needs the package numba: pip install numba, or '
            'backend="auto" to do without it.'
        )
    if backend == "pallas" and not kernels_compile():
        raise ValueError(
            'backend="pallas" needs a JAX whose Pallas compiles by Triton; '
            'backend="auto" does without.'
        )
    if backend == "xla":
        return Workers()
    if backend == "pallas":
        return Workers("interpreted", "kernels")
    # Without a GPU, programs for one may be lowered, but no kernels.
    kernels = jax.default_backend() == "gpu" and kernels_compile()
    return Workers(
        "loops" if numba_installed() else "list", "kernels" if kernels else "list"
    )


def choose(workers: Workers, *, by_loops: Callable, by_engine: Callable) -> Callable:
    """What does the work, by the platform compiled for.

    Args:
        by_engine: takes the keyword `engine`.
    """
    ways = {
        "list": partial(by_engine, engine=LIST),
        "loops": by_loops,
        "interpreted": partial(by_engine, engine=INTERPRETED),
        "kernels": partial(by_engine, engine=KERNELS),
    }
    special = {p: ways[w] for p, w in workers._asdict().items() if w != "list"}
    if not special:
        return ways["list"]
    return partial(jax.lax.platform_dependent, **special, default=ways["list"])
