"""Normals against slow loops, and masks where the answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_faces
import stn_reference

from unsup3d_jax.stn3dmm import compat, layers, visibility

pytestmark = pytest.mark.once

SIZE, GRID = 56, 33


def _rough(grid, seed=0):
    """A bumpy sheet, turned until half of it faces away; float64."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, grid), np.linspace(1, -1, grid))
    z = rng.normal(size=x.shape) * 2 / grid
    points = np.stack([x, y, z], -1).reshape(-1, 3)
    return points @ stn_reference.rotation([0.3, 1.4, -0.2]).T


@jax.jit
def _both_normals(points):
    grid = round(len(points) ** 0.5)
    return (
        visibility.vertex_normals(points, grid),
        compat.vertex_normals(points, grid),
    )


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_normals_are_the_sums_of_the_slow_program(dtype, rtol):
    points = _rough(7)
    with jax.enable_x64(dtype == np.float64):
        got = _both_normals(jnp.asarray(points, dtype))
    for normals, last_write in zip(got, (False, True), strict=True):
        expected = stn_reference.vertex_normals(points, 7, last_write=last_write)
        np.testing.assert_allclose(normals, expected, rtol=rtol, atol=10 * rtol)
        np.testing.assert_array_equal(
            np.asarray(normals)[:, 2] >= 0, expected[:, 2] >= 0
        )


def test_only_on_rough_meshes_do_the_two_sums_see_differently():
    rough = _rough(GRID).astype(np.float32)
    full, last = (np.asarray(n)[:, 2] >= 0 for n in _both_normals(rough))
    assert 0.005 < (full != last).mean() < 0.3
    smooth = np.asarray(stn_faces.face(GRID).mean)
    full, last = (np.asarray(n)[:, 2] >= 0 for n in _both_normals(smooth))
    assert full.all() and last.all()


def test_degenerate_triangles_have_no_normal_and_no_nan():
    flat = jnp.zeros((25, 3))
    with jax.debug_nans(True):
        normals = _both_normals(flat)
    assert all((np.asarray(n) == 0).all() for n in normals)


# --- a sphere: exactly its front half -------------------------------------------------


def _sphere(grid):
    """Longitudes to the right, latitudes down; the seam at the back, float64."""
    east = np.linspace(-np.pi, np.pi, grid)[None]
    north = np.linspace(np.pi / 2, -np.pi / 2, grid)[:, None]
    x, y, z = np.cos(north) * np.sin(east), np.sin(north), np.cos(north) * np.cos(east)
    return np.stack([x, y + 0 * x, z], -1).reshape(-1, 3)


@partial(jax.jit, static_argnames=("camera", "mode", "grid", "size"))
def _mask(points, vector, camera, mode, grid=GRID, size=SIZE):
    theta = layers.split(vector)
    turned = layers.turn(points, theta.rotation)
    pixels = layers.project(turned, theta, camera, size)
    pose = layers.Posed(turned, pixels, pixels[:1], turned[:1])
    return visibility.visibility(
        pose, theta, camera, mode=mode, grid=grid, image_size=size
    )


@pytest.mark.parametrize(
    "perspective", [pytest.param(0.0, marks=pytest.mark.once), 0.25]
)
@pytest.mark.parametrize("mode", visibility.MODES)
def test_of_a_sphere_exactly_the_front_half_is_seen(mode, perspective):
    points = _sphere(GRID)
    camera = layers.Camera(0.8, (0.1, 0.0), perspective=perspective)
    vector = np.array([0.4, 1.0, -0.3, 0.05, 0.0, 0.05])
    mask = np.asarray(
        _mask(
            *(jnp.asarray(a, jnp.float32) for a in (points, vector)),
            camera,
            mode,
        )
    ).ravel()
    # A point of the unit sphere is seen if n . (camera - n) > 0.
    turned = points @ stn_reference.rotation(vector[:3]).T
    ahead = turned[:, 2]
    if perspective:
        s = camera.scale * np.exp(vector[5])
        centre = (vector[3:5] + camera.offset) / -s
        eye = np.array([*centre, 1 / (perspective * s)])
        ahead = (turned @ eye - 1) / np.linalg.norm(eye)
    # Triangles are as wide as 1 / 10: at the rim itself they may face either way, and
    # at the poles, where they are slivers.
    sure = (np.abs(ahead) > 0.1) & (np.abs(points[:, 1]) < 0.99)
    assert sure.mean() > 0.75
    np.testing.assert_array_equal((mask >= 0.5)[sure], (ahead > 0)[sure])


# --- two sheets: what hides what ------------------------------------------------------


def _step():
    """A sheet whose right half, as seen from 45 degrees, hides part of the left."""
    x, y = np.meshgrid(np.linspace(-1, 1, GRID), np.linspace(1, -1, GRID))
    ridge = np.exp(-((x / 0.08) ** 2))
    return np.stack([x, y, 0.8 * ridge], -1).reshape(-1, 3)


@pytest.mark.parametrize(
    "perspective", [pytest.param(0.0, marks=pytest.mark.once), 0.1]
)
def test_the_z_buffer_removes_what_a_ridge_hides_and_facing_keeps_it(perspective):
    camera = layers.Camera(0.7, (0.0, 0.0), perspective=perspective)
    points = jnp.asarray(_step(), jnp.float32)
    yaw = np.radians(45)
    # The ridge's top comes to the right: it hides what lies right of it.
    vector = jnp.asarray([0, yaw, 0, 0, 0, 0], jnp.float32)
    facing, exact, soft = (
        np.asarray(_mask(points, vector, camera, mode)) for mode in visibility.MODES
    )
    middle = GRID // 2
    columns = np.linspace(-1, 1, GRID)
    # Light from the viewer grazes the top (0, 0.8) and falls at x = 0.8 tan(45).
    shadow = (columns > 0.25) & (columns < 0.65)
    lit = (columns < -0.25) | (columns > 0.95)
    assert (facing[middle, shadow] == 1).all()
    assert (exact[middle, shadow] == 0).all()
    assert (exact[middle, lit] == 1).all()
    np.testing.assert_array_equal(soft >= 0.5, exact == 1)
    straight = jnp.zeros(6)
    for mode in visibility.MODES:
        assert (np.asarray(_mask(points, straight, camera, mode)) >= 0.5).all()


@pytest.mark.once
def test_a_hidden_vertex_is_seen_the_more_the_nearer_it_comes():
    camera = layers.Camera(0.7, (0.0, 0.0))
    points = jnp.asarray(_step(), jnp.float32)
    column = int(np.argmin(np.abs(np.linspace(-1, 1, GRID) - 0.5)))
    hidden = GRID // 2 * GRID + column
    vector = jnp.asarray([0, np.radians(45), 0, 0, 0, 0], jnp.float32)
    nearer = jnp.array([-1.0, 0.0, 1.0]) / np.sqrt(2.0)  # in the model's frame

    @jax.jit
    @jax.value_and_grad
    def seen(lift):
        lifted = points.at[hidden].add(lift * nearer)
        return _mask(lifted, vector, camera, "soft").ravel()[hidden]

    low, high = 0.0, 1.0
    assert seen(low)[0] < 1e-6 and seen(high)[0] > 0.5
    for _ in range(14):
        middle = (low + high) / 2
        value, slope = seen(middle)
        assert np.isfinite(slope) and slope >= 0.0
        low, high = (middle, high) if value < 0.3 else (low, middle)
        if 0.1 < value < 0.9:
            break
    assert 0.1 < value < 0.9 and slope > 1.0


@pytest.mark.once
@pytest.mark.parametrize("perspective", [0.0, 0.1])
def test_faces_without_size_or_out_of_sight_make_no_nan(perspective):
    model, camera = stn_faces.face(5, 2), stn_faces.camera(perspective)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 8)) * [2, 2, 2, 3, 3, 3, 3, 3]
    vectors[:8, 5] = -500.0
    vectors[8:16, 3] = 1e4
    vectors[16:24, 5] = 500.0
    vectors[24:32, :3] *= np.pi / np.linalg.norm(vectors[24:32, :3], axis=1)[:, None]

    def total(vector):
        theta = layers.split(vector)
        pose = layers.posed(model, theta, camera, image_size=12)
        return jnp.sum(visibility.soft(pose, theta, camera, grid=5, image_size=12))

    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(total)))(
        jnp.asarray(vectors, jnp.float32)
    )
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


def test_the_background_beside_a_silhouette_uncovers_nothing():
    depth = jnp.array([[2.0, 9.0], [3.0, 9.0]])
    covered = jnp.array([[True, False], [True, False]])
    pixels = jnp.array([[0.5, 0.5], [0.2, -0.5], [1.5, 0.5], [-5.0, 1.0]])
    got = visibility._farthest_tap(depth, covered, pixels)
    np.testing.assert_array_equal(got, [3.0, 2.0, 0.0, 0.0])


def test_inside_wants_all_taps_in_the_image():
    pixels = jnp.array([[0.0, 0.0], [-0.01, 3.0], [7.0, 7.0], [7.01, 3.0]])
    got = visibility.inside(pixels, 2, 8)
    np.testing.assert_array_equal(got, [[True, False], [True, False]])


def test_unknown_modes_and_wrong_grids_are_named(unchecked):
    model, camera = stn_faces.face(5), stn_faces.camera()
    theta = layers.split(jnp.zeros(10))
    pose = layers.Posed(model.mean, model.mean[:, :2], model.mean, model.mean)
    with pytest.raises(ValueError, match="'facing', 'zbuffer', 'soft'"):
        visibility.visibility(pose, theta, camera, mode="ray", grid=5, image_size=9)
    with pytest.raises(ValueError, match="got 25 and grid=4"):
        visibility.facing(model.mean, 4)
