import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import layers


def _plain(x, scale, bias, groups):
    """The definition, with a group axis."""
    b, h, w, c = x.shape
    split = x.reshape(b, h, w, groups, c // groups)
    mean = split.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(split - mean).mean((1, 2, 4), keepdims=True)
    normal = ((split - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape)
    return normal * scale + bias


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_group_norm_and_its_gradient_follow_the_definition(groups):
    keys = jax.random.split(jax.random.key(groups), 4)
    x = 5.0 + jax.random.normal(keys[0], (2, 6, 5, 16))  # a mean far from 0
    scale, bias = 1.0 + 0.3 * jax.random.normal(keys[1], (2, 16))
    weight = jax.random.normal(keys[2], x.shape)

    def results(norm):
        def total(*args):
            y = norm(*args, groups)
            return jnp.sum(weight * y), y

        grad = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
        return jax.jit(grad)(x, scale, bias)

    found, expected = results(layers.group_normalise), results(_plain)
    for ours, plain in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=2e-5)
