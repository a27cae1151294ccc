"""The kernels for GPUs: interpreted against the reference, and lowered for CUDA."""

import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer import backends, engines, reference, sums, walks
from rasterizer.coverage import Rules, SampleGrid
from rasterizer.engines import INTERPRETED, LIST
from rasterizer.visibility import grid_visibility, mesh_visibility
from tests.rasterizer import scenes


@pytest.fixture(autouse=True)
def optimised():
    """Not here: interpreted kernels are long programs."""


@pytest.fixture
def huge(monkeypatch):
    """Kernels to which boxes of more than five samples are huge."""
    monkeypatch.setattr(walks, "HUGE", 5)
    monkeypatch.setattr(walks, "TEAM", 32)
    monkeypatch.setattr(walks, "TEAMS", 4)
    return engines.by_kernels(interpret=True)


def assert_faces_match(vertices, faces, size, engine, **options):
    grid = SampleGrid(*size)
    facing = {"none": 0, "back": 1, "front": -1}[options.get("cull", "none")]
    faces = np.broadcast_to(faces, (len(vertices), *faces.shape))
    index, boxes = mesh_visibility(
        *(jnp.asarray(vertices), jnp.asarray(faces)),
        grid=grid,
        rules=Rules(facing=facing),
        engine=engine,
    )
    for k, (v, f) in enumerate(zip(vertices, faces, strict=True)):
        slow = reference.rasterize(v, f, size, **options).face_index
        np.testing.assert_array_equal(index[k].reshape(size), slow)
    return index, boxes


@pytest.mark.parametrize("cull", [pytest.param("none", marks=pytest.mark.once), "back"])
def test_triangles_of_all_sizes_match_the_reference(cull):
    soups = [scenes.soup(s, count=37, size=(13, 17)) for s in range(3)]
    vertices = np.stack([v for v, _ in soups])
    vertices[0, 5, :2] = [-4e4, 3.0]  # a face that needs wide arithmetic
    vertices[1, 7] = np.nan
    assert_faces_match(vertices, soups[0][1], (13, 17), INTERPRETED, cull=cull)


@pytest.mark.once
def test_coincident_faces_match_the_reference():
    flat, faces = scenes.flatten(scenes.grid(6, 7))
    rng = np.random.default_rng(0)
    flat[:, 2] += rng.choice([0.0, 1e-7, 1e-6, 1e-3], len(flat)).astype(np.float32)
    twice = np.concatenate([faces[::-1], faces, faces[:, ::-1], faces[:9] + 30])
    assert_faces_match(flat[None], twice, (6, 7), INTERPRETED)


@pytest.mark.once
def test_huge_boxes_match_the_reference(huge):
    soups = [scenes.soup(s, count=37, size=(13, 17)) for s in range(4, 6)]
    vertices = np.stack([v for v, _ in soups])
    vertices[1, 3, :2] = [-4e4, 3.0]
    index, boxes = assert_faces_match(vertices, soups[0][1], (13, 17), huge)
    assert (boxes.count > walks.HUGE).sum() > 20
    assert_sums_match(index, boxes, SampleGrid(13, 17), 1, huge)


def assert_sums_match(index, boxes, grid, triangles, engine):
    rng = np.random.default_rng(0)
    values = tuple(
        jnp.asarray(rng.normal(size=index.shape), jnp.float32) for _ in range(3)
    )
    options = {"triangle_count": triangles, "grid": grid}
    run = jax.jit(partial(engine.sum_by_face, **options))
    got = run(boxes, index, values)
    expected = LIST.sum_by_face(boxes, index, values, **options)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got, run(boxes, index, values))


@pytest.mark.once
def test_grids_match_the_work_list():
    vertices = np.stack([scenes.warped_grid(s, 9, 8) for s in range(3)])
    vertices[1, 0, 0, :2] = [-9e3, -2e4]
    vertices[2, 3, 3] = np.nan
    grid = SampleGrid(11, 10, 2)
    options = {"grid": grid, "rules": Rules()}
    index, boxes = grid_visibility(vertices, engine=INTERPRETED, **options)
    expected, _ = grid_visibility(vertices, engine=LIST, **options)
    np.testing.assert_array_equal(index, expected)
    assert_sums_match(index, boxes, grid, 2, INTERPRETED)


@pytest.mark.once
def test_images_and_gradients_match_those_of_the_work_list():
    vertices = np.stack([scenes.warped_grid(s, 7, 6) for s in range(2)])
    weight = np.random.default_rng(0).normal(size=(2, 8, 9)).astype(np.float32)

    def total(v, backend):
        def draw(v):
            return rasterizer.render_grid_depth(
                v, (8, 9), background=7.0, backend=backend
            )

        image = jax.vmap(draw)(v)
        return jnp.sum(weight * image.depth), image.covered

    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnames="backend")
    (value, covered), gradient = run(vertices, backend="pallas")
    (expected, same), slope = run(vertices, backend="xla")
    np.testing.assert_array_equal(covered, same)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)
    assert np.abs(slope).max() > 0.1


def test_rows_are_summed_as_by_scatter():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 70, (2, 190)) ** 2 // 70, jnp.int32)
    rows = jnp.asarray(rng.normal(size=(2, 190, 3)), jnp.float32)
    expected = sums.sum_rows_by_scatter(rows, ids, count=75)
    run = jax.jit(partial(INTERPRETED.sum_rows, count=75))
    got = run(rows, ids)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[:, 70:], 0.0)
    np.testing.assert_array_equal(got, run(rows, ids))


@pytest.mark.slow
def test_float64_gives_float64():
    vertices = scenes.warped_grid(0, 5, 4).astype(np.float64)
    flat, faces = scenes.flatten(vertices)

    def loss(v, backend):
        options = {"background": 1.0, "backend": backend}
        return rasterizer.render_depth(v, faces, (70, 69), **options).depth.sum()

    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(loss), static_argnames="backend")
        got, expected = (run(flat, backend=b) for b in ("pallas", "xla"))
    assert got[1].dtype == np.float64
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.once
def test_nothing_to_draw_draws_nothing():
    empty = np.zeros((2, 4, 3), np.float32)
    faces = np.array([[0, 1, 2], [1, 2, 3]], np.int32)
    fragments = rasterizer.rasterize(empty, faces, (3, 5), backend="pallas")
    assert (fragments.face_index == -1).all()
    fragments = rasterizer.rasterize(empty, faces[:0], (3, 5), backend="pallas")
    assert (fragments.face_index == -1).all()


@contextlib.contextmanager
def as_on_h100():
    """Newer JAX lowers kernels for a GPU that it knows."""
    if not hasattr(jax.sharding, "use_abstract_mesh"):
        yield
        return
    device = jax.sharding.AbstractDevice("NVIDIA H100", None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.mark.parametrize(
    ("kind", "size"),
    [("grid", (16, 16)), pytest.param("mesh", (80, 80), marks=pytest.mark.once)],
)
def test_kernels_lower_for_cuda(kind, size):
    vertices = scenes.warped_grid(0, 9, 9)
    flat, faces = scenes.flatten(vertices)
    options = {"background": 1.0, "backend": "pallas"}

    def grid(v):
        return rasterizer.render_grid_depth(v, size, **options).depth.sum()

    def mesh(v):
        return rasterizer.render_depth(v, faces, size, **options).depth.sum()

    loss, given = (grid, vertices) if kind == "grid" else (mesh, flat)
    with as_on_h100():
        traced = jax.jit(jax.grad(loss)).trace(given)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    names = re.findall(r'name = "(rasterizer_\w+)"', text)
    walks = ["nearness", "winners", "sums"]
    if size[0] > 64:
        walks = [w + end for w in walks for end in ("", "_huge")]
    walks += ["rows"] if kind == "mesh" else []
    assert names == ["rasterizer_" + w for w in walks]
    # A loop would wait for the host.
    assert "stablehlo.while" not in text


def test_without_a_gpu_programs_for_one_have_no_kernels(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backends.find_workers("auto").cuda == "kernels"
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert backends.find_workers("auto").cuda == "list"
    assert backends.find_workers("xla") == backends.Workers()


def test_a_jax_without_triton_falls_back(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(backends, "kernels_compile", lambda: False)
    assert backends.find_workers("auto").cuda == "list"
    with pytest.raises(ValueError, match="Triton"):
        backends.find_workers("pallas")
