"""The rasterizer is tested as it is used: as the compiler optimises it."""

import jax
import pytest


@pytest.fixture(autouse=True)
def optimised():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
