"""Clipping: rays cast at the whole faces are the oracle, which need no clipping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rasterizer
from tests.rasterizer.test_gradients import numeric_gradient

SIZE = (9, 12)
NEAR = 0.2
CAMERA = rasterizer.perspective_camera(SIZE, fov_deg=80.0)
FACES = np.arange(18, dtype=np.int32).reshape(-1, 3)


@pytest.fixture(autouse=True)
def optimised():
    """Not here: what is compared is compared within one program's reach."""


def rays(size=SIZE):
    """(H, W, 3), of depth 1."""
    y, x = np.mgrid[: size[0], : size[1]]
    focal, centre = (np.asarray(v, np.float64) for v in (CAMERA.focal, CAMERA.centre))
    x, y = (x - centre[0]) / focal[0], (y - centre[1]) / focal[1]
    return np.stack([x, y, np.ones(size)], axis=-1)


def hits(corners):
    """Where rays meet the plane of a face (3, 3): weights of its corners, and depth."""
    with np.errstate(all="ignore"):
        share = rays() @ np.linalg.inv(corners.T).T
        total = share.sum(axis=-1)
        return share / total[..., None], 1.0 / total


def cast(points, faces):
    """Face, barycentrics, depth at each pixel; and where all this is clear."""
    index, where = np.full(SIZE, -1), np.zeros((*SIZE, 3))
    depth, clear = np.full(SIZE, np.inf), np.ones(SIZE, bool)
    for number, face in enumerate(faces):
        corners = points[face].astype(np.float64)
        if not np.isfinite(corners).all():
            continue
        if np.linalg.cond(corners) > 1e3:  # seen from the side, or a sliver
            clear &= ~(abs(np.linalg.det(corners)) > 0)
            continue
        weights, z = hits(corners)
        low = weights.min(axis=-1)
        meets = (low >= 0) & (z > NEAR)
        clear &= (np.abs(low) > 0.02) & (np.abs(z - NEAR) > 0.005)
        behind = np.where(np.isfinite(depth), depth, 1e9)
        clear &= ~meets | (np.abs(z - behind) > 1e-3)
        nearer = meets & (z < depth)
        index[nearer], depth[nearer] = number, z[nearer]
        where[nearer] = weights[nearer]
    return index, where, depth, clear


def draw(points, faces=FACES, size=SIZE, **options):
    clipped = rasterizer.clip_near(points, faces, near=NEAR)
    vertices = rasterizer.to_pixels(clipped.points, CAMERA)
    fragments = rasterizer.rasterize(vertices, clipped.faces, size, **options)
    return rasterizer.unclip(fragments, clipped)


DRAW = jax.jit(partial(draw, backend="xla"))


def crowd(seed):
    """Six faces on all sides of the camera, (18, 3)."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform([-1, -1, 0], [1, 1, 2], (6, 1, 3))
    points = middle + rng.normal(size=(6, 3, 3)) * [1.5, 1.5, 1.0]
    return points.astype(np.float32).reshape(-1, 3)


@pytest.mark.once
@given(
    st.integers(0, 10**6),
    st.sampled_from(["none", "on the plane", "nan", "far behind", "at the eye"]),
    st.integers(0, 17),
)
@settings(max_examples=40, deadline=None)
def test_clipped_meshes_match_rays(seed, nasty, which):
    points = crowd(seed)
    if nasty != "none":
        points[which] = {
            "on the plane": [*points[which, :2], NEAR],
            "nan": [0.0, np.nan, 1.0],
            "far behind": [3.0, -2.0, -1e4],
            "at the eye": [0.0, 0.0, 0.0],
        }[nasty]
    index, where, depth, clear = cast(points, FACES)
    got = DRAW(points)
    np.testing.assert_array_equal(np.asarray(got.face_index)[clear], index[clear])
    drawn = clear & (index >= 0)
    np.testing.assert_allclose(got.depth[drawn], depth[drawn], rtol=2e-3)
    np.testing.assert_allclose(got.barycentrics[drawn], where[drawn], atol=2e-3)
    assert np.isfinite(got.barycentrics).all()


def test_the_crowd_is_cut_in_every_way():
    before = np.stack([crowd(s).reshape(-1, 3, 3)[..., 2] > NEAR for s in range(40)])
    assert set(before.sum(axis=-1).ravel()) == {0, 1, 2, 3}
    pixels = [cast(crowd(s), FACES) for s in range(9)]
    assert np.mean([p[3] for p in pixels]) > 0.5
    assert np.mean([p[0] >= 0 for p in pixels]) > 0.3


@pytest.mark.once_by_list
def test_without_a_vertex_behind_nothing_changes(backend):
    points = crowd(3)
    points[:, 2] = np.abs(points[:, 2]) + 0.3
    points[4] = np.nan
    faces = np.concatenate([FACES, FACES[:2], FACES[::-1, ::-1]])  # with ties
    got = jax.jit(partial(draw, faces=faces, backend=backend))(points)
    vertices = rasterizer.to_pixels(points, CAMERA)
    plain = rasterizer.rasterize(vertices, faces, SIZE, backend=backend)
    for ours, theirs in zip(got, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (plain.face_index >= 0).any()


@pytest.mark.once
def test_a_cut_floor_has_no_cracks():
    # Below the camera, from far behind to far before it; 3 x 3 cells.
    x, z = np.meshgrid(np.linspace(-9, 9, 4), np.linspace(-5, 9, 4))
    points = np.stack([x, np.full(x.shape, 0.7), z], -1).astype(np.float32)
    faces = rasterizer.grid_faces(4, 4)
    got = jax.jit(partial(draw, faces=faces, backend="xla"))(points.reshape(-1, 3))
    index, _, depth, _ = cast(points.reshape(-1, 3), faces)
    below = rays()[..., 1] > 0.1
    assert (got.face_index[below] >= 0).all() and (index[below] >= 0).all()
    np.testing.assert_allclose(got.depth[below], depth[below], rtol=1e-3)
    uv = rasterizer.interpolate(points.reshape(-1, 3), faces, got)
    np.testing.assert_allclose(uv[below][:, 2], got.depth[below], rtol=1e-3)


def test_gradients_flow_through_the_cut():
    rng = np.random.default_rng(0)
    points, attributes = crowd(3).astype(np.float64), rng.normal(size=(18, 2))
    weight = rng.normal(size=(*SIZE, 3))
    with jax.enable_x64(True):
        index = np.asarray(DRAW(points).face_index)
        drawn = index >= 0
        cut = (points.reshape(-1, 3, 3)[index[drawn], :, 2] <= NEAR).any(axis=-1)
        assert cut.mean() > 0.3
        # Where snapping puts a pixel's centre outside its face, weights are clipped.
        inside = np.zeros(SIZE, bool)
        for face in np.unique(index[drawn]):
            low = hits(points[FACES[face]])[0].min(axis=-1)
            inside |= (index == face) & (low > 1e-3)

        def slow(points, attributes):
            total = 0.0
            for face in np.unique(index[drawn]):
                where, depth = hits(points[FACES[face]])
                values = where @ attributes[FACES[face]]
                values = np.concatenate([values, depth[..., None]], axis=-1)
                total += np.sum((weight * values)[inside & (index == face)])
            return total

        @jax.jit
        @partial(jax.grad, argnums=(0, 1))
        def gradient(points, attributes):
            found = draw(points, backend="xla")
            values = rasterizer.interpolate(attributes, FACES, found)
            depth = jnp.where(inside, found.depth, 0.0)[..., None]
            values = jnp.concatenate([values, depth], axis=-1)
            return jnp.sum(jnp.where(inside[..., None], weight * values, 0.0))

        by_point, by_attribute = gradient(points, attributes)
    expected = numeric_gradient(lambda p: slow(p, attributes), points)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(by_point, expected, atol=1e-6 * scale)
    expected = numeric_gradient(lambda a: slow(points, a), attributes)
    np.testing.assert_allclose(by_attribute, expected, atol=1e-6)


def test_bad_vertices_leave_gradients_of_the_others_alone():
    points = crowd(3)
    points[[2, 7]] = [[np.nan, 0, 1], [0, 0, np.inf]]
    points[9:12] = [[0, 0, -1], [1, 0, -1], [0, 1, -2]]

    @jax.jit
    @jax.grad
    def gradient(points):
        found = draw(points, backend="xla")
        values = rasterizer.interpolate(points, FACES, found)
        return jnp.sum(values) + jnp.sum(jnp.where(values != 0, values, 0.0) ** 2)

    found = gradient(points)
    assert np.isfinite(found).all() and np.abs(found).max() > 0
    np.testing.assert_array_equal(found[6:12], 0.0)


@pytest.mark.once
def test_a_batch_is_clipped_member_by_member():
    points = np.stack([crowd(3), crowd(4)])
    together, mapped = DRAW(points), jax.jit(jax.vmap(DRAW))(points)
    for ours, theirs, first in zip(together, mapped, DRAW(points[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        np.testing.assert_allclose(ours[0], first, rtol=1e-6)
    # Indices that are not known until the program runs: one out of range draws nothing.
    traced = DRAW(points, np.concatenate([FACES, [[0, 1, 99]]]))
    np.testing.assert_array_equal(traced.face_index, together.face_index)


def test_bad_arguments_are_named():
    points = np.ones((3, 3), np.float32)
    for near in (0.0, -1.0, np.nan, np.inf, "close"):
        with pytest.raises(ValueError, match="near"):
            rasterizer.clip_near(points, [[0, 1, 2]], near=near)  # pyright: ignore
    clipped = rasterizer.clip_near(points[None], [[0, 1, 2]], near=1.0)
    empty = rasterizer.Fragments(np.zeros((2, 4, 4), int), None, None)  # pyright: ignore
    with pytest.raises(ValueError, match="leading axes"):
        rasterizer.unclip(empty, clipped)
    none = rasterizer.clip_near(points, np.zeros((0, 3), int), near=1.0)
    fragments = rasterizer.rasterize(none.points, none.faces, (2, 2))
    assert (rasterizer.unclip(fragments, none).face_index == -1).all()
