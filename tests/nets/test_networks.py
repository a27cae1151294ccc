"""The networks against the tables of both papers."""

import math

import jax
import jax.numpy as jnp
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


@pytest.mark.once
def test_bfloat16_stays_near_float32_and_returns_float32():
    image = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1)
    exact = networks.EncoderDecoder(3, 16, 16)
    params = jax.jit(exact.init)(jax.random.key(1), image)
    coarse = networks.EncoderDecoder(3, 16, 16, dtype=jnp.dtype(jnp.bfloat16))
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
