"""The networks against the paper's tables, their fast forms against slow ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import networks


def _parameter_count(net, size=64):
    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), image))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "net, count",
    [
        (networks.EncoderDecoder(1, 64, 256), 12_979_648),
        (networks.EncoderDecoder(3, 64, 256), 12_982_848),
        (networks.Encoder(4, 32), 1_739_264),
        (networks.Encoder(6, 32), 1_739_776),
        (networks.ConfidenceNet(64, 128), 7_678_208),
    ],
)
def test_full_width_has_the_published_parameter_count(net, count):
    assert _parameter_count(net) == count


@pytest.mark.parametrize(
    "size, width, counts",
    [
        (64, 64, (12_979_648, 12_982_848, 6_952_960, 6_951_936)),
        (128, 32, (12_947_680, 12_949_280, 6_984_192, 6_983_168)),
    ],
)
def test_gan2shapes_networks_have_the_authors_parameter_counts(size, width, counts):
    theirs = {"channels": networks.GAN2SHAPE}
    nets = (
        networks.EncoderDecoder(1, width, 256, **theirs),
        networks.EncoderDecoder(3, width, 256, **theirs),
        networks.Encoder(6, width, **theirs),
        networks.Encoder(4, width, **theirs),
    )
    assert tuple(_parameter_count(net, size) for net in nets) == counts


def test_the_widths_and_groups_of_both_methods():
    ours, theirs = networks.UNSUP3D, networks.GAN2SHAPE
    assert ours.of_levels(256, 16) == [16, 32, 64, 128, 128, 128]
    assert theirs.of_levels(256, 16) == [16, 32, 64, 128, 256, 512]
    assert ours.of_levels(64, 64) == theirs.of_levels(64, 64)
    assert [ours.groups(c, 32) for c in (32, 64, 128, 256)] == [16, 32, 64, 64]
    assert [theirs.groups(c, 32) for c in (32, 64, 128, 256)] == [8, 16, 32, 64]


def test_an_encoder_may_have_eight_channels_and_has_no_normalisation():
    net = networks.Encoder(6, 8)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    out, variables = jax.eval_shape(
        lambda x: net.init_with_output(jax.random.key(0), x), image
    )
    assert out.shape == (2, 6)
    assert set(variables["params"]) == {f"Conv_{i}" for i in range(6)}


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
def test_output_sizes_follow_the_image(size):
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def run(net):
        return jax.eval_shape(
            lambda x: net.init_with_output(jax.random.key(0), x)[0], image
        )

    assert run(networks.EncoderDecoder(3, 16, 16)).shape == (2, size, size, 3)
    assert run(networks.Encoder(6, width=16)).shape == (2, 6)
    fine, coarse = run(networks.ConfidenceNet(16, 16))
    assert fine.shape == (2, size, size, 2)
    assert coarse.shape == (2, size // 4, size // 4, 2)


def _normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_transposed_convolution_is_the_gradient_of_a_strided_one():
    x, kernel = _normal(0, (2, 5, 6, 3)), _normal(1, (4, 4, 3, 7))
    # The forward convolution maps (10, 12, 7) to (5, 6, 3).
    forward = kernel.transpose(0, 1, 3, 2)

    def strided(y):
        return networks.convolve(y, forward, stride=2, padding=1)

    _, pullback = jax.vjp(strided, jnp.zeros((2, 10, 12, 7)))
    np.testing.assert_allclose(
        networks.transposed_convolve(x, kernel), pullback(x)[0], atol=2e-5
    )


def test_upsampled_convolution_equals_repeat_then_convolve():
    x, kernel = _normal(0, (2, 5, 6, 3)), _normal(1, (3, 3, 3, 7))
    repeated = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(
        networks.upsampled_convolve(x, kernel),
        networks.convolve(repeated, kernel, padding=1),
        atol=2e-5,
    )


@pytest.mark.parametrize(
    "fast, slow, size",
    [
        (
            networks.transposed_convolve,
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
            networks.upsampled_convolve,
            lambda x, k: networks.convolve(
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
    net = networks.GroupNorm(4)
    params = {"scale": jnp.arange(1.0, 9.0), "bias": jnp.arange(8.0)}
    out = net.apply({"params": params}, x)
    blocks = np.asarray(x, float).reshape(2, 4, 4, 4, 2)
    mean = blocks.mean((1, 2, 4), keepdims=True)
    variance = blocks.var((1, 2, 4), keepdims=True)
    expected = ((blocks - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    expected = expected * np.arange(1.0, 9.0) + np.arange(8.0)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_initial_weights_are_uniform_within_the_fan_in_bound():
    params = networks.Conv(32, 4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 16)))
    kernel = params["params"]["kernel"]
    bound = 1 / math.sqrt(4 * 4 * 16)
    assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound
    deconv = networks.Deconv(4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))
    bound = 1 / math.sqrt(4 * 4 * 4)  # counts output channels
    assert 0.98 * bound < float(jnp.abs(deconv["params"]["kernel"]).max()) <= bound


def test_bfloat16_stays_near_float32_and_returns_float32():
    image = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1)
    exact = networks.EncoderDecoder(3, 16, 16)
    params = jax.jit(exact.init)(jax.random.key(1), image)
    coarse = networks.EncoderDecoder(3, 16, 16, dtype=jnp.bfloat16)
    a, b = jax.jit(exact.apply)(params, image), jax.jit(coarse.apply)(params, image)
    assert b.dtype == jnp.float32
    assert float(jnp.abs(a - b).mean()) < 0.05 * float(jnp.abs(a).mean()) + 1e-3


@pytest.mark.parametrize("size, width", [(48, 64), (16, 64), (96, 64), (64, 0)])
def test_impossible_sizes_are_refused(size, width):
    with pytest.raises(ValueError, match="must be"):
        networks.UNSUP3D.of_levels(size, width)


@pytest.mark.parametrize(
    "channels, width", [(networks.UNSUP3D, 24), (networks.GAN2SHAPE, 6)]
)
def test_widths_that_do_not_divide_into_groups_are_refused(channels, width):
    net = networks.EncoderDecoder(1, width, 16, channels=channels)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(ValueError, match=f"width must be .* got {width}"):
        jax.eval_shape(net.init, jax.random.key(0), image)
