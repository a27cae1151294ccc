"""Losses by their definitions, and by finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import stylegan2 as nets
from unsup3d_jax.stylegan2 import losses

OPTIONS = nets.GanOptions(image_size=8, channels=(3, 2), style=3, mapping_layers=1)


def test_the_players_losses_are_cross_entropies():
    real, fake = np.array([-3.0, 0.0, 4.0]), np.array([2.0, -1.0, 0.5])
    sigmoid = lambda x: 1.0 / (1.0 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(
        losses.discriminator_loss(jnp.float32(real), jnp.float32(fake)),
        -np.log(sigmoid(real)) - np.log(1.0 - sigmoid(fake)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        losses.generator_loss(jnp.float32(fake)), -np.log(sigmoid(fake)), rtol=1e-5
    )


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def _random(tree, seed):
    """The same tree in float64, every leaf of some size."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), tree)


def test_r1_is_the_gradient_at_each_image(double):
    shapes = jax.eval_shape(lambda: nets.init_discriminator(jax.random.key(0), OPTIONS))
    params, rng = _random(shapes, 0), np.random.default_rng(1)
    images = rng.normal(size=(2, 8, 8, 3))
    # All pixels of both images, each moved a little either way, in one program.
    steps = 1e-5 * np.eye(images.size).reshape(-1, *images.shape)

    @jax.jit
    def run(images, steps):
        def logits_of(x):
            return nets.discriminate(params, x, OPTIONS)

        def slope(step):
            return jnp.sum(logits_of(images + step) - logits_of(images - step)) / 2e-5

        return losses.gradient_penalty(logits_of, images), jax.lax.map(slope, steps)

    found, slopes = run(jnp.asarray(images), jnp.asarray(steps))
    expected = np.square(slopes).reshape(2, -1).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_path_lengths_are_those_of_the_jacobian_and_so_is_their_gradient(double):
    shapes = jax.eval_shape(lambda: nets.init_generator(jax.random.key(0), OPTIONS))
    params, rng = _random(shapes, 2)["synthesis"], np.random.default_rng(3)
    w = rng.normal(size=(2, OPTIONS.latents, 3))
    noise = rng.normal(size=(2, 8, 8, 3))
    direction = rng.normal(size=w.shape)

    def lengths(w):
        def image_of(w):
            return nets.synthesise(params, w, None, OPTIONS)

        return losses.path_lengths(image_of, w, jnp.asarray(noise))

    def penalty(w):
        return jnp.sum(losses.path_penalty(lengths(w), jnp.float64(0.3)))

    steps = 1e-5 * np.eye(w[0].size).reshape(-1, *w[0].shape)

    @jax.jit
    def run(w):
        def drawn(w):
            images = nets.synthesise(params, w, None, OPTIONS)
            return jnp.sum(images * noise, axis=(1, 2, 3)) / 8.0

        slopes = jax.lax.map(lambda s: (drawn(w + s) - drawn(w - s)) / 2e-5, steps)
        along = (penalty(w + 1e-5 * direction) - penalty(w - 1e-5 * direction)) / 2e-5
        return lengths(w), slopes, jnp.sum(jax.grad(penalty)(w) * direction), along

    found, slopes, gradient, along = run(jnp.asarray(w))
    by_layer = np.square(slopes).T.reshape(2, OPTIONS.latents, 3).sum(2)
    np.testing.assert_allclose(found, np.sqrt(by_layer.mean(1)), rtol=1e-6)
    np.testing.assert_allclose(gradient, along, rtol=1e-5)
