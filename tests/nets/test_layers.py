"""Fast forms of the layers against slow ones, normalisation, initial weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import layers
from unsup3d_jax.nets.convolution import convolve


def _normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_transposed_convolution_is_the_gradient_of_a_strided_one():
    x, kernel = _normal(0, (2, 5, 6, 3)), _normal(1, (4, 4, 3, 7))
    # The forward convolution maps (10, 12, 7) to (5, 6, 3).
    forward = kernel.transpose(0, 1, 3, 2)

    def strided(y):
        return convolve(y, forward, stride=2, padding=1)

    _, pullback = jax.vjp(strided, jnp.zeros((2, 10, 12, 7)))
    np.testing.assert_allclose(
        layers.transposed_convolve(x, kernel), pullback(x)[0], atol=2e-5
    )


def test_upsampled_convolution_equals_repeat_then_convolve():
    x, kernel = _normal(0, (2, 5, 6, 3)), _normal(1, (3, 3, 3, 7))
    repeated = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(
        layers.upsampled_convolve(x, kernel),
        convolve(repeated, kernel, padding=1),
        atol=2e-5,
    )


@pytest.mark.parametrize(
    "fast, slow, size",
    [
        (
            layers.transposed_convolve,
            lambda x, k: jax.lax.conv_general_dilated(
                x,
                k[::-1, ::-1],
                (1, 1),
                ((2, 2), (2, 2)),
                lhs_dilation=(2, 2),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            4,
        ),
        (
            layers.upsampled_convolve,
            lambda x, k: convolve(
                jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), k, padding=1
            ),
            3,
        ),
    ],
)
def test_gradients_of_the_fast_forms_equal_those_of_the_slow(fast, slow, size):
    x, kernel = _normal(0, (2, 5, 6, 3)), _normal(1, (size, size, 3, 7))
    cotangent = _normal(2, (2, 10, 12, 7))
    for got, expected in zip(
        jax.vjp(fast, x, kernel)[1](cotangent),
        jax.vjp(slow, x, kernel)[1](cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_group_norm_by_the_definition():
    x = 3.0 + 2.0 * _normal(0, (2, 4, 4, 8))
    net = layers.GroupNorm(4)
    params = {"scale": jnp.arange(1.0, 9.0), "bias": jnp.arange(8.0)}
    out = net.apply({"params": params}, x)
    blocks = np.asarray(x, float).reshape(2, 4, 4, 4, 2)
    mean = blocks.mean((1, 2, 4), keepdims=True)
    variance = blocks.var((1, 2, 4), keepdims=True)
    expected = ((blocks - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    expected = expected * np.arange(1.0, 9.0) + np.arange(8.0)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_initial_weights_are_uniform_within_the_fan_in_bound():
    params = layers.Conv(32, 4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 16)))
    kernel = params["params"]["kernel"]
    bound = 1 / math.sqrt(4 * 4 * 16)
    assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound
    deconv = layers.Deconv(4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))
    bound = 1 / math.sqrt(4 * 4 * 4)  # counts output channels
    assert 0.98 * bound < float(jnp.abs(deconv["params"]["kernel"]).max()) <= bound
