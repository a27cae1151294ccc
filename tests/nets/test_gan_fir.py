"""Filters and convolutions that change the resolution, against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_stylegan2 as slow

from unsup3d_jax.nets import fir


@pytest.mark.parametrize("name", ["up_convolve", "down_convolve"])
def test_strided_convolution_with_its_filter_is_one_convolution(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, 3))
    kernel = rng.normal(size=(3, 3, 3, 5))
    found = getattr(fir, name)(jnp.float32(x), jnp.float32(kernel))
    wanted = np.stack([getattr(slow, name)(one, kernel) for one in x])
    np.testing.assert_allclose(found, wanted, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["upsample", "downsample"])
def test_resampling_is_the_filter_on_a_grid_with_zeros(name):
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 3))
    found = getattr(fir, name)(jnp.float32(x))
    wanted = np.stack([getattr(slow, name)(one) for one in x])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_constant_stays_a_constant_inside():
    ones = jnp.ones((1, 6, 6, 1))
    np.testing.assert_allclose(fir.upsample(ones)[0, 1:-1, 1:-1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(fir.downsample(ones)[0, 1:-1, 1:-1], 1.0, rtol=1e-6)


@pytest.mark.once
def test_down_and_up_are_each_others_transpose():
    """By PyTorch's rule that the kernel of a transposed convolution is not turned."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(1, 4, 4, 2)), rng.normal(size=(1, 8, 8, 3))
    kernel = jnp.float32(rng.normal(size=(3, 3, 2, 3)))
    x, y = jnp.float32(x), jnp.float32(y)

    def down(image):
        return fir.down_convolve(image, kernel.swapaxes(2, 3))

    pulled = jax.vjp(down, y)[1](x)[0]
    np.testing.assert_allclose(
        4.0 * pulled, fir.up_convolve(x, kernel), rtol=1e-4, atol=1e-5
    )
