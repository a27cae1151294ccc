"""Laws of hard rasterization, and the oracle."""

import re
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

BACKENDS = pytest.mark.usefixtures("backend")
AS_COMPILED = pytest.mark.usefixtures("as_compiled")


@pytest.fixture(autouse=True)
def optimised():
    """Not here, but where faces are many: these tests compile for minutes."""


def assert_matches_reference(vertices, faces, size, **options):
    fast = rasterizer.rasterize(vertices, faces, size, **options)
    slow = reference.rasterize(vertices, faces, size, **options)
    np.testing.assert_array_equal(fast.face_index, slow.face_index)
    drawn = slow.face_index >= 0
    np.testing.assert_array_equal(np.isinf(fast.depth), ~drawn)
    np.testing.assert_allclose(fast.depth[drawn], slow.depth[drawn], rtol=2e-5)
    np.testing.assert_allclose(fast.barycentrics, slow.barycentrics, atol=2e-3)
    return fast


@pytest.mark.once_by_list
@BACKENDS
def test_identity_view_covers_every_pixel_with_its_own_vertex():
    vertices = scenes.grid(9, 12)
    vertices[..., 2] += np.random.default_rng(0).random((9, 12), np.float32)
    image = rasterizer.render_grid_depth(vertices, (9, 12), background=100.0)
    assert image.covered.all()
    np.testing.assert_allclose(image.depth, vertices[..., 2], rtol=3e-7)


@pytest.mark.slow_by_list
@AS_COMPILED
@BACKENDS
def test_ties_go_to_the_smallest_face_index():
    vertices, faces = scenes.flatten(scenes.grid(5, 6))
    fragments = rasterizer.rasterize(vertices, faces, (5, 6))
    first = np.full((5, 6), -1)
    for number, face in reversed(list(enumerate(faces))):
        for vertex in face:
            first[divmod(vertex, 6)] = number
    np.testing.assert_array_equal(fragments.face_index, first)
    twice = np.concatenate([faces, faces[::-1], faces])
    again = rasterizer.rasterize(vertices, twice, (5, 6))
    np.testing.assert_array_equal(again.face_index, first)


@pytest.mark.once_by_list
@AS_COMPILED
@BACKENDS
@pytest.mark.parametrize("seed", range(4))
def test_random_triangles_match_the_reference(seed):
    vertices, faces = scenes.soup(seed, count=40, size=(13, 17))
    assert_matches_reference(vertices, faces, (13, 17))
    assert_matches_reference(vertices, faces, (13, 17), pixel_offset=(0.5, -0.3))


@pytest.mark.slow_by_list
@AS_COMPILED
@BACKENDS
@pytest.mark.parametrize("seed", range(3))
def test_warped_grid_matches_the_reference_and_the_general_path(seed):
    vertices = scenes.warped_grid(seed, 14, 12)
    flat, faces = scenes.flatten(vertices)
    assert_matches_reference(flat, faces, (14, 12))
    for options in (
        {"supersample": 2},
        {"supersample": 3, "pixel_offset": (0.5, -0.25)},
    ):
        options |= {"background": 7.0}
        grid = rasterizer.render_grid_depth(vertices, (14, 12), **options)
        general = rasterizer.render_depth(flat, faces, (14, 12), **options)
        slow = reference.render_depth(flat, faces, (14, 12), **options)
        np.testing.assert_array_equal(grid.covered, slow.covered)
        np.testing.assert_array_equal(general.covered, slow.covered)
        np.testing.assert_allclose(grid.depth, slow.depth, rtol=2e-5)
        np.testing.assert_allclose(general.depth, slow.depth, rtol=2e-5)


@pytest.mark.once_by_list
@BACKENDS
def test_shared_edges_leave_no_crack():
    # A fan whose edges run everywhere, behind which there is nothing.
    angle = np.linspace(0, 2 * np.pi, 38)[:-1]
    rim = np.stack([20.3 + 60 * np.cos(angle), 19.7 + 60 * np.sin(angle)], -1)
    xy = np.concatenate([[[20.3, 19.7]], rim])
    vertices = np.concatenate([xy, np.ones((38, 1))], -1).astype(np.float32)
    faces = np.stack(
        [np.zeros(37), np.arange(37) + 1, (np.arange(37) + 1) % 37 + 1], -1
    )
    fragments = rasterizer.rasterize(vertices, faces.astype(np.int32), (40, 40))
    assert (fragments.face_index >= 0).all()


@pytest.mark.once_by_list
@BACKENDS
@pytest.mark.parametrize("reach", [1e2, 3e3, 3e4, 5e5])
def test_faces_of_any_size_are_drawn(reach):
    vertices = np.array(
        [[-reach, -reach, 2.0], [reach, -0.9 * reach, 1.5], [0.1 * reach, reach, 1.0]],
        np.float32,
    )
    small = np.array([[2, 2, 0.5], [5, 2, 0.5], [2, 5, 0.5]], np.float32)
    faces = np.arange(6, dtype=np.int32).reshape(2, 3)
    fragments = assert_matches_reference(
        np.concatenate([vertices, small]), faces, (9, 11)
    )
    assert set(np.unique(fragments.face_index)) == {0, 1}


@pytest.mark.once_by_list
@BACKENDS
def test_faces_larger_than_fine_arithmetic_match_the_reference():
    # Some snapped to coarser grids, which moves edges by up to a pixel. One face an
    # image, so that none hides another.
    rng = np.random.default_rng(5)
    reach = np.repeat([1e3, 1.9e3, 4e3, 3e4, 2e5], 60)[:, None]
    vertices = rng.uniform(0, 20, (300, 3, 3)).astype(np.float32)
    vertices[:, 0, :2] = rng.uniform(-reach, reach, (300, 2))
    vertices[..., 2] = 1.0
    face = np.array([[0, 1, 2]])
    fast = rasterizer.rasterize(vertices, face, (20, 21)).face_index
    slow = [reference.rasterize(v, face, (20, 21)).face_index for v in vertices]
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.slow_by_list
@BACKENDS
def test_a_far_corner_of_a_grid_is_drawn_like_a_mesh():
    vertices = scenes.warped_grid(3, 6, 6)
    vertices[0, 0, :2] = [-9e3, -2e4]
    vertices[5, 5, :2] = [4e5, 3e5]
    flat, faces = scenes.flatten(vertices)
    slow = reference.render_depth(flat, faces, (16, 16), background=3.0)
    grid = rasterizer.render_grid_depth(vertices, (16, 16), background=3.0)
    mesh = rasterizer.render_depth(flat, faces, (16, 16), background=3.0)
    np.testing.assert_array_equal(grid.covered, slow.covered)
    np.testing.assert_array_equal(mesh.covered, slow.covered)
    np.testing.assert_allclose(grid.depth, slow.depth, rtol=1e-3)


def test_interpolation_is_perspective_correct():
    # A plane z = 2 + x3 seen by a pinhole: 3D x is linear on the face, not on screen.
    points = np.array([[-1.0, -1.0, 1.0], [1.0, -1.0, 3.0], [-1.0, 2.0, 1.0]])
    screen = points[:, :2] / points[:, 2:] * 6.0 + 8.0
    vertices = np.concatenate([screen, points[:, 2:]], -1).astype(np.float32)
    faces = np.array([[0, 1, 2]], np.int32)
    fragments = rasterizer.rasterize(vertices, faces, (16, 16))
    drawn = np.asarray(fragments.face_index) == 0
    assert drawn.sum() > 30
    x3 = rasterizer.interpolate(points[:, :1].astype(np.float32), faces, fragments)
    row, column = np.nonzero(drawn)
    np.testing.assert_allclose(
        x3[row, column, 0],
        (column - 8.0) / 6.0 * np.asarray(fragments.depth)[drawn],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        fragments.depth[row, column], 2 + x3[row, column, 0], rtol=1e-5
    )
    assert (np.asarray(x3)[~drawn] == 0).all()


def test_interpolating_depth_gives_depth():
    vertices, faces = scenes.soup(5, count=20, size=(12, 12))
    fragments = rasterizer.rasterize(vertices, faces, (12, 12))
    z = rasterizer.interpolate(vertices[:, 2:], faces, fragments)[..., 0]
    drawn = fragments.face_index >= 0
    np.testing.assert_allclose(z[drawn], fragments.depth[drawn], rtol=1e-5)


def test_both_windings_are_drawn():
    vertices, faces = scenes.soup(1, count=9, size=(10, 10))
    one = rasterizer.rasterize(vertices, faces, (10, 10))
    other = rasterizer.rasterize(vertices, faces[:, ::-1], (10, 10))
    np.testing.assert_array_equal(one.face_index, other.face_index)
    np.testing.assert_allclose(
        one.barycentrics, other.barycentrics[..., ::-1], atol=1e-6
    )


@pytest.mark.slow_by_list
@BACKENDS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_bad_vertex_removes_its_faces_only(bad, axis):
    vertices = scenes.warped_grid(0, 7, 7)
    vertices[3, 3, axis] = bad
    flat, faces = scenes.flatten(vertices)
    kept = faces[~(faces == 3 * 7 + 3).any(-1)]
    image = rasterizer.render_grid_depth(vertices, (7, 7), background=5.0)
    clean = np.nan_to_num(flat, nan=1.0, posinf=1.0, neginf=1.0)
    expected = rasterizer.render_depth(clean, kept, (7, 7), background=5.0)
    np.testing.assert_array_equal(image.covered, expected.covered)
    np.testing.assert_array_equal(image.depth, expected.depth)
    fragments = rasterizer.rasterize(flat, faces, (7, 7))
    assert not np.isnan(fragments.depth).any()
    assert not np.isnan(fragments.barycentrics).any()


@pytest.mark.slow_by_list
@BACKENDS
def test_near_plane_and_negative_depth_reject_the_face():
    vertices = np.array([[0, 0, 1], [8, 0, 1], [0, 8, 1], [9, 9, -1]], np.float32)
    faces = np.array([[0, 1, 2], [1, 2, 3]], np.int32)
    assert rasterizer.rasterize(vertices, faces, (8, 8)).face_index.max() == 0
    assert (
        rasterizer.rasterize(vertices, faces, (8, 8), near=1.0).face_index.max() == -1
    )
    vertices[3, 2] = 0.0
    assert rasterizer.rasterize(vertices, faces, (8, 8)).face_index.max() == 0


@partial(jax.jit, static_argnames="backend")
@jax.value_and_grad
def total_depth_of_a_face(vertices, backend):
    faces = np.array([[0, 1, 2]], np.int32)
    options = {"background": 2.0, "backend": backend}
    return rasterizer.render_depth(vertices, faces, (8, 8), **options).depth.sum()


@pytest.mark.once_by_list
@pytest.mark.parametrize(
    "corners",
    [
        [[1, 1], [5, 5], [3, 3]],
        [[2, 2], [2, 2], [2, 2]],
        [[0, 3], [7, 3], [2, 3]],
        [[1.1, 0.7], [1.1, 0.7], [6.3, 4.2]],
    ],
)
def test_degenerate_faces_draw_nothing(corners, backend):
    vertices = np.concatenate([corners, np.ones((3, 1))], -1).astype(np.float32)
    value, gradient = total_depth_of_a_face(vertices, backend)
    assert value == 2.0 * 64
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.once_by_list
@BACKENDS
def test_empty_meshes_batches_and_grids():
    none = np.zeros((0, 3), np.int32)
    fragments = rasterizer.rasterize(np.ones((4, 3), np.float32), none, (3, 5))
    assert (fragments.face_index == -1).all() and np.isinf(fragments.depth).all()
    assert (fragments.barycentrics == 0).all()
    image = rasterizer.render_depth(
        np.zeros((0, 3), np.float32), none, (3, 5), background=4.0
    )
    assert (image.depth == 4).all() and not image.covered.any()
    faces = np.array([[0, 1, 2]], np.int32)
    assert rasterizer.rasterize(
        np.zeros((0, 3, 3), np.float32), faces, (3, 5)
    ).depth.shape == (0, 3, 5)
    image = rasterizer.render_grid_depth(
        np.ones((2, 1, 6, 3), np.float32), (3, 5), background=4.0
    )
    assert image.depth.shape == (2, 3, 5) and (image.depth == 4).all()

    # An axis of no members, which vmap folds into a batch that had some.
    def draw(v):
        total = rasterizer.render_depth(v, faces, (3, 5), background=1.0).depth.sum()
        return total, rasterizer.rasterize(v, faces, (3, 5)).face_index

    mapped = jax.vmap(jax.grad(draw, has_aux=True))(np.zeros((0, 3, 3), np.float32))
    assert mapped[0].shape == (0, 3, 3) and mapped[1].shape == (0, 3, 5)
    attributes = np.ones((4, 2), np.float32)
    values = rasterizer.interpolate(attributes, none, fragments)
    assert values.shape == (3, 5, 2) and (values == 0).all()


@pytest.mark.slow_by_list
@BACKENDS
def test_leading_axes_vmap_and_jit_agree():
    soups = [scenes.soup(s, count=12, size=(9, 8)) for s in range(6)]
    faces = soups[0][1]
    batch = np.stack([v for v, _ in soups]).reshape(2, 3, -1, 3)
    whole = rasterizer.rasterize(batch, faces, (9, 8))
    assert whole.barycentrics.shape == (2, 3, 9, 8, 3)

    def one(v):
        return rasterizer.rasterize(v, faces, (9, 8))

    mapped = jax.jit(jax.vmap(jax.vmap(one)))(batch)
    np.testing.assert_array_equal(whole.face_index, mapped.face_index)
    np.testing.assert_allclose(whole.depth, mapped.depth, rtol=1e-6)
    single = one(batch[1, 2])
    np.testing.assert_array_equal(whole.face_index[1, 2], single.face_index)
    per_item = jnp.stack([faces, faces[::-1]])
    mapped = jax.vmap(lambda v, f: rasterizer.rasterize(v, f, (9, 8)))(
        batch[:, 0], per_item
    )
    single = rasterizer.rasterize(batch[1, 0], faces[::-1], (9, 8))
    np.testing.assert_array_equal(mapped.face_index[1], single.face_index)


@pytest.mark.slow_by_list
@BACKENDS
def test_samples_lie_where_documented():
    # A step in depth: two quads that meet at x = 1.3.
    xs = np.array([-1, 1.3, 1.3, 9], np.float32)
    x, y = np.meshgrid(xs, np.array([-1, 1, 3, 5], np.float32))
    z = np.broadcast_to(np.array([1, 1, 2, 2], np.float32), x.shape)
    vertices = np.stack([x, y, z], -1)

    def row(**options):
        image = rasterizer.render_grid_depth(
            vertices, (4, 4), background=9.0, **options
        )
        return image.depth[1]

    np.testing.assert_allclose(row(), [1, 1, 2, 2], rtol=1e-6)
    # Samples of pixel 1 at 0.75 and 1.25; with the offset at 1.25 and 1.75.
    np.testing.assert_allclose(row(supersample=2), [1, 1, 2, 2], rtol=1e-6)
    shifted = row(supersample=2, pixel_offset=(0.5, 0.5))
    np.testing.assert_allclose(shifted, [1, 1.5, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(row(pixel_offset=(0.4, 0.0)), [1, 2, 2, 2], rtol=1e-6)


@pytest.mark.once_by_list
@BACKENDS
def test_covered_means_all_samples():
    vertices = scenes.grid(4, 4)
    plain = rasterizer.render_grid_depth(vertices, (4, 4), background=9.0)
    assert plain.covered.all()
    fine = rasterizer.render_grid_depth(vertices, (4, 4), background=9.0, supersample=2)
    expected = np.zeros((4, 4), bool)
    expected[1:-1, 1:-1] = True
    np.testing.assert_array_equal(fine.covered, expected)
    assert fine.depth[0, 0] == (1 + 3 * 9) / 4
    # The authors' samples: the last row and column are uncovered, and only they.
    theirs = rasterizer.render_grid_depth(
        vertices, (4, 4), background=9.0, supersample=2, pixel_offset=(0.5, 0.5)
    )
    np.testing.assert_array_equal(theirs.covered, np.pad(np.ones((3, 3), bool), (0, 1)))


def test_grid_faces_order():
    np.testing.assert_array_equal(
        rasterizer.grid_faces(2, 3), [[0, 3, 1], [1, 4, 2], [1, 3, 4], [2, 4, 5]]
    )
    assert rasterizer.grid_faces(1, 5).shape == (0, 3)


coordinate = st.one_of(
    st.floats(-4, 14, width=32),
    st.integers(-2, 12).map(float),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e9, -3e5, 2.5e3, 5.0, 5.0]),
)
depth = st.one_of(
    st.floats(0.25, 4.0, width=32),
    st.sampled_from([1.0, 1.0, 0.0, -1.0, np.nan, 1e-38, 1e-14]),
)


NASTY_SIZE = (10, 11)
INSTALLED = ["xla", "pallas"] + ["numba"] * backends.numba_installed()
USUAL = INSTALLED[-1] if backends.numba_installed() else "xla"


@partial(jax.jit, static_argnames="backend")
def draw_nasty_mesh(vertices, faces, backend):
    def total(v):
        found = rasterizer.rasterize(v, faces, NASTY_SIZE, backend=backend)
        return jnp.sum(jnp.where(found.face_index >= 0, found.depth, 1.0)), found

    gradient, fragments = jax.grad(total, has_aux=True)(vertices)
    return fragments, gradient


@partial(jax.jit, static_argnames="backend")
def draw_nasty_grid(vertices, backend):
    def total(v):
        image = rasterizer.render_grid_depth(
            v, NASTY_SIZE, background=1.0, backend=backend
        )
        return image.depth.sum(), image.covered

    gradient, covered = jax.grad(total, has_aux=True)(vertices)
    return covered, gradient


@AS_COMPILED
@pytest.mark.parametrize(
    "backend",
    [pytest.param(b, marks=[pytest.mark.once] * (b != USUAL)) for b in INSTALLED],
)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    points=st.lists(st.tuples(coordinate, coordinate, depth), min_size=9, max_size=9),
    faces=st.lists(
        st.lists(st.integers(0, 8), min_size=3, max_size=3), min_size=6, max_size=6
    ),
)
def test_nasty_meshes_match_the_reference(backend, points, faces):
    vertices = np.array(points, np.float32)
    faces = np.array(faces, np.int32)
    fast, gradient = draw_nasty_mesh(vertices, faces, backend)
    slow = reference.rasterize(vertices, faces, NASTY_SIZE)
    np.testing.assert_array_equal(fast.face_index, slow.face_index)
    assert not np.isnan(fast.depth).any()
    assert not np.isnan(fast.barycentrics).any()
    assert not np.isnan(gradient).any()
    visible = np.unique(slow.face_index[slow.face_index >= 0])
    unused = np.setdiff1d(np.arange(9), faces[visible])
    np.testing.assert_array_equal(np.asarray(gradient)[unused], 0.0)


@pytest.mark.once
@AS_COMPILED
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.sampled_from(INSTALLED),
    st.lists(st.tuples(coordinate, coordinate, depth), min_size=9, max_size=9),
)
def test_nasty_grids_match_the_reference(backend, points):
    vertices = np.array(points, np.float32).reshape(3, 3, 3)
    flat, faces = scenes.flatten(vertices)
    covered, gradient = draw_nasty_grid(vertices, backend)
    slow = reference.render_depth(flat, faces, NASTY_SIZE, background=3.0)
    np.testing.assert_array_equal(covered, slow.covered)
    assert not np.isnan(gradient).any()


@pytest.mark.once
@BACKENDS
def test_wide_faces_and_their_backs_are_told_apart_as_by_the_reference():
    # Coincident faces, whose nearness differs by its rounding if by anything.
    rng = np.random.default_rng(0)
    centre = rng.uniform(0, 200, (8, 1, 2))
    corners = centre + rng.normal(size=(8, 3, 2)) * 10 ** rng.uniform(2, 4, (8, 1, 1))
    depth = rng.uniform(0.5, 3.0, (8, 3, 1))
    vertices = np.concatenate([corners, depth], axis=-1).reshape(-1, 3)
    faces = np.arange(24, dtype=np.int32).reshape(-1, 3)
    both = np.concatenate([faces[::2, ::-1], faces, faces[1::2, ::-1]])
    assert_matches_reference(vertices.astype(np.float32), both, (160, 180))


@pytest.mark.once
@BACKENDS
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_traced_faces_out_of_range_draw_nothing(dtype):
    vertices = np.array([[0, 0, 1], [4, 0, 1], [0, 4, 1]], np.float32)
    beyond = 2**32 if dtype == np.int64 else 2**31 - 1
    faces = np.array([[0, 1, 3], [-1, 1, 2], [beyond, 1, 2], [0, 1, 2]], dtype)
    with jax.enable_x64(True):
        fragments = jax.jit(lambda f: rasterizer.rasterize(vertices, f, (5, 5)))(faces)
    assert set(np.unique(fragments.face_index)) == {-1, 3}


VERTICES = np.ones((4, 3), np.float32)
FACES = np.array([[0, 1, 2]], np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rasterizer.rasterize(VERTICES[:, :2], FACES, (4, 4)), "(4, 2)"),
        (lambda: rasterizer.rasterize(VERTICES[0], FACES, (4, 4)), "(3,)"),
        (lambda: rasterizer.rasterize(VERTICES, FACES[0], (4, 4)), "(3,)"),
        (lambda: rasterizer.rasterize(VERTICES, FACES + 2, (4, 4)), "2 to 4"),
        (lambda: rasterizer.rasterize(VERTICES, FACES * 1.0, (4, 4)), "float"),
        (
            lambda: rasterizer.rasterize(VERTICES.astype(np.int32), FACES, (4, 4)),
            "int32",
        ),
        (lambda: rasterizer.rasterize(VERTICES, FACES, (4,)), "(4,)"),
        (lambda: rasterizer.rasterize(VERTICES, FACES, (0, 4)), "(0, 4)"),
        (
            lambda: rasterizer.render_depth(
                VERTICES, FACES, (4, 4), background=1.0, supersample=0
            ),
            "supersample",
        ),
        (
            lambda: rasterizer.render_grid_depth(VERTICES, (4, 4), background=1.0),
            "(4, 3)",
        ),
        (
            lambda: rasterizer.interpolate(
                VERTICES[0], FACES, rasterizer.rasterize(VERTICES, FACES, (4, 4))
            ),
            "(3,)",
        ),
        (lambda: rasterizer.grid_faces(-1, 4), "(-1, 4)"),
        (
            lambda: rasterizer.rasterize(
                VERTICES, FACES, (4, 4), pixel_offset=(0.0, np.nan)
            ),
            "pixel_offset",
        ),
    ],
)
def test_errors_name_what_they_got(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
