"""Forward mode: the derivatives of reverse mode; test_examples.py has a use of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer import sums
from tests.rasterizer import scenes

SIZE = (8, 9)


@pytest.fixture(autouse=True)
def optimised():
    """Not here: two derivatives are compared that nobody computes alike."""


def look_at_fragments(vertices, attributes, texture, faces):
    """A number that depth and attributes have a hand in; the texture barely."""
    found = rasterizer.rasterize(vertices, faces, SIZE, backend="xla")
    values = rasterizer.interpolate(attributes, faces, found)
    depth = jnp.where(found.face_index >= 0, found.depth, 0.0)
    return jnp.sum(jnp.sin(values)) + jnp.sum(depth**2) + jnp.sum(texture)


def look_through_everything(vertices, attributes, texture, faces):
    """A number that all that works on fragments has a hand in."""
    found = rasterizer.rasterize(vertices, faces, SIZE, backend="xla")
    values = rasterizer.interpolate(attributes, faces, found)
    slopes = rasterizer.slopes_at(attributes, vertices, faces, found)
    colour = rasterizer.sample_texture(texture, values, slopes=slopes)
    image = rasterizer.antialias(colour, found, vertices, faces)
    normals = rasterizer.vertex_normals(vertices, faces)
    shine = rasterizer.interpolate(normals, faces, found)
    layers = rasterizer.rasterize_layers(vertices, faces, SIZE, 3, sigma=0.2)
    several = rasterizer.interpolate(attributes, faces, layers)
    soft = rasterizer.blend_layers(
        several, layers, vertices, faces, sigma=0.2, gamma=0.1
    )
    return jnp.sum(jnp.sin(image)) + jnp.sum(shine**3) + jnp.sum(soft**2)


@pytest.mark.parametrize(
    "look",
    [
        look_at_fragments,
        pytest.param(look_through_everything, marks=[pytest.mark.once]),
    ],
)
def test_forward_mode_is_the_transpose_of_reverse_mode(look):
    vertices, faces = scenes.soup(6, count=9, size=SIZE)
    faces = np.concatenate([faces, faces[:4, ::-1]])
    rng = np.random.default_rng(0)
    attributes, texture = rng.random((len(vertices), 2)), rng.normal(size=(4, 5, 2))
    arrays = vertices.astype(np.float64), attributes, texture
    ways = [rng.normal(size=v.shape) for v in arrays]

    with jax.enable_x64(True):

        @jax.jit
        def both(arrays, ways):
            def total(*arrays):
                return look(*arrays, faces)

            _, forward = jax.jvp(total, arrays, tuple(ways))
            gradients = jax.grad(total, argnums=(0, 1, 2))(*arrays)
            return forward, [
                jnp.sum(g * w) for g, w in zip(gradients, ways, strict=True)
            ]

        forward, parts = jax.tree.map(float, both(arrays, ways))
    np.testing.assert_allclose(forward, sum(parts), rtol=1e-9)
    assert all(abs(part) > 1e-3 for part in parts[:2])


def test_rows_are_gathered_and_summed_in_either_mode_and_any_batch():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(3, 2, 5, 2)).astype(np.float32)
    ids = rng.integers(0, 5, (3, 2, 7)).astype(np.int32)

    def there_and_back(table, ids):
        return sums.sum_rows(jnp.sin(sums.gather_rows(table, ids)), ids, 5)

    def plain(table, ids):
        rows = jnp.sin(jnp.take_along_axis(table, ids[..., None], axis=1))
        hot = jax.nn.one_hot(ids, 5)
        return jnp.einsum("bmc,bmn->bnc", rows, hot)

    for derive in (jax.jacfwd, jax.jacrev):
        got, expected = (
            jax.jit(jax.vmap(derive(f)))(table, ids) for f in (there_and_back, plain)
        )
        np.testing.assert_allclose(got, expected, atol=1e-5)
    shared = jax.jit(
        jax.vmap(jax.grad(lambda t, i: there_and_back(t, i).sum()), (None, 0))
    )
    each = jax.grad(lambda t, i: plain(t, i).sum())(table[0], ids[1])
    np.testing.assert_allclose(shared(table[0], ids)[1], each, atol=1e-5)
    # Twice: through the transpose, and through its transpose.
    total = [lambda t, f=f: jnp.sum(f(t, ids[0]) ** 2) for f in (there_and_back, plain)]
    got, expected = (jax.jit(jax.hessian(f))(table[0]) for f in total)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    none = jax.grad(lambda t: sums.gather_rows(t, ids[:0, 0]).sum())(table[:0, 0])
    assert none.shape == (0, 5, 2)
