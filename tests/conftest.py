"""Tests share compiled programs, and compile them without much optimisation.

Most of their time goes to the compiler, for programs that run once. The tests of
the rasterizer, whose numbers may not depend on what a compiler makes of them,
have it optimise (tests/rasterizer/conftest.py). JAX's own variables have the last
word.

Annotations are checked as the functions run: shapes and dtypes by jaxtyping, all
else by beartype (JAXTYPING_DISABLE=1 does without).
"""

import gc
import os
from pathlib import Path

import jaxtyping
import pytest

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

# Before any of its modules is imported. The rasterizer, which needs JAX alone, has no
# shapes in its annotations; its own checks are tested.
jaxtyping.install_import_hook("unsup3d_jax", "strict_types.check")


def pytest_configure(config):
    """Files are shared out to processes in their order, not the fullest ones first.

    A file of one test may take a minute; last, it would run alone.
    """
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist
        config.option.loadscopereorder = False
    # Tracing makes and drops objects by the million: look seldom, for they die young.
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def unchecked():
    """For tests of our own errors, which wrong shapes meet where nobody checks them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """What a module leaves is not looked through for garbage any more.

    Compiled programs are a million objects at the end, which takes a tenth of the time.
    """
    yield
    gc.freeze()
