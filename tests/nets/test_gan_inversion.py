import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import stylegan2
from unsup3d_jax.nets import stylegan2_inversion as inversion
from unsup3d_jax.nets.stylegan2_inversion import InversionOptions, Model

pytestmark = pytest.mark.once

STYLE, SIZE = 6, 8
OPTIONS = InversionOptions(samples=64, chunk=16, steps=300, mean=0.0)


def _sample(params, key, count):
    return 0.5 + jax.random.normal(key, (count, STYLE)) @ params["spread"]


def _generate(params, w):
    flat = jnp.tanh(w @ params["linear"]) + 0.2 * jnp.sin(w @ params["wave"])
    return flat.reshape(len(w), SIZE, SIZE, 3)


def _describe(params, signed):
    return signed.reshape(len(signed), SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))


def _distance(params, a, b, mask):
    weight = mask.reshape(len(mask), SIZE // 2, 2, SIZE // 2, 2).mean((2, 4))
    return (jnp.abs(a - b).mean(-1) * weight).sum() / weight.sum()


TOY = Model(_sample, _generate, _describe, _distance)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (STYLE, SIZE * SIZE * 3)
    return {
        "spread": jnp.eye(STYLE) + 0.2 * jax.random.normal(keys[0], (STYLE, STYLE)),
        "linear": 0.4 * jax.random.normal(keys[1], shape),
        "wave": jax.random.normal(keys[2], shape),
    }


@pytest.fixture(scope="module")
def own(params):
    """Latents that are none of the samples, and their pictures."""
    w = _sample(params, jax.random.key(9), 3)
    return w, _generate(params, w)


def _invert(params, signed, mask=None, options=OPTIONS):
    mask = jnp.ones(signed.shape[:3]) if mask is None else mask
    return inversion.invert(jax.random.key(1), params, signed, TOY, options, mask=mask)


@pytest.fixture(scope="module")
def found(params, own):
    return _invert(params, own[1])


def test_it_recovers_the_latents_of_the_generators_own_pictures(own, found):
    np.testing.assert_allclose(found.w, own[0], atol=2e-3)
    assert np.all(np.asarray(found.error) < 1e-3)


def test_its_errors_are_those_of_start_result_and_mean(params, own, found):
    of_samples, _ = jax.random.split(jax.random.key(1))
    pictures = np.asarray(
        _generate(params, _sample(params, of_samples, 64)), np.float64
    )
    wanted = np.asarray(own[1], np.float64)
    rms = np.sqrt(np.square(wanted[:, None] - pictures[None]).mean((2, 3, 4)))
    np.testing.assert_allclose(found.nearest_error, rms.min(1), rtol=1e-4)
    mean = np.sqrt(np.square(wanted - pictures.mean(0)).mean((1, 2, 3)))
    np.testing.assert_allclose(found.mean_error, mean, rtol=1e-4)
    assert np.all(found.error < found.nearest_error)
    assert np.all(found.nearest_error < found.mean_error)


def test_pictures_of_a_batch_know_nothing_of_one_another(params, own, found):
    """A picture beside others: as beside copies of itself."""
    same = jnp.broadcast_to(own[1][2:], own[1].shape)
    np.testing.assert_allclose(_invert(params, same).w[2], found.w[2], atol=1e-5)


def test_what_the_mask_hides_does_not_count(params, own):
    w, signed = own
    mask = jnp.ones(signed.shape[:3]).at[:, :, SIZE // 2 :].set(0.0)
    spoilt = signed.at[:, :, SIZE // 2 :].set(-1.0)
    found = _invert(params, spoilt, mask)
    assert np.all(np.asarray(found.error) < 5e-3)
    np.testing.assert_allclose(found.w, w, atol=2e-2)


def test_the_pull_to_the_mean_pulls(params, own):
    options = dataclasses.replace(OPTIONS, mean=1e3)
    pulled = _invert(params, own[1], options=options)
    of_samples, _ = jax.random.split(jax.random.key(1))
    centre = _sample(params, of_samples, 64).mean(0)
    np.testing.assert_allclose(
        pulled.w, jnp.broadcast_to(centre, pulled.w.shape), atol=0.05
    )


def test_schedules_are_those_of_the_definition():
    """Karras et al., CVPR 2020: rise 5 %, fall 25 %; noise gone at 75 %."""
    rate = functools.partial(inversion.learning_rate, options=OPTIONS)
    shares = [0.0, 0.025, 0.05, 0.5, 0.75, 0.875, 1.0]
    rates = [float(rate(jnp.float32(t))) for t in shares]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.1, 0.1, 0.05, 0], atol=1e-7)
    spread = jnp.float32(4.0)
    scales = [
        float(inversion.noise_scale(jnp.float32(t), spread, OPTIONS))
        for t in (0.0, 0.375, 0.75, 0.9)
    ]
    np.testing.assert_allclose(scales, [0.2, 0.05, 0.0, 0.0], atol=1e-7)


def test_chunks_that_do_not_divide_the_samples_are_refused(params, own):
    options = dataclasses.replace(OPTIONS, chunk=24)
    with pytest.raises(ValueError, match="chunk must divide samples, got 24 and 64"):
        _invert(params, own[1], options=options)


@pytest.mark.once
def test_a_stylegan_is_searched_by_its_discriminators_features():
    options = stylegan2.GanOptions(
        image_size=8, channels=(4, 4), style=4, mapping_layers=1, noise=False
    )
    keys = jax.random.split(jax.random.key(5), 3)
    generator = stylegan2.init_generator(keys[0], options)
    gan = stylegan2.StyleGan(
        **generator,
        discriminator=stylegan2.init_discriminator(keys[1], options),
        noise=stylegan2.fixed_noise(keys[2], options),
        mean_w=jnp.zeros(4),
        options=options,
    )
    weights = inversion.Weights(gan)
    signed = inversion.DISCRIMINATOR.generate(weights, jnp.ones((2, 4)))
    search = InversionOptions(samples=16, chunk=16, steps=200, pixel=0.0, mean=0.0)
    found = inversion.invert(
        jax.random.key(0), weights, signed, inversion.DISCRIMINATOR, search
    )
    # By the features alone.
    assert np.all(found.error < 0.2 * np.asarray(found.nearest_error))
