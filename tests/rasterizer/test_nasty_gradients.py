"""Gradients of meshes with nasty faces: those of the reference, in float64.

Degenerate, coincident, huge, off screen, behind the camera, NaN: what is drawn beside
such faces has the gradient that it has without them, and they have their own or none.
The visible face is held fixed: where it changes, hard gradients are zero by definition.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st

import rasterizer
from rasterizer import backends, reference

SIZE = (9, 10)
NEAR = 0.05  # so that no step of a finite difference brings a vertex before the camera
INSTALLED = ["xla", "numba"] if backends.numba_installed() else ["xla"]
USUAL = INSTALLED[-1]
WEIGHT = np.random.default_rng(0).normal(size=(*SIZE, 3))
ATTRIBUTES = np.random.default_rng(1).normal(size=(9, 3))
SOFT = {"sigma": 0.3, "gamma": 0.2}


@pytest.fixture(autouse=True)
def optimised():
    """Not here: float64 is compared with float64, to a millionth."""


def numeric_gradient(function, vertices, step=1e-6):
    """Central differences, 0 where a step changes nothing, as of NaN."""
    out = np.zeros(vertices.shape)
    for i in np.ndindex(*vertices.shape):
        there, back = vertices.copy(), vertices.copy()
        there[i] += step
        back[i] -= step
        out[i] = (function(there) - function(back)) / (2 * step)
    return out


@partial(jax.jit, static_argnames="backend")
def hard_gradients(vertices, faces, weight, backend):
    """By `render_depth`; by the depth of fragments; and by their barycentrics."""
    options = {"near": NEAR, "backend": backend}

    def image(v):
        found = rasterizer.render_depth(v, faces, SIZE, background=0.0, **options)
        return jnp.sum(weight[..., 0] * found.depth)

    def fragments(v):
        found = rasterizer.rasterize(v, faces, SIZE, **options)
        drawn = found.face_index >= 0
        depth = jnp.sum(weight[..., 0] * jnp.where(drawn, found.depth, 0.0))
        values = rasterizer.interpolate(ATTRIBUTES, faces, found)
        return depth, jnp.sum(weight * values)

    totals, pull = jax.vjp(fragments, vertices)
    one, none = jnp.ones_like(totals[0]), jnp.zeros_like(totals[0])
    return (
        jax.grad(image)(vertices),
        *pull((one, none)),
        *pull((none, one)),
    )


@partial(jax.jit, static_argnames="backend")
@jax.grad
def grid_gradient(vertices, weight, backend):
    options = {"near": NEAR, "backend": backend, "background": 0.0}
    image = rasterizer.render_grid_depth(vertices, SIZE, **options)
    return jnp.sum(weight[..., 0] * image.depth)


@partial(jax.jit, static_argnames="backend")
def soft_gradients(vertices, faces, backend):
    options = {"near": NEAR, "backend": backend}

    def depth(v):
        image = rasterizer.render_depth(
            v, faces, SIZE, background=3.0, **SOFT, **options
        )
        return jnp.sum(WEIGHT[..., 0] * image.depth)

    def cover(v):
        image = rasterizer.render_silhouette(v, faces, SIZE, sigma=0.3, **options)
        return jnp.sum(WEIGHT[..., 0] * image)

    return jax.grad(depth)(vertices), jax.grad(cover)(vertices)


def slow_hard(vertices, faces):
    """Weights of the samples that lie well within their faces (at an edge snapping has
    its say), and the reference's gradients of depth and of interpolated values."""
    found = reference.rasterize(vertices, faces, SIZE, near=NEAR)
    index = found.face_index
    inner = (found.barycentrics.min(-1) > 1e-3)[..., None]
    weight = np.where(inner, WEIGHT, 0.0)
    drawn = index >= 0

    def at(v):
        return reference.at_faces(v, faces, index, SIZE)

    def depth(v):
        return np.sum(weight[..., 0][drawn] * at(v).depth[drawn])

    def values(v):
        corners = ATTRIBUTES[faces[np.where(drawn, index, 0)]]
        return np.sum(weight * np.sum(at(v).barycentrics[..., None] * corners, -2))

    return weight, numeric_gradient(depth, vertices), numeric_gradient(values, vertices)


def assert_close(got, expected):
    # An inverse depth of a huge face differs from its neighbours' in its last digits.
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-7 * scale)


def check_hard(vertices, faces, backend):
    weight, by_depth, by_values = slow_hard(vertices, faces)
    with jax.enable_x64(True):
        image, depth, values = hard_gradients(vertices, faces, weight, backend)
    assert_close(image, by_depth)
    assert_close(depth, by_depth)
    assert_close(values, by_values)
    return by_depth


def check_soft(vertices, faces, backend):
    def loss(v, which):
        images = reference.render_soft(
            v, faces, SIZE, background=3.0, near=NEAR, **SOFT
        )
        return np.sum(WEIGHT[..., 0] * images[which])

    expected = [numeric_gradient(partial(loss, which=k), vertices) for k in range(2)]
    for k in range(2):
        # Not where a face comes within the reach of a sample, or another edge nearest.
        finer = numeric_gradient(partial(loss, which=k), vertices, 1e-7)
        smooth = np.allclose(finer, expected[k], rtol=1e-4, atol=1e-5)
        if currently_in_test_context():
            assume(smooth)
        assert smooth
    with jax.enable_x64(True):
        found = soft_gradients(vertices, faces, backend)
    for got, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)
    return expected[0]


# A sound face before everything, then a nasty one; all in general position.
SOUND = [[1.13, 0.71, 1.0], [8.42, 1.34, 1.3], [2.17, 7.63, 0.9]]
NASTY = {
    "degenerate": [[3.1, 2.2, 0.4], [3.1, 2.2, 0.4], [6.3, 4.1, 0.4]],
    "a point": [[3.1, 2.2, 0.4]] * 3,
    "off screen": [[-40.3, -7.1, 0.4], [-30.2, 5.3, 0.4], [-33.7, 9.4, 0.4]],
    "behind the camera": [[0.1, 0.3, -0.4], [9.2, 0.2, 0.4], [0.4, 8.8, 0.4]],
    "all behind": [[0.1, 0.3, -0.4], [9.2, 0.2, -0.4], [0.4, 8.8, -0.4]],
    "coincident": SOUND,
    "its back": SOUND[::-1],
    "NaN": [[np.nan, 0.3, 0.4], [9.2, 0.2, np.nan], [0.4, np.nan, 0.4]],
    "infinite": [[np.inf, 0.3, 0.4], [9.2, -np.inf, 0.4], [0.4, 8.8, np.inf]],
    "huge": [[-4213.3, -731.7, 2.1], [5127.9, -912.3, 1.7], [331.2, 6127.4, 2.6]],
    "huge, in front": [[-4213.3, -731.7, 0.7], [5127.9, -912.3, 0.5], [331, 6127, 0.6]],
    "beyond any image": [[-1e9, 0.3, 0.4], [9.2, 1e30, 0.4], [0.4, 8.8, 0.4]],
    "far away": [[0.1, 0.3, 1e16], [9.2, 0.2, 1e9], [0.4, 8.8, 1e3]],
    "thin": [[2.1, 2.2, 0.4], [6.3, 4.1, 0.4], [4.2, 3.15 + 1e-9, 0.4]],
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("name", NASTY)
def test_beside_a_nasty_face_gradients_are_those_of_the_reference(name, backend):
    vertices = np.array([*SOUND, *NASTY[name], *SOUND])[:9]
    vertices[6:] += [0.37, 0.21, 0.15]
    faces = np.arange(9, dtype=np.int32).reshape(3, 3)
    assert np.abs(check_hard(vertices, faces, backend)).max() > 0.1
    assert np.abs(check_soft(vertices, faces, backend)).max() > 0.1


@pytest.mark.parametrize(
    "backend",
    [pytest.param(b, marks=[pytest.mark.once] * (b != USUAL)) for b in INSTALLED],
)
def test_a_face_that_snapping_alone_makes_visible_moves_in_depth_only(backend):
    # 2e-7 px high; its corners snap to either side of a half.
    low = 3.0 - 0.5 / 256
    vertices = np.full((9, 3), np.nan)
    vertices[:3] = [
        [-1.2, low - 1e-7, 1.0], [7.3, low - 1e-7, 2.0], [3.0, low + 1e-7, 3.0],
    ]  # fmt: skip
    faces = np.arange(9, dtype=np.int32).reshape(3, 3)
    assert reference.rasterize(vertices, faces, SIZE).face_index[3, 3] == 0
    expected = check_hard(vertices, faces, backend)
    np.testing.assert_array_equal(expected[:3, :2], 0.0)
    assert np.abs(expected[:3, 2]).min() > 0.01


def place(step, start, most):
    """Coordinates in general position, but often the same ones; and nasty ones."""
    sound = st.integers(-6, most).map(lambda k: start + step * k)
    return st.one_of(
        sound,
        sound,
        st.sampled_from([np.nan, np.inf, 1e9, 301.7, -5213.3, start, start]),
    )


points = st.lists(
    st.tuples(
        place(0.37, 0.0137, 30),
        place(0.41, 0.0213, 26),
        st.one_of(
            st.integers(3, 40).map(lambda k: 0.093 * k),
            st.sampled_from([1.0, 1.0, 0.0, -1.0, np.nan, 1e-38, 1e16]),
        ),
    ),
    min_size=9,
    max_size=9,
)
triples = st.lists(
    st.lists(st.integers(0, 8), min_size=3, max_size=3), min_size=5, max_size=5
)
QUICKLY = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.mark.once
@QUICKLY
@given(st.sampled_from(INSTALLED), points, triples)
def test_gradients_of_nasty_meshes_are_those_of_the_reference(backend, points, faces):
    check_hard(np.array(points), np.array(faces, np.int32), backend)


@pytest.mark.once
@QUICKLY
@given(st.sampled_from(INSTALLED), points)
def test_gradients_of_nasty_grids_are_those_of_the_reference(backend, points):
    vertices = np.array(points)
    weight, expected, _ = slow_hard(vertices, rasterizer.grid_faces(3, 3))
    with jax.enable_x64(True):
        got = grid_gradient(vertices.reshape(3, 3, 3), weight, backend)
    assert_close(np.reshape(got, (9, 3)), expected)


@pytest.mark.once
@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from(INSTALLED), points, triples)
def test_soft_gradients_of_nasty_meshes_are_those_of_the_formulas(
    backend, points, faces
):
    check_soft(np.array(points), np.array(faces[:3], np.int32), backend)
