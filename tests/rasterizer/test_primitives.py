"""Culling, depth range, normals, textures, antialiasing: laws, oracles, gradients."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer import reference
from rasterizer.antialias import edge_neighbours
from tests.rasterizer import scenes
from tests.rasterizer.test_gradients import numeric_gradient

SIZE = (11, 13)
AS_COMPILED = pytest.mark.usefixtures("as_compiled")


@pytest.fixture(autouse=True)
def optimised():
    """Not here, but where faces are compared: these tests compile for minutes."""


# --- which faces are drawn --------------------------------------------------------


@AS_COMPILED
@pytest.mark.parametrize("cull", ["none", "back", "front"])
def test_culling_matches_the_reference(cull):
    vertices, faces = scenes.soup(7, count=40, size=SIZE)
    vertices[0, :2] = [-4e4, 3.0]  # a face that needs wide arithmetic
    fast = rasterizer.rasterize(vertices, faces, SIZE, cull=cull)
    slow = reference.rasterize(vertices, faces, SIZE, cull=cull)
    np.testing.assert_array_equal(fast.face_index, slow.face_index)
    assert (slow.face_index >= 0).any()


@AS_COMPILED
def test_turning_a_face_round_turns_its_culling_round():
    vertices, faces = scenes.soup(3, count=30, size=SIZE)
    back = rasterizer.rasterize(vertices, faces, SIZE, cull="back").face_index
    front = rasterizer.rasterize(vertices, faces, SIZE, cull="front").face_index
    turned = rasterizer.rasterize(vertices, faces[:, ::-1], SIZE, cull="front")
    np.testing.assert_array_equal(back, turned.face_index)
    assert not np.intersect1d(back[back >= 0], front[front >= 0]).size


@pytest.mark.once
def test_a_depth_map_seen_from_the_front_faces_the_camera():
    vertices = scenes.grid(6, 7)
    options = {"background": 2.0}
    kept = rasterizer.render_grid_depth(vertices, (6, 7), cull="back", **options)
    gone = rasterizer.render_grid_depth(vertices, (6, 7), cull="front", **options)
    assert kept.covered.all() and not gone.covered.any()
    soft = {"sigma": 0.1, "gamma": 0.1, **options}
    flat, faces = scenes.flatten(vertices)
    kept = rasterizer.render_depth(flat, faces, (6, 7), cull="back", **soft)
    gone = rasterizer.render_depth(flat, faces, (6, 7), cull="front", **soft)
    # At the very outline soft coverage is a half.
    assert kept.depth[3, 3] < 1.1 and (gone.depth == 2.0).all()


@AS_COMPILED
def test_depth_range_matches_the_reference():
    vertices, faces = scenes.soup(5, count=40, size=SIZE)
    options = {"near": 0.9, "far": 2.2}
    fast = rasterizer.rasterize(vertices, faces, SIZE, **options)
    slow = reference.rasterize(vertices, faces, SIZE, **options)
    np.testing.assert_array_equal(fast.face_index, slow.face_index)
    drawn = np.unique(slow.face_index[slow.face_index >= 0])
    z = vertices[faces[drawn], 2]
    assert len(drawn) and z.min() > 0.9 and z.max() < 2.2


# --- normals ----------------------------------------------------------------------


def test_normals_of_a_sphere_point_outwards():
    angle, height = np.meshgrid(np.linspace(0, 2 * np.pi, 40)[:-1], np.arange(1, 20))
    polar = np.pi * height / 20
    points = np.stack(
        [
            np.sin(polar) * np.cos(angle),
            np.sin(polar) * np.sin(angle),
            np.cos(polar),
        ],
        -1,
    )
    faces = rasterizer.grid_faces(19, 39)
    normals = rasterizer.vertex_normals(points.reshape(-1, 3).astype(np.float32), faces)
    inner = np.s_[2:-2, 2:-2]
    dot = np.sum(np.asarray(normals).reshape(points.shape) * points, -1)[inner]
    assert np.abs(dot).min() > 0.99 and len(np.unique(np.sign(dot))) == 1
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0, rtol=1e-6)


def test_normals_match_a_loop_and_face_the_viewer():
    points = scenes.grid(5, 6)
    points[..., 2] += np.random.default_rng(0).normal(0, 0.2, (5, 6))
    flat, faces = scenes.flatten(points)
    expected = np.zeros(flat.shape)
    for a, b, c in faces:
        area = np.cross(flat[b] - flat[a], flat[c] - flat[a])
        for corner in (a, b, c):
            expected[corner] += area
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    normals = rasterizer.vertex_normals(flat, faces)
    np.testing.assert_allclose(normals, expected, atol=1e-6)
    assert (normals[:, 2] < 0).all()
    two = rasterizer.vertex_normals(np.stack([flat, flat * [1, 1, -1]]), faces)
    np.testing.assert_allclose(two[0], expected, atol=1e-6)


def test_normals_match_finite_differences():
    points = scenes.grid(3, 4).astype(np.float64)
    points += np.random.default_rng(1).normal(0, 0.2, points.shape)
    flat, faces = scenes.flatten(points)
    weight = np.random.default_rng(2).normal(size=flat.shape)
    with jax.enable_x64(True):
        total = jax.jit(lambda p: jnp.sum(weight * rasterizer.vertex_normals(p, faces)))
        gradient = jax.grad(total)(flat)
        np.testing.assert_allclose(gradient, numeric_gradient(total, flat), atol=1e-7)


@pytest.mark.once
def test_normals_survive_bad_points_and_lonely_vertices():
    points = np.array(
        [[0, 0, 1], [1, 0, 1], [0, 1, 1], [np.nan, 1, 1], [5, 5, 5]], np.float32
    )
    faces = np.array([[0, 2, 1], [1, 2, 3], [0, 0, 1]], np.int32)

    def total(p):
        return jnp.sum(rasterizer.vertex_normals(p, faces) ** 3)

    normals = rasterizer.vertex_normals(points, faces)
    np.testing.assert_allclose(normals[:3], [[0, 0, -1]] * 3, atol=1e-7)
    np.testing.assert_array_equal(normals[3:], 0.0)
    gradient = jax.grad(total)(points)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[3:], 0.0)
    tiny = rasterizer.vertex_normals(points[:3] * np.float32(1e-18), faces[:1])
    np.testing.assert_allclose(np.linalg.norm(tiny, axis=-1), 1.0, rtol=1e-5)


# --- textures ---------------------------------------------------------------------


def slow_lookup(texture, u, v, filter, wrap):
    """One value, step by step."""
    height, width = texture.shape[:2]

    def texel(i, j):
        if wrap == "repeat":
            return texture[i % height, j % width]
        return texture[np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]

    x, y = u * width - 0.5, v * height - 0.5
    if filter == "nearest":
        return texel(int(np.floor(y + 0.5)), int(np.floor(x + 0.5)))
    i, j = int(np.floor(y)), int(np.floor(x))
    s, t = x - j, y - i
    upper = (1 - s) * texel(i, j) + s * texel(i, j + 1)
    lower = (1 - s) * texel(i + 1, j) + s * texel(i + 1, j + 1)
    return (1 - t) * upper + t * lower


@pytest.mark.parametrize("filter", ["linear", "nearest"])
@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
def test_texture_lookup_matches_a_loop(filter, wrap):
    rng = np.random.default_rng(0)
    texture = rng.normal(size=(5, 7, 2)).astype(np.float32)
    uv = rng.uniform(-1.3, 2.3, (6, 8, 2)).astype(np.float32)
    uv[0, :4] = [[0, 0], [1, 1], [0.5 / 7, 0.5 / 5], [6.5 / 7, 4.5 / 5]]
    got = rasterizer.sample_texture(texture, uv, filter=filter, wrap=wrap)
    expected = np.array(
        [[slow_lookup(texture, u, v, filter, wrap) for u, v in row] for row in uv]
    )
    if filter == "nearest":  # a tie between texels may round either way
        places = uv * [7, 5]
        clear = np.abs(places - np.round(places)).min(-1) > 1e-4
        np.testing.assert_array_equal(np.asarray(got)[clear], expected[clear])
    else:
        np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(got[0, 2], texture[0, 0])
    np.testing.assert_array_equal(got[0, 3], texture[4, 6])


@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
def test_texture_gradients_match_finite_differences(wrap):
    rng = np.random.default_rng(1)
    texture = rng.normal(size=(4, 3, 2))
    uv = rng.uniform(-0.4, 1.4, (3, 5, 2))
    weight = rng.normal(size=(3, 5, 2))
    with jax.enable_x64(True):

        def total(t, uv):
            return jnp.sum(weight * rasterizer.sample_texture(t, uv, wrap=wrap))

        total = jax.jit(total)
        by_texture, by_uv = jax.grad(total, argnums=(0, 1))(texture, uv)
        numeric = numeric_gradient(lambda t: total(t, uv), texture)
        np.testing.assert_allclose(by_texture, numeric, atol=1e-7)
        numeric = numeric_gradient(lambda q: total(texture, q), uv)
        np.testing.assert_allclose(by_uv, numeric, atol=1e-6)


@pytest.mark.once
def test_texture_lookup_survives_nasty_coordinates():
    texture = np.arange(12.0, dtype=np.float32).reshape(3, 4, 1)
    uv = np.full((1, 6, 2), 0.4, np.float32)
    uv[0, :, 0] = [np.nan, np.inf, -np.inf, 1e30, -1e30, 0.4]

    for wrap in ("clamp", "repeat"):
        look = partial(rasterizer.sample_texture, wrap=wrap)
        value, pull = jax.vjp(look, texture, uv)
        assert np.isfinite(value).all()
        by_texture, by_uv = pull(jnp.ones_like(value))
        assert np.isfinite(by_texture).all() and np.isfinite(by_uv).all()
        np.testing.assert_array_equal(by_uv[0, :3, 0], 0.0)


def test_one_texture_serves_a_batch():
    texture = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    uv = np.random.default_rng(1).random((2, 5, 6, 2), np.float32)
    both = rasterizer.sample_texture(texture, uv)
    each = jax.vmap(rasterizer.sample_texture, (None, 0))(texture, uv)
    np.testing.assert_allclose(both, each, rtol=1e-6)


# --- antialiasing -----------------------------------------------------------------


def square(x0, y0, x1, y1):
    """Two triangles, and their faces."""
    corners = [[x0, y0, 1], [x1, y0, 1], [x0, y1, 1], [x1, y1, 1]]
    return np.array(corners, np.float64), rasterizer.grid_faces(2, 2)


def paint(vertices, faces, size=SIZE, colours=None):
    """White (or one colour a face) on black, antialiased."""
    fragments = rasterizer.rasterize(vertices, faces, size)
    drawn = fragments.face_index >= 0
    if colours is None:
        colour = drawn[..., None].astype(vertices.dtype)
    else:
        colour = jnp.asarray(colours)[jnp.where(drawn, fragments.face_index, 0)]
        colour = jnp.where(drawn[..., None], colour, 0.0)
    return rasterizer.antialias(colour, fragments, vertices, faces)


@pytest.mark.once
def test_antialiased_square_has_the_area_of_the_square():
    vertices, faces = square(2.3, 3.4, 8.9, 7.2)
    with jax.enable_x64(True):
        # Away from the corners the coverage of every pixel is exact.
        image, pull = jax.vjp(jax.jit(lambda v: paint(v, faces)[..., 0]), vertices)
        np.testing.assert_allclose(image[5, 2:10], [0.2] + [1] * 6 + [0.4], atol=1e-9)
        np.testing.assert_allclose(image[3:8, 5], [0.1, 1, 1, 1, 0.7], atol=1e-9)
        (gradient,) = pull(jnp.zeros(SIZE).at[5].set(1.0))
    # A row gains as much as its right side moves out: its two ends share the move.
    np.testing.assert_allclose(gradient[[1, 3], 0].sum(), 1.0, atol=1e-9)
    np.testing.assert_allclose(gradient[[0, 2], 0].sum(), -1.0, atol=1e-9)
    np.testing.assert_array_equal(gradient[:, 2], 0.0)


@jax.jit
def paint_triangle(vertices):
    return paint(vertices, np.array([[0, 1, 2]], np.int32), (12, 13))[..., 0]


@pytest.mark.parametrize("slope", [0.3, -0.7, 1.9])
def test_a_slanted_edge_covers_the_area_under_it(slope):
    # A half plane through the middle; pixels far from the image's border.
    edge = np.array([[6.2 - 50, 5.3 - 50 * slope], [6.2 + 50, 5.3 + 50 * slope]])
    vertices = np.concatenate([[*edge, [6.2 - 60 * slope, 65.0]], np.ones((3, 1))], 1)
    with jax.enable_x64(True):
        image = np.asarray(paint_triangle(vertices))
    y, x = np.mgrid[:12:0.02, :13:0.02] - 0.49
    inside = y - 5.3 > slope * (x - 6.2)
    area = inside.reshape(12, 50, 13, 50).mean(axis=(1, 3))
    # The blend is exact along columns for flat edges, along rows for steep ones.
    axis = 0 if abs(slope) <= 1 else 1
    got, expected = image.sum(axis=axis), area.sum(axis=axis)
    np.testing.assert_allclose(got[3:-3], expected[3:-3], atol=0.03)


def test_antialiasing_matches_finite_differences():
    vertices = np.array(
        [
            [1.3, 0.8, 1.0], [9.7, 2.6, 1.2], [3.1, 8.9, 1.1],
            [0.4, 6.1, 2.0], [11.3, 4.7, 2.0], [8.2, 10.1, 2.0],
        ]
    )  # fmt: skip
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    rng = np.random.default_rng(0)
    colours, weight = rng.random((2, 2)), rng.normal(size=(*SIZE, 2))
    with jax.enable_x64(True):
        # One program for the differences as well.
        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1))
        def total(v, c):
            return jnp.sum(weight * paint(v, faces, SIZE, colours=c))

        by_vertex, by_colour = total(vertices, colours)[1]
        numeric = numeric_gradient(lambda v: total(v, colours)[0], vertices)
        np.testing.assert_allclose(by_vertex, numeric, atol=1e-6)
        assert np.abs(numeric[:, :2]).min() > 1e-3
        numeric = numeric_gradient(lambda c: total(vertices, c)[0], colours)
        np.testing.assert_allclose(by_colour, numeric, atol=1e-6)


@AS_COMPILED
def test_inner_edges_are_left_alone():
    vertices = scenes.warped_grid(0, 8, 8)
    vertices[..., :2] = scenes.grid(8, 8)[..., :2] * 2.2 - 1.7
    flat, faces = scenes.flatten(vertices)
    fragments = rasterizer.rasterize(flat, faces, SIZE)
    assert (fragments.face_index >= 0).all()
    colour = np.random.default_rng(0).random((*SIZE, 3), np.float32)
    smooth = rasterizer.antialias(colour, fragments, flat, faces)
    np.testing.assert_array_equal(smooth, colour)


def test_neighbours_across_edges():
    faces = np.array([[0, 1, 2], [2, 1, 3], [1, 0, 4], [5, 6, 7], [0, 1, 8]])
    found = edge_neighbours(faces)
    # Three faces meet at the edge 0-1: no one neighbour.
    np.testing.assert_array_equal(
        found, [[-1, 1, -1], [0, -1, -1], [-1, -1, -1], [-1] * 3, [-1] * 3]
    )
    assert edge_neighbours(np.zeros((0, 3), np.int32)).shape == (0, 3)


@pytest.mark.once
def test_antialiasing_survives_nasty_meshes_and_batches():
    rng = np.random.default_rng(0)
    vertices = rng.uniform(-3, 15, (2, 12, 3)).astype(np.float32)
    vertices[..., 2] = rng.uniform(1, 2, (2, 12))
    vertices[0, 3], vertices[1, 5, 2] = np.nan, -1.0
    faces = rng.integers(0, 12, (14, 3)).astype(np.int32)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def draw(v):
        image = paint(v, faces)
        return jnp.sum(image**2), image

    gradient, image = draw(vertices)
    assert np.isfinite(image).all() and image.min() >= -1e-6 and image.max() <= 2.0
    for k in range(2):
        np.testing.assert_allclose(image[k], draw(vertices[k])[1], atol=1e-6)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    np.testing.assert_array_equal(gradient[0, 3], 0.0)


# --- all together -----------------------------------------------------------------


def test_colour_gradients_leave_no_addition_to_a_race():
    points = scenes.warped_grid(2, 5, 5)
    flat, faces = scenes.flatten(points)
    texture = np.ones((4, 4, 3), np.float32)

    def loss(v, texture):
        fragments = rasterizer.rasterize(v, faces, (6, 6))
        uv = rasterizer.interpolate(v[..., :2] / 6, faces, fragments)
        colour = rasterizer.sample_texture(texture, uv)
        normal = rasterizer.vertex_normals(v, faces)
        colour += rasterizer.interpolate(normal, faces, fragments)
        return rasterizer.antialias(colour, fragments, v, faces).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(flat, texture)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        updates = re.findall(r'"stablehlo.scatter".*?stablehlo.return', text, re.S)
        assert not any("stablehlo.add" in update for update in updates)


FRAGMENTS_OF = partial(rasterizer.rasterize, size=(4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, f: FRAGMENTS_OF(v, f, cull="both"), "'both'"),
        (lambda v, f: FRAGMENTS_OF(v, f, near=2.0, far=1.0), "near=2.0"),
        (lambda v, f: rasterizer.vertex_normals(v[:, :2], f), "(4, 2)"),
        (lambda v, f: rasterizer.sample_texture(v, v), "(4, 3)"),
        (
            lambda v, f: rasterizer.sample_texture(np.ones((2, 2, 1)), np.ones((4, 3))),
            "(4, 3)",
        ),
        (
            lambda v, f: rasterizer.sample_texture(
                np.ones((2, 2, 1)), np.ones((4, 3, 2)), wrap="mirror"
            ),
            "'mirror'",
        ),
        (
            lambda v, f: rasterizer.antialias(
                np.ones((5, 4, 3)), FRAGMENTS_OF(v, f), v, f
            ),
            "(5, 4, 3)",
        ),
        (
            lambda v, f: jax.jit(
                lambda f: rasterizer.antialias(
                    np.ones((4, 4, 3)), FRAGMENTS_OF(v, f), v, f
                )
            )(f),
            "traced",
        ),
    ],
)
def test_errors_name_what_they_got(call, message):
    vertices, faces = np.ones((4, 3), np.float32), np.array([[0, 1, 2]], np.int32)
    with pytest.raises(ValueError, match=re.escape(message)):
        call(vertices, faces)
