"""Hand-written gradients against float64 finite differences, and their laws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer import reference, sums, visibility
from rasterizer.coverage import Rules, SampleGrid
from rasterizer.engines import LIST
from tests.rasterizer import scenes

SIZE = (7, 8)
BACKENDS = pytest.mark.usefixtures("backend")


@pytest.fixture(autouse=True)
def optimised():
    """Not here, but where bits are compared: these tests compile for minutes."""


def numeric_gradient(function, vertices, step=1e-6):
    """Central differences in float64."""
    out = np.zeros(vertices.shape)
    for i in np.ndindex(*vertices.shape):
        there, back = vertices.copy(), vertices.copy()
        there[i] += step
        back[i] -= step
        out[i] = (float(function(there)) - float(function(back))) / (2 * step)
    return out


def safe_scene(seed):
    """Vertices whose face indices survive the steps of a finite difference."""
    rng = np.random.default_rng(seed)
    vertices = scenes.warped_grid(seed, 5, 5)[:4, :4].astype(np.float64)
    # Off the boundaries of the snapping grid, so that no step snaps elsewhere.
    vertices[..., :2] = np.floor(vertices[..., :2] * 256) / 256 + 0.3 / 256
    return vertices, rng.normal(size=SIZE)


@pytest.mark.once  # float64: loops of their own to compile
@BACKENDS
@pytest.mark.parametrize("supersample", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_hard_depth_matches_finite_differences_of_the_reference(supersample):
    vertices, weight = safe_scene(supersample)
    flat, faces = scenes.flatten(vertices)
    options = {"background": 3.0, "supersample": supersample}

    def slow(v):
        return np.sum(weight * reference.render_depth(v, faces, SIZE, **options).depth)

    expected = numeric_gradient(slow, flat)
    assert np.abs(expected).max() > 0.1

    def weighted(depth):
        return jnp.sum(jnp.asarray(weight, depth.dtype) * depth)

    @jax.jit
    @jax.grad
    def general(v):
        return weighted(rasterizer.render_depth(v, faces, SIZE, **options).depth)

    @jax.jit
    @jax.grad
    def grid(v):
        return weighted(rasterizer.render_grid_depth(v, SIZE, **options).depth)

    @jax.jit
    @jax.grad
    def fragments(v):
        found = rasterizer.rasterize(v, faces, SIZE)
        return weighted(jnp.where(found.face_index >= 0, found.depth, 3.0))

    with jax.enable_x64(True):
        scale = np.abs(expected).max()
        exact = [general(flat), grid(vertices).reshape(-1, 3)]
        if supersample == 1:
            exact.append(fragments(flat))
        for gradient in exact:
            assert gradient.dtype == np.float64
            np.testing.assert_allclose(gradient, expected, atol=1e-6 * scale)
    if supersample == 1:
        return
    single = [
        general(flat.astype(np.float32)),
        grid(vertices.astype(np.float32)).reshape(-1, 3),
    ]
    for gradient in single:
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * scale)


@pytest.mark.once
def test_interpolation_matches_finite_differences():
    vertices, weight = safe_scene(5)
    flat, faces = scenes.flatten(vertices)
    attributes = np.random.default_rng(0).normal(size=(len(flat), 2))

    def loss(v, a):
        values = rasterizer.interpolate(a, faces, rasterizer.rasterize(v, faces, SIZE))
        return jnp.sum(weight[..., None] * values * jnp.array([1.0, -0.5]))

    with jax.enable_x64(True):
        by_vertex, by_attribute = jax.jit(jax.grad(loss, argnums=(0, 1)))(
            flat, attributes
        )
        compiled = jax.jit(loss)
        numeric = numeric_gradient(lambda v: compiled(v, attributes), flat)
        np.testing.assert_allclose(by_vertex, numeric, atol=1e-5)
        numeric = numeric_gradient(lambda a: compiled(flat, a), attributes)
        np.testing.assert_allclose(by_attribute, numeric, atol=1e-6)


@pytest.mark.once_by_list
@BACKENDS
def test_at_the_identity_view_only_the_pixels_own_vertex_moves_its_depth_in_z():
    vertices = scenes.grid(4, 5)
    vertices[..., 2] += np.random.default_rng(0).random((4, 5), np.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(v):
        return rasterizer.render_grid_depth(v, (4, 5), background=1.0).depth

    jacobian = jacobian(vertices)[..., 2]
    np.testing.assert_allclose(jacobian.reshape(20, 20), np.eye(20), atol=1e-5)


@pytest.mark.once_by_list
@BACKENDS
def test_moving_the_mesh_sideways_moves_the_image():
    # For a plane of 1/z, d depth/d(translation x) = -d depth/dx.
    x, y = np.meshgrid(np.linspace(-3, 12, 6), np.linspace(-3, 12, 6))
    inverse = 1.0 + 0.02 * x - 0.03 * y
    vertices = np.stack([x, y, 1 / inverse], -1).astype(np.float32)

    # Forward mode does not pass render_grid_depth; one pixel at a time.
    @jax.jit
    @jax.grad
    def slope(shift, row, column):
        return rasterizer.render_grid_depth(
            vertices + jnp.array([1.0, 0.0, 0.0]) * shift, (8, 8), background=0.0
        ).depth[row, column]

    for pixel in ((2, 3), (5, 6)):
        gradient = slope(0.0, *pixel)
        expected = 0.02 / (1.0 + 0.02 * pixel[1] - 0.03 * pixel[0]) ** 2
        np.testing.assert_allclose(gradient, expected, rtol=1e-3)


def batch_of_grids():
    """Grids, weights of their pixels, and the weighted sum of depth."""
    vertices = np.stack([scenes.warped_grid(s, 10, 9) for s in range(3)])
    weight = np.random.default_rng(0).normal(size=(3, 12, 11)).astype(np.float32)

    def loss(v, w):
        image = rasterizer.render_grid_depth(v, (12, 11), background=1.0, supersample=2)
        return jnp.sum(image.depth * w)

    return vertices, weight, loss


@pytest.mark.slow_by_list
@BACKENDS
@pytest.mark.usefixtures("as_compiled")
def test_gradients_are_bit_equal_from_run_to_run():
    vertices, weight, loss = batch_of_grids()
    gradient = jax.jit(jax.grad(loss))
    first = np.asarray(gradient(vertices, weight))
    assert np.abs(first).max() > 0
    for _ in range(3):
        np.testing.assert_array_equal(first, gradient(vertices, weight))


@pytest.mark.slow_by_list
@BACKENDS
def test_gradients_are_the_same_whatever_the_batch():
    vertices, weight, loss = batch_of_grids()
    first = jax.jit(jax.grad(loss))(vertices, weight)
    assert np.abs(first).max() > 0
    mapped = jax.jit(jax.vmap(jax.grad(loss)))(vertices, weight)
    np.testing.assert_allclose(first, mapped, rtol=1e-5, atol=1e-6)
    parallel = jax.pmap(jax.vmap(jax.grad(loss)))(vertices[None], weight[None])[0]
    np.testing.assert_allclose(first, parallel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("soft", [False, pytest.param(True, marks=pytest.mark.once)])
def test_no_pass_leaves_additions_to_a_race(soft):
    # A scatter may only take a maximum, a minimum, or distinct targets on GPU and TPU.
    vertices = scenes.warped_grid(0, 6, 6)
    options = {"background": 1.0}
    options |= {"sigma": 0.2, "gamma": 0.1} if soft else {}

    def grid(v):
        return rasterizer.render_grid_depth(v, (6, 6), background=1.0).depth.sum()

    def mesh(v):
        flat, faces = scenes.flatten(v)
        return rasterizer.render_depth(flat, faces, (6, 6), **options).depth.sum()

    for loss in (mesh,) if soft else (mesh, grid):
        traced = jax.jit(jax.value_and_grad(loss)).trace(vertices)
        for platform in ("cuda", "tpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            updates = re.findall(r'"stablehlo.scatter".*?stablehlo.return', text, re.S)
            assert updates
            assert not any("stablehlo.add" in update for update in updates)


@pytest.mark.once
def test_sums_by_list_and_by_sort_equal_those_by_scatter():
    rng = np.random.default_rng(0)
    vertices = np.stack([scenes.warped_grid(s, 9, 8) for s in range(3)])
    shape = SampleGrid(11, 10)
    see = functools.partial(
        visibility.grid_visibility, grid=shape, rules=Rules(), engine=LIST
    )
    index, boxes = jax.jit(see)(vertices)
    values = (jnp.asarray(rng.normal(size=index.shape), jnp.float32),)
    options = {"triangle_count": 2, "grid": shape}
    expected, got = (
        jax.jit(functools.partial(by, **options))(boxes, index, values)
        for by in (sums.face_sums_by_scatter, sums.face_sums_by_list)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 1
    ids = jnp.asarray(rng.integers(0, 7, (2, 90)), jnp.int32)
    rows = jnp.asarray(rng.normal(size=(2, 90, 3)), jnp.float32)
    expected, got = (
        jax.jit(functools.partial(by, count=9))(rows, ids)
        for by in (sums.sum_rows_by_scatter, sums.sum_rows_by_sort)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[:, 7:], 0.0)
    before = tuple(jnp.asarray(rng.normal(size=(2, 9)), jnp.float32))
    target = jnp.asarray(rng.integers(0, 10, 90), jnp.int32)  # 9 adds nothing
    terms = tuple(jnp.asarray(rng.normal(size=(2, 90)), jnp.float32))
    expected, got = (
        jax.jit(by)(before, target, terms)
        for by in (sums.add_at_by_scatter, sums.add_at_by_sort)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow_by_list
@BACKENDS
@pytest.mark.usefixtures("as_compiled")
def test_mesh_gradients_are_bit_equal_from_run_to_run():
    vertices, faces = scenes.soup(3, count=60, size=(16, 16))
    faces = np.concatenate([faces, faces[:, ::-1] // 2])
    weight = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(v):
        image = rasterizer.render_depth(v, faces, (16, 16), background=1.0)
        return jnp.sum(image.depth * weight)

    first = np.asarray(gradient(vertices))
    assert np.abs(first).max() > 0
    for _ in range(5):
        np.testing.assert_array_equal(first, gradient(vertices))


@pytest.mark.slow_by_list
@BACKENDS
def test_uncovered_pixels_pull_on_nothing():
    vertices = scenes.grid(4, 4)
    vertices[..., :2] += 2.0

    @jax.jit
    @jax.grad
    def outside(v):
        image = rasterizer.render_grid_depth(v, (8, 8), background=1.0)
        return jnp.sum(jnp.where(image.covered, 0.0, image.depth * 3.0))

    np.testing.assert_array_equal(outside(vertices), 0.0)


@functools.partial(jax.jit, static_argnames="backend")
def pulls_on_a_grid(vertices, backend):
    """Gradients of all that is drawn of a grid (6, 6, 3): (36, 3) each."""
    faces = rasterizer.grid_faces(6, 6)
    options = {"background": 1.0, "backend": backend}

    def grid(v):
        v = v.reshape(6, 6, 3)
        return rasterizer.render_grid_depth(v, (6, 6), **options).depth.sum()

    def general(v):
        return rasterizer.render_depth(v, faces, (6, 6), **options).depth.sum()

    def fragments(v):
        found = rasterizer.rasterize(v, faces, (6, 6), backend=backend)
        values = rasterizer.interpolate(v, faces, found)
        return jnp.sum(jnp.where(found.face_index >= 0, found.depth, 0)) + values.sum()

    flat = vertices.reshape(-1, 3)
    return [jax.grad(by)(flat) for by in (grid, general, fragments)]


@pytest.mark.slow_by_list
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, -1.0, 0.0])
def test_a_bad_vertex_gets_zero_gradient_and_spoils_no_other(bad, backend):
    vertices = scenes.warped_grid(1, 6, 6)
    vertices[2, 3, 2] = bad
    if bad == 1e30:
        vertices[2, 3, 0] = bad
    gradients = pulls_on_a_grid(vertices, backend)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[2 * 6 + 3], 0.0)
        assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow_by_list
@BACKENDS
def test_background_is_differentiable():
    vertices, faces = scenes.soup(0, count=3, size=(6, 6))

    def total(background):
        return jnp.sum(
            rasterizer.render_depth(
                vertices, faces, (6, 6), background=background
            ).depth
        )

    covered = rasterizer.render_depth(vertices, faces, (6, 6), background=0.0).covered
    assert jax.grad(total)(2.0) == 36 - covered.sum()
