"""What a GPU draws, by compiled kernels and by the work list, against the reference.

Run on a machine with a GPU: python -m pytest -m gpu tests/rasterizer/test_gpu.py
(-k "not xla" leaves out the work list, which takes long to compile.)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer import coverage, reference
from rasterizer.coverage import Rules, SampleGrid
from rasterizer.engines import KERNELS, LIST
from rasterizer.visibility import grid_visibility, mesh_visibility
from tests.rasterizer import scenes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        jax.default_backend() != "gpu", reason="JAX has no GPU to run this on"
    ),
]
ENGINES = pytest.mark.parametrize("engine", [KERNELS, LIST], ids=["pallas", "xla"])
BACKENDS = pytest.mark.parametrize("backend", ["pallas", "xla"])
RULES = Rules()


def smooth_grid(seed: int, side: int, size: int) -> np.ndarray:
    """A curved depth map seen from aside: folds, occlusions, stretched border cells."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    z = 1.0 + 0.2 * np.cos(rng.uniform(4, 9) * x + rng.uniform(0, 6)) * np.sin(
        rng.uniform(4, 9) * y + rng.uniform(0, 6)
    )
    angle = rng.uniform(-0.7, 0.7)
    across = x * np.cos(angle) + (z - 1) * np.sin(angle)
    away = z * np.cos(angle) - x * np.sin(angle)
    away = away - away.min() + 0.8
    vertices = np.stack([across, y, away], -1)
    vertices[..., :2] = (vertices[..., :2] / away[..., None] + 0.5) * size
    vertices[:, [0, -1], 0] += [-0.2 * size, 0.2 * size]
    return vertices.astype(np.float32)


def reference_index(vertices, faces, grid: SampleGrid, **options):
    return reference.rasterize(
        *(vertices, faces, (grid.height, grid.width)),
        supersample=grid.supersample,
        **options,
    ).face_index.ravel()


def cell_index(index, side: int):
    """Face indices of `grid_visibility` as those of `grid_faces`."""
    index = np.asarray(index)
    lower = index >= side * side
    vertex = np.where(lower, index - side * side, index)
    cell = vertex // side * (side - 1) + vertex % side
    return np.where(index < 0, -1, lower * (side - 1) ** 2 + cell)


@ENGINES
@pytest.mark.parametrize(("side", "size"), [(33, 64), (40, 128)])
def test_faces_of_grids_equal_the_reference(engine, side, size):
    vertices = np.stack([smooth_grid(s, side, size) for s in range(3)])
    vertices[1, 3, 5] = np.nan
    vertices[2, 0, 0, :2] = [-3e4, -2e4]  # needs wide arithmetic
    grid = SampleGrid(size, size)
    index, _ = grid_visibility(vertices, grid=grid, rules=RULES, engine=engine)
    faces = rasterizer.grid_faces(side, side)
    for found, v in zip(cell_index(index, side), vertices, strict=True):
        expected = reference_index(v.reshape(-1, 3), faces, grid)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "supersample"), [(32, 1), (64, 1), (128, 1), (256, 1), (64, 2)]
)
def test_a_batch_of_grids_equals_what_a_cpu_draws(size, supersample):
    vertices = np.stack([smooth_grid(s, size, size) for s in range(6)])
    options = {"grid": SampleGrid(size, size, supersample), "rules": RULES}
    find = jax.jit(partial(grid_visibility, **options), static_argnames="engine")
    index, boxes = find(vertices, engine=KERNELS)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        expected, same = find(vertices, engine=LIST)
    np.testing.assert_array_equal(index, expected)
    for ours, theirs in zip(boxes, same, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@ENGINES
@pytest.mark.parametrize(
    ("size", "cull"), [((32, 45), "none"), ((32, 45), "front"), ((128, 128), "back")]
)
def test_faces_of_meshes_equal_the_reference(engine, size, cull):
    soups = [scenes.soup(s, count=150, size=size) for s in range(3)]
    vertices = np.stack([v for v, _ in soups])
    vertices[0, 5, :2] = [-4e4, 3.0]
    vertices[1, 7] = np.nan
    vertices[2, :3, :2] = [[-500, -400], [900, -300], [20, 800]]  # covers it all
    faces = np.concatenate([soups[0][1], soups[0][1][:40, ::-1]])
    grid, facing = SampleGrid(*size), {"none": 0, "back": 1, "front": -1}[cull]
    index, _ = mesh_visibility(
        *(vertices, jnp.asarray(np.broadcast_to(faces, (3, *faces.shape)))),
        grid=grid,
        rules=Rules(facing=facing),
        engine=engine,
    )
    for found, v in zip(index, vertices, strict=True):
        expected = reference_index(v, faces, grid, cull=cull)
        np.testing.assert_array_equal(found, expected)


@ENGINES
def test_faces_without_number_at_one_place_are_drawn_in_order(engine):
    # Thousands of equal triangles compete for the same samples.
    rng = np.random.default_rng(0)
    corners = np.array([[1, 2, 1.5], [28, 5, 1.2], [9, 30, 2.0]], np.float32)
    faces = np.stack([rng.permutation(3) for _ in range(5000)]).astype(np.int32)
    index, _ = mesh_visibility(
        *(corners[None], faces[None]),
        grid=SampleGrid(32, 32),
        rules=RULES,
        engine=engine,
    )
    expected = reference_index(corners, faces, SampleGrid(32, 32))
    np.testing.assert_array_equal(index[0], expected)


def test_division_is_rounded_once():
    rng = np.random.default_rng(0)
    a = (2.0 ** rng.uniform(-20, 40, 2**20)).astype(np.float32)
    b = (2.0 ** rng.uniform(-20, 40, 2**20)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(coverage.divide)(a, b), a / b)


def draw(vertices, *, size, backend, faces=None, **options):
    options |= {"background": 3.0, "backend": backend}
    if faces is None:
        return rasterizer.render_grid_depth(vertices, size, **options).depth
    return rasterizer.render_depth(vertices, faces, size, **options).depth


def on_cpu_in_float64(function, *args):
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        args = [np.asarray(a, np.float64) for a in args]
        return jax.tree.map(np.asarray, jax.jit(function)(*args))


def assert_like_float64(vertices, weight, backend, **options):
    """Depth and gradient equal those in float64 on the CPU, and are the same twice."""

    def value_and_pull(vertices, weight, backend):
        image, pull = jax.vjp(partial(draw, backend=backend, **options), vertices)
        return image, pull(weight)[0]

    expected = on_cpu_in_float64(
        partial(value_and_pull, backend="xla"), vertices, weight
    )
    run = jax.jit(partial(value_and_pull, backend=backend))
    depth, gradient = run(vertices, weight)
    np.testing.assert_allclose(depth, expected[0], rtol=2e-4)
    # A face seen edge-on has slopes beyond what float32 resolves.
    error = np.abs(np.asarray(gradient, np.float64) - expected[1])
    scale = 1.0 + np.abs(expected[1])
    assert (error < 1e-2 * scale).mean() > 0.995
    np.testing.assert_allclose(
        gradient[..., 2].sum(), expected[1][..., 2].sum(), rtol=1e-3, atol=1e-1
    )
    for _ in range(3):
        again = run(vertices, weight)
        np.testing.assert_array_equal(depth, again[0])
        np.testing.assert_array_equal(gradient, again[1])


@BACKENDS
@pytest.mark.parametrize(("side", "size"), [(64, 64), (64, 96)])
def test_grids_and_their_gradients(backend, side, size):
    vertices = np.stack([smooth_grid(s, side, size) for s in range(4)])
    weight = np.random.default_rng(0).normal(size=(4, size, size)).astype(np.float32)
    assert_like_float64(vertices, weight, backend, size=(size, size))


@BACKENDS
@pytest.mark.parametrize("supersample", [1, 2])
def test_meshes_and_their_gradients(backend, supersample):
    side, size = 40, (72, 72)
    vertices = np.stack([smooth_grid(s, side, 72) for s in range(2)])
    # A wall behind it all, of two huge faces.
    wall = np.array([[-40, -40, 9], [120, -40, 9], [-40, 120, 9], [120, 120, 9]])
    wall = np.broadcast_to(wall.astype(np.float32), (2, 4, 3))
    flat = np.concatenate([vertices.reshape(2, -1, 3), wall], axis=1)
    far = side * side + rasterizer.grid_faces(2, 2)
    faces = np.concatenate([rasterizer.grid_faces(side, side), far])
    weight = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    assert_like_float64(
        *(flat, weight, backend), size=size, faces=faces, supersample=supersample
    )


@BACKENDS
def test_vmap_and_jit_change_nothing(backend):
    vertices = np.stack([smooth_grid(s, 48, 64) for s in range(6)])
    one = partial(draw, size=(64, 64), backend=backend)

    def slope(v):
        return jax.grad(lambda v: jnp.sum(one(v) ** 2))(v)

    whole = slope(vertices)
    mapped = jax.jit(jax.vmap(slope))(vertices)
    np.testing.assert_allclose(whole, mapped, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(one(vertices)[3], jax.jit(one)(vertices[3]))


def test_auto_takes_the_kernels():
    vertices = smooth_grid(0, 32, 32)
    loss = jax.grad(lambda v, b: draw(v, size=(32, 32), backend=b).sum())
    for backend, kernels in (("auto", True), ("pallas", True), ("xla", False)):
        text = jax.jit(loss, static_argnums=1).lower(vertices, backend).as_text()
        assert ("rasterizer_nearness" in text) == kernels
