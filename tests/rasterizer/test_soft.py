"""Soft depth and soft silhouettes, against their formulas and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rasterizer
from rasterizer import backends, reference
from tests.rasterizer import scenes
from tests.rasterizer.test_gradients import numeric_gradient

SIZE = (7, 8)
BACKENDS = pytest.mark.usefixtures("backend")
INSTALLED = ["xla", "numba"] if backends.numba_installed() else ["xla"]
USUAL = INSTALLED[-1]


@pytest.fixture(autouse=True)
def optimised():
    """Not here, but where bits are compared: these tests compile for minutes."""


def soft_scene():
    vertices = np.array(
        [
            [1.2, 0.7, 1.0], [6.4, 1.3, 1.3], [2.1, 5.6, 0.9],
            [0.3, 3.1, 1.2], [7.1, 2.2, 1.1], [5.2, 6.3, 1.4],
        ]
    )  # fmt: skip
    return vertices, np.array([[0, 1, 2], [3, 5, 4]], np.int32)


@pytest.mark.slow_by_list
@pytest.mark.once  # float64: loops of their own to compile
@BACKENDS
@pytest.mark.parametrize(
    "sigma", [0.3, pytest.param(1.0, marks=pytest.mark.slow_by_list)]
)
def test_soft_depth_matches_finite_differences(sigma):
    vertices, faces = soft_scene()
    weight = np.random.default_rng(0).normal(size=SIZE)

    @partial(jax.value_and_grad, argnums=(0, 1))
    def total(v, background):
        image = rasterizer.render_depth(
            v, faces, SIZE, background=background, sigma=sigma, gamma=0.1
        )
        return jnp.sum(weight * image.depth)

    with jax.enable_x64(True):
        total = jax.jit(total)
        value, (gradient, by_background) = total(vertices, 2.0)
        numeric = numeric_gradient(lambda v: total(v, 2.0)[0], vertices)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=2e-4)
        assert np.abs(numeric).max() > 0.05
        np.testing.assert_allclose(
            by_background, total(vertices, 3.0)[0] - value, rtol=1e-6
        )


@pytest.mark.once
@pytest.mark.slow_by_list
@BACKENDS
def test_soft_silhouette_matches_finite_differences():
    vertices, faces = soft_scene()
    weight = np.random.default_rng(0).normal(size=SIZE)

    @jax.value_and_grad
    def total(v):
        cover = rasterizer.render_silhouette(v, faces, SIZE, sigma=0.3)
        return jnp.sum(weight * cover)

    with jax.enable_x64(True):
        total = jax.jit(total)
        gradient = total(vertices)[1]
        numeric = numeric_gradient(lambda v: total(v)[0], vertices)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=2e-4)
        assert np.abs(numeric[:, :2]).max() > 0.05
        np.testing.assert_array_equal(gradient[:, 2], 0.0)


@pytest.mark.once
@pytest.mark.slow_by_list
@BACKENDS
def test_soft_sees_across_silhouettes_where_hard_does_not():
    # A flat square: growing it changes no covered pixel's depth, only the outline.
    vertices = np.array([[2.1, 2.1, 1], [6.2, 2.1, 1], [2.1, 6.2, 1], [6.2, 6.2, 1]])
    vertices = vertices.astype(np.float32)
    faces = rasterizer.grid_faces(2, 2)

    @partial(jax.jit, static_argnames=("sigma", "gamma"))
    @jax.grad
    def pull(v, **softness):
        image = rasterizer.render_depth(v, faces, (9, 9), background=2.0, **softness)
        return jnp.sum(image.depth)

    np.testing.assert_array_equal(pull(vertices)[:, :2], 0.0)
    soft = pull(vertices, sigma=0.2, gamma=0.05)
    # Pulling any corner outwards covers more, so the sum of depths falls.
    outwards = np.sign(vertices[:, :2] - 4.15)
    assert (np.asarray(soft)[:, :2] * outwards < 0).all()


@pytest.mark.once
@pytest.mark.slow_by_list
@BACKENDS
def test_soft_tends_to_hard_in_value_and_gradient():
    vertices, faces = scenes.soup(4, count=8, size=(12, 12))
    weight = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)

    def render(v, sigma):
        image = rasterizer.render_depth(
            v, faces, (12, 12), background=4.0, sigma=sigma, gamma=sigma / 3
        )
        return jnp.sum(weight * image.depth), image

    draw = jax.jit(jax.value_and_grad(render, has_aux=True), static_argnums=1)
    (_, hard), hard_gradient = draw(vertices, 0.0)
    cover = rasterizer.render_silhouette(vertices, faces, (12, 12), sigma=0.0)
    np.testing.assert_array_equal(cover, hard.covered)
    errors = []
    for sigma in (0.1, 0.0003):
        (_, soft), gradient = draw(vertices, sigma)
        silhouette = rasterizer.render_silhouette(
            vertices, faces, (12, 12), sigma=sigma
        )
        np.testing.assert_array_equal(soft.covered, hard.covered)
        errors.append(
            (
                np.abs(soft.depth - hard.depth).mean(),
                np.abs(silhouette - cover).mean(),
                np.abs(gradient - hard_gradient).mean(),
            )
        )
    errors = np.array(errors)
    # Gradients have peaks, ever narrower and higher ones, at the edges.
    assert (errors[1:, :2] < 0.5 * errors[:-1, :2]).all()
    assert (errors[-1] < 1e-3).all()
    assert np.abs(hard_gradient).mean() > 0.05


@pytest.mark.once
@pytest.mark.slow_by_list
@BACKENDS
def test_soft_handles_bad_faces_empty_meshes_and_vmap():
    vertices, faces = scenes.soup(2, count=4, size=(8, 8))
    vertices = np.concatenate([vertices, np.ones((3, 3), np.float32)])
    bad = vertices.copy()
    bad[12:] = [[np.nan, 1, 1], [1, np.inf, 1], [3, 3, -1]]
    worse = np.concatenate([faces, [[0, 1, 12], [13, 2, 3], [4, 14, 5], [0, 0, 1]]])
    worse = worse.astype(np.int32)
    faces = np.concatenate([faces, np.zeros((4, 3), np.int32)])

    def render(v, f):
        return rasterizer.render_depth(
            v, f, (8, 8), background=2.0, sigma=0.2, gamma=0.1
        ).depth

    @jax.jit
    def loss(v, f):
        return jnp.sum(render(v, f) ** 2)

    np.testing.assert_allclose(render(bad, worse), render(vertices, faces), rtol=1e-6)
    gradient = jax.jit(jax.grad(loss))
    value = gradient(bad, worse)
    np.testing.assert_array_equal(value[12:], 0.0)
    np.testing.assert_allclose(value, gradient(vertices, faces), rtol=1e-5, atol=1e-6)
    two = jnp.stack([vertices, vertices + 0.5])
    mapped = jax.vmap(jax.grad(partial(loss, f=faces)))(two)
    np.testing.assert_allclose(mapped[0], value, rtol=1e-4, atol=1e-5)
    none = np.zeros((0, 3), np.int32)
    assert (render(vertices, none) == 2.0).all()
    np.testing.assert_array_equal(jax.grad(loss)(vertices, none), 0.0)


def test_softness_errors():
    vertices, faces = soft_scene()
    for options in ({"sigma": 1.0}, {"gamma": 1.0}, {"sigma": -1.0, "gamma": 0.1}):
        with pytest.raises(ValueError, match="sigma"):
            rasterizer.render_depth(vertices, faces, SIZE, background=1.0, **options)
    # Numbers that float32 does not hold.
    for name, value in (("sigma", 1e-46), ("gamma", 1e40), ("gamma", float("nan"))):
        options = {"sigma": 0.1, "gamma": 0.1, name: value}
        with pytest.raises(ValueError, match=f"{name} must be 0, or from 1.2e-38"):
            rasterizer.render_depth(
                vertices.astype(np.float32), faces, SIZE, background=1.0, **options
            )


@partial(jax.jit, static_argnames=("size", "sigma", "gamma", "backend", "options"))
def draw(vertices, faces, weight, size, sigma, gamma, backend, options=()):
    """Soft depth, soft silhouette, and the gradients of their weighted sums with
    respect to vertices and background."""

    def total(v, background):
        both = {"sigma": sigma, "backend": backend, **dict(options)}
        image = rasterizer.render_depth(
            v, faces, size, background=background, gamma=gamma, **both
        )
        cover = rasterizer.render_silhouette(v, faces, size, **both)
        return jnp.sum(weight * (image.depth + cover)), (image.depth, cover)

    gradients, images = jax.grad(total, (0, 1), has_aux=True)(vertices, 3.0)
    return *images, *gradients


FORMULAS = [
    (0.2, 0.1, {"supersample": 3, "pixel_offset": (0.3, -0.2), "cull": "front"}),
    (0.03, 0.01, {"near": 0.9, "far": 3.0, "cull": "back"}),
    (3.0, 1.0, {}),
]
MOST = [(USUAL, 0), ("xla", 0), ("numba", 1), ("numba", 2)]


@pytest.mark.parametrize(
    ("backend", "case"),
    [pytest.param(*p, marks=[pytest.mark.once] * (p != MOST[0])) for p in MOST],
)
def test_soft_images_follow_the_formulas(backend, case):
    if backend == "numba":
        pytest.importorskip("numba")
    sigma, gamma, options = FORMULAS[case]
    size = (12, 9)
    vertices, faces = scenes.soup(5, count=14, size=size)
    vertices = vertices.astype(np.float64)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=size)

    def formulas(v):
        return reference.render_soft(
            v, faces, size, background=3.0, sigma=sigma, gamma=gamma, **options
        )

    depth, cover = formulas(vertices)
    assert 0.02 < np.mean(cover) < 0.999
    with jax.enable_x64(True):
        images = jax.device_get(
            draw(
                *(vertices, faces, weight, size),
                *(sigma, gamma, backend, tuple(options.items())),
            )
        )
    np.testing.assert_allclose(images[0], depth, rtol=1e-9)
    np.testing.assert_allclose(images[1], cover, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(images[3], np.sum(weight * (1 - cover)), rtol=1e-9)
    assert np.abs(images[2]).max() > 0.1
    for direction in rng.normal(size=(3, *vertices.shape)):
        step = 1e-7 * direction
        there, back = (np.add(*formulas(vertices + s)) for s in (step, -step))
        slope = np.sum(weight * (there - back)) / 2e-7
        np.testing.assert_allclose(np.sum(images[2] * direction), slope, rtol=1e-5)


# Sixteenths of a pixel, so that float32 knows inside from outside as float64 does.
coordinate = st.one_of(
    st.integers(-64, 224).map(lambda v: v / 16),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e9, 300.0, 5.0, 5.0]),
)
nasty_depth = st.one_of(
    st.floats(0.25, 4.0, width=32),
    st.sampled_from([1.0, 1.0, 0.0, -1.0, np.nan, 1e-38, 1e16]),
)


@pytest.mark.once
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(INSTALLED),
    st.lists(st.tuples(coordinate, coordinate, nasty_depth), min_size=7, max_size=7),
    st.lists(
        st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=5, max_size=5
    ),
)
def test_nasty_soft_meshes_follow_the_formulas(backend, points, faces):
    vertices, faces = np.array(points, np.float32), np.array(faces, np.int32)
    depth, cover, gradient, _ = draw(vertices, faces, 1.0, (10, 11), 0.3, 0.2, backend)
    expected = reference.render_soft(
        vertices, faces, (10, 11), background=3.0, sigma=0.3, gamma=0.2
    )
    np.testing.assert_allclose(depth, expected[0], atol=2e-3)
    np.testing.assert_allclose(cover, expected[1], atol=4e-4)
    assert np.isfinite(gradient).all()
    unused = np.setdiff1d(np.arange(7), faces)
    np.testing.assert_array_equal(np.asarray(gradient)[unused], 0.0)


@pytest.mark.slow_by_list
@pytest.mark.once
@BACKENDS
@pytest.mark.usefixtures("as_compiled")
def test_soft_gradients_are_equal_from_run_to_run():
    vertices = np.stack([scenes.soup(s, count=9, size=SIZE)[0] for s in range(3)])
    _, faces = scenes.soup(0, count=9, size=SIZE)

    @jax.jit
    @jax.grad
    def gradient(v):
        return rasterizer.render_depth(
            v, faces, SIZE, background=2.0, sigma=0.2, gamma=0.05
        ).depth.sum()

    first = np.asarray(gradient(vertices))
    assert np.abs(first).max() > 0
    for _ in range(3):
        np.testing.assert_array_equal(first, gradient(vertices))


@pytest.mark.slow_by_list
@BACKENDS
@pytest.mark.parametrize(
    ("away", "gamma"),
    [(1.0, 1e-9), pytest.param(1e15, 1e-3, marks=pytest.mark.once)],
)
def test_soft_gradients_of_small_gammas_are_those_of_float64(away, gamma):
    # Flat faces, far enough apart that rounding does not decide which is nearer.
    vertices, faces = soft_scene()
    vertices[:, 2] = away * np.repeat([1.0, 1.25], 3)
    weight = np.random.default_rng(0).normal(size=SIZE)

    @jax.jit
    @jax.grad
    def gradient(v):
        image = rasterizer.render_depth(
            v, faces, SIZE, background=2 * away, sigma=0.1, gamma=gamma
        )
        return jnp.sum(jnp.asarray(weight, v.dtype) * image.depth / away)

    single = np.asarray(gradient(vertices.astype(np.float32)))
    with jax.enable_x64(True):
        double = np.asarray(gradient(vertices))
    assert np.abs(double).max() > 0.1
    for axes in (slice(2), slice(2, 3)):
        scale = np.abs(double[:, axes]).max()
        np.testing.assert_allclose(single[:, axes], double[:, axes], atol=1e-5 * scale)


@pytest.mark.once_by_list
@BACKENDS
def test_soft_boxes_hold_what_snapping_moves():
    # A plane of four faces, whose seam snaps away from the samples beside it.
    seam = (219 + 0.48) / 256
    x = [-1, seam, seam, -1, 5, 5]
    y = [-1, -1, 4, 4, -1, 4]
    vertices = np.stack([x, y, np.ones(6)], axis=-1).astype(np.float32)
    faces = np.array([[0, 3, 1], [1, 3, 2], [1, 2, 4], [4, 2, 5]], np.int32)
    image = rasterizer.render_depth(
        *(vertices, faces, (3, 4)),
        background=100.0,
        sigma=1e-5,
        gamma=1e-2,
        supersample=7,
    )
    np.testing.assert_allclose(image.depth, 1.0, rtol=1e-6)


@pytest.mark.slow_by_list
@BACKENDS
def test_soft_maps_over_faces_too():
    vertices, faces = scenes.soup(2, count=6, size=SIZE)
    two = np.stack([faces, np.roll(faces, 1, axis=1)[:, ::-1]])

    def render(v, f):
        return rasterizer.render_depth(
            v, f, SIZE, background=2.0, sigma=0.2, gamma=0.1, cull="back"
        ).depth

    mapped = jax.vmap(render, (None, 0))(vertices, two)
    assert np.abs(mapped[0] - mapped[1]).max() > 0.1
    for image, f in zip(mapped, two, strict=True):
        np.testing.assert_allclose(image, render(vertices, f), rtol=1e-6)


@pytest.mark.once
@pytest.mark.usefixtures("as_compiled")
def test_an_image_is_the_same_alone_and_in_a_batch():
    # However its rows are shared out to threads.
    pytest.importorskip("numba")
    vertices = np.stack([scenes.soup(s, count=9, size=SIZE)[0] for s in range(5)])
    _, faces = scenes.soup(0, count=9, size=SIZE)
    for options in ({}, {"sigma": 0.2, "gamma": 0.05}):

        @jax.jit
        @jax.value_and_grad
        def pull(v, options=options):
            return rasterizer.render_depth(
                *(v, faces, SIZE),
                **options,
                background=2.0,
                supersample=2,
                backend="numba",
            ).depth.sum()

        _, together = pull(vertices)
        _, alone = pull(vertices[3:4])
        np.testing.assert_array_equal(together[3:4], alone)
