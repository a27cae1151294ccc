"""The rasterizer is tested as it is used: as the compiler optimises it."""

import jax
import pytest

from rasterizer import backends


@pytest.fixture
def as_compiled():
    """Whatever programs a test compiles are optimised as they are in use."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def optimised(as_compiled):
    """For all tests, unless their module compiles too much for that."""


@pytest.fixture(autouse=True, scope="package")
def threads():
    """Small images in bands, and more threads than cores, whatever the machine."""
    patch = pytest.MonkeyPatch()
    if backends.numba_installed():
        from rasterizer import custom_call, native

        patch.setattr(native, "DRAW_BAND", 12)
        patch.setattr(native, "PULL_BAND", 20)
        patch.setattr(custom_call, "cores", lambda: 3)
    yield
    patch.undo()


@pytest.fixture(params=["xla", "numba"])
def backend(request, monkeypatch):
    """With and without Numba: what `backend="auto"` takes on a CPU."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(backends, "numba_installed", lambda: request.param == "numba")
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`once_by_list`, `slow_by_list`: so marked for the work list, whose programs take
    long to compile."""
    for item in items:
        for mark in ("once", "slow"):
            if item.get_closest_marker(f"{mark}_by_list"):
                if item.callspec.params.get("backend") == "xla":
                    item.add_marker(mark)
