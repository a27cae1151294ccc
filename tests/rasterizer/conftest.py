"""The rasterizer is tested as it is used: as the compiler optimises it."""

import jax
import pytest

from rasterizer import backends


@pytest.fixture(autouse=True)
def optimised():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(params=["xla", "numba"])
def backend(request, monkeypatch):
    """With and without Numba: what `backend="auto"` takes on a CPU."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(backends, "numba_installed", lambda: request.param == "numba")
    return request.param
