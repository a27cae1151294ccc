"""The networks of StyleGAN2 against their definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_stylegan2 as slow

from unsup3d_jax.nets import stylegan2

OPTIONS = stylegan2.GanOptions(16, (5, 4, 3), style=6, mapping_layers=3)
CLOSE = 1e-5


def _random(tree, seed):
    """Parameters that are all there: biases and noise strengths too; float64."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.asarray(a + 0.3 * rng.normal(size=a.shape)), tree)


def _single(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0))
    both = stylegan2.init_generator(keys[0], OPTIONS)
    both["discriminator"] = stylegan2.init_discriminator(keys[1], OPTIONS)
    return _random(both, 0)


def _compare(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=CLOSE * np.abs(wanted).max())


def test_mapping_and_its_parts(params):
    z = np.random.default_rng(1).normal(size=(2, 6))
    mapping, rate = params["mapping"], OPTIONS.mapping_rate

    def ours(z, first=0, last=None):
        z, single = jnp.float32(z), _single(mapping)
        return stylegan2.map_latent(single, z, OPTIONS, first, last)

    whole = np.stack([slow.map_latent(mapping, one, rate) for one in z])
    _compare(ours(z), whole)
    head = ours(z, 0, 2)
    _compare(head, np.stack([slow.map_latent(mapping, one, rate, 0, 2) for one in z]))
    _compare(ours(head, 2), whole)


@pytest.mark.parametrize("noise", ["none", "shared", "own"])
def test_synthesis_of_one_vector_a_layer(params, noise):
    rng = np.random.default_rng(2)
    w = rng.normal(size=(2, OPTIONS.latents, 6))
    shape = {"none": None, "shared": (), "own": (2,)}[noise]
    maps = None
    if shape is not None:
        maps = [rng.normal(size=(*shape, r, r)) for r in OPTIONS.noise_sizes]
    single = None if maps is None else [jnp.float32(m) for m in maps]
    render = jax.jit(stylegan2.synthesise, static_argnums=3)
    found = render(_single(params["synthesis"]), jnp.float32(w), single, OPTIONS)
    for i in range(2):
        mine = maps if noise != "own" else [m[i] for m in maps]
        _compare(found[i], slow.synthesise_one(params["synthesis"], w[i], mine))


def test_one_vector_is_meant_for_all_layers(params):
    w = jnp.float32(np.random.default_rng(3).normal(size=(2, 6)))
    single = _single(params["synthesis"])
    render = jax.jit(stylegan2.synthesise, static_argnums=3)
    plus = jnp.repeat(w[:, None], OPTIONS.latents, axis=1)
    np.testing.assert_array_equal(
        render(single, w, None, OPTIONS), render(single, plus, None, OPTIONS)
    )


def test_features_and_logits(params):
    images = np.random.default_rng(4).normal(size=(8, 16, 16, 3))
    theirs, single = params["discriminator"], _single(params["discriminator"])
    read = jax.jit(stylegan2.discriminator_features, static_argnums=(2, 3))
    maps = read(single, jnp.float32(images[:1]), OPTIONS, 4)
    wanted = slow.features_one(theirs, images[0], 2)
    assert len(maps) == 2
    for found, one in zip(maps, wanted, strict=True):
        _compare(found[0], one)
    judge = jax.jit(stylegan2.discriminate, static_argnums=2)
    for batch in (2, 8):
        some = images[:batch]
        logits = judge(single, jnp.float32(some), OPTIONS)
        _compare(logits, slow.discriminate(theirs, some))


def test_features_are_read_at_another_size(params):
    images = np.random.default_rng(5).normal(size=(1, 32, 32, 3))
    maps = stylegan2.discriminator_features(
        _single(params["discriminator"]), jnp.float32(images), OPTIONS, 1
    )
    wanted = slow.features_one(params["discriminator"], images[0], 1)
    _compare(maps[0][0], wanted[0])


def test_fresh_networks_keep_the_size_of_numbers():
    options = stylegan2.GanOptions(32, (64, 48, 32, 16), style=64)
    both = stylegan2.init_generator(jax.random.key(0), options)
    z = jax.random.normal(jax.random.key(1), (64, 64))
    w = stylegan2.map_latent(both["mapping"], z, options)
    assert 0.5 < float(jnp.std(w)) < 2.0
    render = jax.jit(stylegan2.synthesise, static_argnums=3)
    noise = stylegan2.random_noise(jax.random.key(2), options, 4)
    assert 0.3 < float(jnp.std(render(both["synthesis"], w[:4], noise, options))) < 3
    count = sum(leaf.size for leaf in jax.tree.leaves(both))
    assert 150_000 < count < 250_000


def test_the_published_parameter_counts():
    """config-e at 64 px and config-f at 256 px (millions, G and D)."""

    def count(init, options):
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), options))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6

    for size, channels, generator, discriminator in (
        (64, (512, 512, 512, 512, 256), 23.8, 23.4),
        (256, (512, 512, 512, 512, 512, 256, 128), 30.0, 28.9),
    ):
        options = stylegan2.GanOptions(size, channels)
        assert abs(count(stylegan2.init_generator, options) - generator) < 0.06
        assert abs(count(stylegan2.init_discriminator, options) - discriminator) < 0.06


def test_truncation_pulls_to_the_mean():
    options = stylegan2.GanOptions(8, (2, 2), style=4, mapping_layers=1)
    mapping = stylegan2.init_generator(jax.random.key(0), options)["mapping"]
    mean = stylegan2.mean_latent(mapping, jax.random.key(1), options, 16)
    w = jnp.float32(np.random.default_rng(0).normal(size=(3, 4)))
    np.testing.assert_allclose(stylegan2.truncate(w, mean, 1.0), w, atol=1e-6)
    half = stylegan2.truncate(w, mean, 0.5)
    np.testing.assert_allclose(half, (w + mean) / 2, atol=1e-6)


def test_what_does_not_fit_is_refused(params):
    with pytest.raises(ValueError, match="image_size must be 8"):
        stylegan2.GanOptions(24, (2, 2))
    with pytest.raises(ValueError, match="channels must be 2 positive"):
        stylegan2.GanOptions(8, (2,))
    single = _single(params)
    with pytest.raises(ValueError, match="W\\+ must have 6 vectors"):
        stylegan2.synthesise(single["synthesis"], jnp.zeros((1, 5, 6)), None, OPTIONS)
    with pytest.raises(ValueError, match="noise must be 5 maps"):
        stylegan2.synthesise(single["synthesis"], jnp.zeros((1, 6)), [], OPTIONS)
    judge = single["discriminator"]
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        stylegan2.discriminate(judge, jnp.zeros((6, 16, 16, 3)), OPTIONS)
    with pytest.raises(ValueError, match="must be 16 px"):
        stylegan2.discriminate(judge, jnp.zeros((2, 8, 8, 3)), OPTIONS)
