"""Bilinear sampling against a slow loop, its edges and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from unsup3d_jax.formation.sampling import sample_bilinear


def _slow(image, u, v):
    """One sample by the definition: four neighbours, zero outside."""
    h, w, c = image.shape
    u0, v0 = int(np.floor(u)), int(np.floor(v))
    total = np.zeros(c)
    for vv in (v0, v0 + 1):
        for uu in (u0, u0 + 1):
            if 0 <= uu < w and 0 <= vv < h:
                total += (1 - abs(u - uu)) * (1 - abs(v - vv)) * image[vv, uu]
    return total


def test_agrees_with_the_definition_inside_and_outside():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    grid = rng.uniform(-3, 8, size=(2, 6, 7, 2)).astype(np.float32)
    out = sample_bilinear(jnp.asarray(images), jnp.asarray(grid))
    for b, i, j in np.ndindex(2, 6, 7):
        expected = _slow(images[b].astype(float), *grid[b, i, j].astype(float))
        np.testing.assert_allclose(out[b, i, j], expected, atol=1e-5)


def test_integer_positions_return_pixels():
    images = jax.random.normal(jax.random.key(0), (1, 4, 5, 2))
    v, u = np.mgrid[:4, :5]
    grid = jnp.asarray(np.stack([u, v], -1)[None], jnp.float32)
    np.testing.assert_array_equal(sample_bilinear(images, grid), images)


def test_positions_that_are_not_finite_sample_zero_with_finite_gradients():
    images = jnp.ones((1, 3, 3, 1))
    grid = jnp.array([[[[jnp.nan, 1.0], [jnp.inf, 1.0], [1e30, -1e30]]]])
    value, gradient = jax.value_and_grad(
        lambda i, g: sample_bilinear(i, g).sum(), argnums=(0, 1)
    )(images, grid)
    assert float(value) == 0.0
    assert all(np.isfinite(g).all() for g in gradient)


def test_gradients_match_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        images = jnp.asarray(rng.normal(size=(2, 4, 4, 2)))
        # Away from the cell edges, where the derivative jumps.
        grid = rng.integers(-1, 4, (2, 3, 3, 2)) + rng.uniform(0.1, 0.9, (2, 3, 3, 2))
        check_grads(
            sample_bilinear, (images, jnp.asarray(grid)), order=1, modes=["rev"]
        )


def test_batches_must_agree(unchecked):
    with pytest.raises(ValueError, match="coordinates"):
        sample_bilinear(jnp.ones((2, 3, 3, 1)), jnp.ones((1, 3, 3, 2)))
