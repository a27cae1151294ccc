"""Layers: all faces of a pixel, sorted; and their blend, word for word."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rasterizer
from rasterizer import reference
from tests.rasterizer import scenes

SIZE = (9, 10)
SOFT = {"sigma": 0.3, "gamma": 0.2}


@pytest.fixture(autouse=True)
def optimised():
    """Not here, but where bits are compared."""


@partial(jax.jit, static_argnames=("layers", "sigma", "cull", "parallel"))
def peel(vertices, faces, layers=5, **options):
    return rasterizer.rasterize_layers(vertices, faces, SIZE, layers, **options)


@jax.jit
def nearest(vertices, faces):
    return rasterizer.rasterize(vertices, faces, SIZE, backend="xla")


@st.composite
def nasty_scenes(draw):
    """Ten triangles and copies of some of them, so that depths tie; bad vertices."""
    seed = draw(st.integers(0, 10**6))
    vertices, faces = scenes.soup(seed, count=10, size=SIZE)
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        vertices[:, 2] = rng.choice([1.0, 2.0], len(vertices)).astype(np.float32)
    if draw(st.booleans()):  # vertices on pixel centres
        vertices[:, :2] = np.round(vertices[:, :2])
    bad = draw(st.sampled_from([None, np.nan, np.inf, -1.0, 1e30]))
    if bad is not None:
        vertices[rng.integers(0, 30), rng.integers(0, 3)] = bad
    if draw(st.booleans()):  # needs wide arithmetic
        vertices[3, :2] = [-4e4, 3.0]
    order = rng.integers(0, 10, 16)
    return vertices, faces[order][:, rng.permutation(3)]


@pytest.mark.once
@pytest.mark.usefixtures("as_compiled")
@given(nasty_scenes())
@settings(max_examples=25, deadline=None)
def test_layers_match_the_reference(scene):
    expected = reference.rasterize_layers(*scene, SIZE, 5)
    got, first = peel(*scene), nearest(*scene)
    np.testing.assert_array_equal(got.face_index, expected.face_index)
    drawn = expected.face_index >= 0
    np.testing.assert_allclose(
        got.barycentrics[drawn], expected.barycentrics[drawn], atol=2e-3
    )
    np.testing.assert_allclose(got.depth[drawn], expected.depth[drawn], rtol=1e-3)
    for layer, one in zip(got, first, strict=True):
        np.testing.assert_array_equal(layer[0], one)


def test_a_pixel_shows_each_of_its_faces_once():
    vertices, faces = scenes.soup(3, count=30, size=SIZE)
    index = np.asarray(peel(vertices, faces, layers=32).face_index)
    assert (index[0] >= 0).any() and (index[-1] < 0).all()
    for pixel in index.reshape(32, -1).T:
        shown = pixel[pixel >= 0]
        assert len(np.unique(shown)) == len(shown) and (pixel[len(shown) :] < 0).all()


@pytest.mark.once
def test_layers_keep_the_rules_and_the_batch():
    two = np.stack([scenes.soup(s, count=12, size=SIZE)[0] for s in (1, 2)])
    faces = scenes.soup(1, count=12, size=SIZE)[1]
    got = peel(two, faces, cull="back")
    assert got.depth.shape == (2, 5, *SIZE)
    mapped = jax.jit(jax.vmap(partial(peel, cull="back"), (0, None)))(two, faces)
    for k, vertices in enumerate(two):
        expected = reference.rasterize_layers(vertices, faces, SIZE, 5, cull="back")
        np.testing.assert_array_equal(got.face_index[k], expected.face_index)
        np.testing.assert_array_equal(mapped.face_index[k], expected.face_index)
    # Parallel rays: layers in the order of a depth that is linear on the screen.
    seen = peel(two[0], faces, parallel=True)
    depth = np.asarray(seen.depth)
    assert (depth[1:] >= depth[:-1] * 0.99999).all()
    one = rasterizer.rasterize(two[0], faces, SIZE, parallel=True)
    np.testing.assert_array_equal(seen.face_index[0], one.face_index)
    empty = rasterizer.rasterize_layers(two[0], faces[:0], SIZE, 2)
    assert (empty.face_index == -1).all() and empty.depth.shape == (2, *SIZE)


# --- the blend --------------------------------------------------------------------


@partial(jax.jit, static_argnames=("layers", "sigma", "gamma"))
def blend(vertices, faces, colours, background, *, layers, sigma, gamma):
    """One colour a vertex, (V, C), interpolated and blended."""
    found = rasterizer.rasterize_layers(vertices, faces, SIZE, layers, sigma=sigma)
    values = rasterizer.interpolate(colours, faces, found)
    return rasterizer.blend_layers(
        *(values, found, vertices, faces),
        sigma=sigma,
        gamma=gamma,
        background=background,
    )


def slow_blend(vertices, faces, colours, background, *, sigma, gamma):
    """The formulas, a pixel and a face at a time, of all faces; float64."""
    out = np.zeros((*SIZE, colours.shape[-1]))
    for i, j in np.ndindex(*SIZE):
        covers, depths, values = [], [], []
        at = np.array([float(j)]), np.array([float(i)])
        for face in faces:
            corners = vertices[face]
            d = reference._signed_distance(corners, *at)[0]
            if d > -10 * sigma:
                share = reference._screen(corners, *at, 1 / 256)[:, 0] / corners[:, 2]
                covers.append(1 / (1 + np.exp(-d / sigma)))
                depths.append(1 / share.sum())
                values.append(share @ colours[face] / share.sum())
        covers, depths = np.array(covers), np.array(depths)
        amount = 1 - np.prod(1 - covers)
        out[i, j] = (1 - amount) * background
        if len(covers):
            weight = covers * np.exp(-(depths - depths.min()) / gamma)
            out[i, j] += amount * (weight @ np.array(values)) / weight.sum()
    return out


def small_scene(seed):
    vertices, faces = scenes.soup(seed, count=6, size=SIZE)
    colours = np.random.default_rng(seed).normal(size=(len(vertices), 2))
    return vertices.astype(np.float64), faces, colours, np.array([0.3, -1.0])


def test_the_blend_matches_the_formulas_and_finite_differences():
    vertices, faces, colours, background = small_scene(4)
    weight = np.random.default_rng(0).normal(size=(*SIZE, 2))
    run = partial(blend, layers=6, **SOFT)

    def slow(v, c, b):
        return np.sum(weight * slow_blend(v, faces, c, b, **SOFT))

    with jax.enable_x64(True):
        image = run(vertices, faces, colours, background)
        gradients = jax.jit(
            jax.grad(
                lambda v, c, b: jnp.sum(weight * run(v, faces, c, b)), argnums=(0, 1, 2)
            )
        )(vertices, colours, background)
    expected = slow_blend(vertices, faces, colours, background, **SOFT)
    np.testing.assert_allclose(image, expected, atol=1e-9)
    values = [vertices, colours, background]
    rng = np.random.default_rng(1)
    for k, gradient in enumerate(gradients):
        # Along three directions: the slow one is slow.
        for _ in range(3):
            way = rng.normal(size=values[k].shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = list(values)
                moved[k] = values[k] + step * way
                ends.append(slow(*moved))
            slope = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-4)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_a_blend_of_depths_is_soft_depth(seed):
    vertices, faces = scenes.soup(seed, count=6, size=SIZE)
    seen = np.stack([vertices[:, 2], np.ones(len(vertices), np.float32)], -1)
    image = blend(vertices, faces, seen, np.array([4.0, 0.0]), layers=6, **SOFT)
    depth, cover = reference.render_soft(vertices, faces, SIZE, background=4.0, **SOFT)
    np.testing.assert_allclose(image[..., 0], depth, atol=5e-3)
    np.testing.assert_allclose(image[..., 1], cover, atol=1e-4)


@pytest.mark.once
def test_a_blend_of_one_hard_layer_tends_to_it():
    vertices, faces = scenes.soup(2, count=8, size=SIZE)
    colours = np.random.default_rng(0).random((len(vertices), 3), np.float32)
    options = {"layers": 3, "sigma": 1e-4, "gamma": 1e-4}
    soft = blend(vertices, faces, colours, np.zeros(3, np.float32), **options)
    hard = rasterizer.rasterize(vertices, faces, SIZE)
    values = rasterizer.interpolate(colours, faces, hard)
    np.testing.assert_allclose(soft, values, atol=1e-3)


def test_bad_vertices_and_colours_leave_finite_gradients():
    vertices, faces, colours, background = small_scene(4)
    vertices[[0, 5]] = [[np.nan, 0, 1], [1, 1, np.inf]]
    vertices[6:9] = [[1.0, 1, 1], [2, 2, 1], [3, 3, 1]]  # no area
    colours[[1, 7]] = np.nan  # of faces that are not drawn

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradient(v, c):
        image = blend(v, faces, c, background, layers=6, **SOFT)
        return jnp.sum(image**2)

    arrays = (v.astype(np.float32) for v in (vertices, colours))
    by_vertex, by_colour = gradient(*arrays)
    assert np.isfinite(by_vertex).all() and np.isfinite(by_colour).all()
    np.testing.assert_array_equal(by_vertex[:9], 0.0)
    assert np.abs(by_vertex).max() > 0


def test_bad_arguments_are_named():
    vertices, faces = scenes.soup(0, count=2, size=SIZE)
    for layers in (0, 1.5):
        with pytest.raises(ValueError, match="layers"):
            rasterizer.rasterize_layers(vertices, faces, SIZE, layers)  # pyright: ignore
    with pytest.raises(TypeError, match=r"rasterize_layers\(\) .*'supersample'"):
        rasterizer.rasterize_layers(vertices, faces, SIZE, 1, supersample=2)  # pyright: ignore
    fragments = rasterizer.rasterize_layers(vertices, faces, SIZE, 2)
    colours = np.zeros((2, *SIZE, 3), np.float32)
    mix = partial(
        rasterizer.blend_layers, fragments=fragments, vertices=vertices, faces=faces
    )
    for given_colours, options, message in (
        (colours[0], SOFT, "colours"),
        (colours, {"sigma": 0.0, "gamma": 1.0}, "positive"),
        (colours, {"sigma": -1.0, "gamma": 1.0}, "sigma"),
        (colours, {**SOFT, "background": np.zeros(2)}, "background"),
    ):
        with pytest.raises(ValueError, match=message):
            mix(given_colours, **options)
