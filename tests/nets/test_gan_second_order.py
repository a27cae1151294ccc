"""The penalties that differentiate twice, against finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import stylegan2

# Compiled programs of seconds each.
pytestmark = pytest.mark.once

OPTIONS = stylegan2.GanOptions(8, (3, 2), style=3, mapping_layers=1)


def _wide(tree, rng):
    return jax.tree.map(
        lambda a: jnp.asarray(np.float64(a) + 0.3 * rng.normal(size=a.shape)), tree
    )


def _along(function, at, way, step=1e-5):
    """Central difference of a function of a tree."""
    sides = [
        function(jax.tree.map(lambda a, b, s=s: a + s * step * b, at, way))
        for s in (1.0, -1.0)
    ]
    return (sides[0] - sides[1]) / (2.0 * step)


def _dot(one, other):
    return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other))))  # noqa: B905


def _check(first, penalty, params, subject, rng):
    """A function of (params, subject) and a penalty on its gradient by the subject.

    The gradient is compared with differences of the function, and the penalty's
    gradient by the parameters with differences of the penalty.
    """
    slope = jax.jit(jax.value_and_grad(first, argnums=1))
    way = jnp.asarray(rng.normal(size=subject.shape))
    numeric = _along(lambda s: slope(params, s)[0], subject, way)
    np.testing.assert_allclose(
        jnp.vdot(slope(params, subject)[1], way), numeric, rtol=1e-6
    )

    def whole(params):
        return penalty(params, jax.grad(first, argnums=1)(params, subject))

    second = jax.jit(jax.value_and_grad(whole))
    way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
    numeric = _along(lambda p: second(p)[0], params, way)
    value, gradient = second(params)
    assert value > 0.0
    np.testing.assert_allclose(_dot(gradient, way), numeric, rtol=1e-5)


def test_r1_has_the_gradient_of_its_finite_differences():
    """Mean squared length of the logits' gradient at real images."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = stylegan2.init_discriminator(jax.random.key(0), OPTIONS)
        images = jnp.asarray(rng.normal(size=(2, 8, 8, 3)))

        def logits(params, images):
            return stylegan2.discriminate(params, images, OPTIONS).sum()

        def penalty(params, slopes):
            return jnp.square(slopes).sum((1, 2, 3)).mean()

        _check(logits, penalty, _wide(params, rng), images, rng)


@pytest.mark.once
def test_path_length_has_the_gradient_of_its_finite_differences():
    """(|J^T y| - a)^2, the length over all layers' vectors."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        params = stylegan2.init_generator(jax.random.key(1), OPTIONS)["synthesis"]
        w = jnp.asarray(rng.normal(size=(2, OPTIONS.latents, 3)))
        y = jnp.asarray(rng.normal(size=(2, 8, 8, 3)) / 8.0)
        noise = [jnp.asarray(rng.normal(size=(r, r))) for r in OPTIONS.noise_sizes]

        def product(params, w):
            return (stylegan2.synthesise(params, w, noise, OPTIONS) * y).sum()

        def penalty(params, slopes):
            lengths = jnp.sqrt(jnp.square(slopes).sum(-1).mean(-1))
            return jnp.square(lengths - 0.3).mean()

        _check(product, penalty, _wide(params, rng), w, rng)
