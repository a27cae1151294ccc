"""Sampling against slow loops, its edges and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from unsup3d_jax.formation import sampling

# One program each: op by op they would compile for long.
sample_bilinear = jax.jit(sampling.sample_bilinear)
sample_nearest = jax.jit(sampling.sample_nearest)


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
    value, gradient = jax.jit(
        jax.value_and_grad(lambda i, g: sample_bilinear(i, g).sum(), argnums=(0, 1))
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


# --- nearest ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.int32])
@pytest.mark.parametrize("b, m, n, c", [(1, 1, 9, 1), (3, 6, 7, 2)])
def test_nearest_agrees_with_the_definition(b, m, n, c, dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2 if dtype is np.bool_ else 9, (b, 4, 5, c)).astype(dtype)
    grid = rng.uniform(-3, 8, size=(b, m, n, 2)).astype(np.float32)
    out = sample_nearest(jnp.asarray(images), jnp.asarray(grid))
    assert out.dtype == dtype
    for i, y, x in np.ndindex(b, m, n):
        u, v = (int(np.rint(a)) for a in grid[i, y, x])
        inside = 0 <= u < 5 and 0 <= v < 4
        np.testing.assert_array_equal(out[i, y, x], images[i, v, u] if inside else 0)


@pytest.mark.parametrize(
    "u, pixel",
    [
        (-0.51, None), (-0.5, 0), (0.49, 0), (0.5, 0), (0.51, 1), (1.5, 2), (2.5, 2),
        (4.49, 4), (4.5, 4), (4.51, None), (np.nan, None), (np.inf, None),
        (-1e30, None),
    ],
)  # fmt: skip
def test_ties_go_to_the_even_pixel_and_the_image_ends_half_a_pixel_out(u, pixel):
    line = jnp.arange(1.0, 6.0).reshape(1, 1, 5, 1)
    expected = 0.0 if pixel is None else pixel + 1.0
    for images, where in ((line, (u, 0.0)), (line.reshape(1, 5, 1, 1), (0.0, u))):
        grid = jnp.asarray(where, jnp.float32).reshape(1, 1, 1, 2)
        assert float(sample_nearest(images, grid)[0, 0, 0, 0]) == expected


def test_nearest_has_no_gradient_in_positions_and_copies_that_of_images():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(1, 3, 3, 1)), jnp.float32)
    grid = jnp.array([[[[0.2, 0.1], [1.9, 2.2], [2.1, 1.9], [np.nan, 0.0]]]])
    to_images, to_grid = jax.jit(
        jax.grad(lambda i, g: sample_nearest(i, g).sum(), argnums=(0, 1))
    )(images, grid)
    np.testing.assert_array_equal(to_grid, 0.0)
    expected = np.zeros((1, 3, 3, 1))
    expected[0, 0, 0], expected[0, 2, 2] = 1.0, 2.0
    np.testing.assert_array_equal(to_images, expected)


def test_batches_of_nearest_must_agree(unchecked):
    with pytest.raises(ValueError, match="coordinates"):
        sample_nearest(jnp.ones((2, 3, 3, 1)), jnp.ones((1, 3, 3, 2)))
