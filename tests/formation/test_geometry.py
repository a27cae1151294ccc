"""Laws of the camera, the viewpoint and normals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from unsup3d_jax.formation import geometry

FOV = 10.0
# One program each: op by op they would compile for long.
rotation_matrix = jax.jit(geometry.rotation_matrix)
depth_to_points, depth_to_normals, project, transform, inverse_transform = (
    jax.jit(function, static_argnames=names)
    for function, names in (
        (geometry.depth_to_points, "fov_deg"),
        (geometry.depth_to_normals, ("fov_deg", "norm_epsilon")),
        (geometry.project, ("size", "fov_deg")),
        (geometry.transform, "centre_depth"),
        (geometry.inverse_transform, "centre_depth"),
    )
)


def _depth(seed=0, shape=(6, 8)):
    return jax.random.uniform(jax.random.key(seed), shape, minval=0.9, maxval=1.1)


def test_focal_length_of_the_paper():
    assert geometry.focal_length(64, fov_deg=10.0) == pytest.approx(360.0467, abs=1e-3)


def test_corner_ray_opens_at_half_the_field_of_view():
    points = depth_to_points(jnp.full((3, 5), 2.0), fov_deg=10.0)
    edge = 2.0 * np.tan(np.radians(5.0))
    np.testing.assert_allclose(points[0, 0], [-edge, -edge / 2, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(points[1, 2], [0.0, 0.0, 2.0])


def test_projection_inverts_lifting():
    depth = _depth()
    points = depth_to_points(depth, fov_deg=FOV)
    pixels = project(points, depth.shape, fov_deg=FOV)
    v, u = np.mgrid[:6, :8]
    np.testing.assert_allclose(pixels, np.stack([u, v], -1), atol=1e-5)


@pytest.mark.parametrize(
    "axis, expected",
    [
        (0, [[1, 0, 0], [0, 0, 1], [0, -1, 0]]),  # x stays, y -> z, z -> -y
        (1, [[0, 0, -1], [0, 1, 0], [1, 0, 0]]),  # x -> -z, z -> x
        (2, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),  # x -> y, y -> -x
    ],
)
def test_each_axis_turns_right_handed(axis, expected):
    angles = jnp.zeros(3).at[axis].set(jnp.pi / 2)
    turned = rotation_matrix(angles) @ jnp.eye(3)
    np.testing.assert_allclose(turned.T, expected, atol=1e-6)


def test_rotation_applies_x_first_then_y_then_z():
    rx, ry, rz = (rotation_matrix(a) for a in 0.7 * jnp.eye(3))
    together = rotation_matrix(jnp.full(3, 0.7))
    np.testing.assert_allclose(together, rz @ ry @ rx, atol=1e-6)


def test_positive_yaw_moves_the_near_side_left_and_positive_pitch_down():
    nose = jnp.array([0.0, 0.0, 0.9])
    yaw = transform(nose, jnp.array([0, 0.3, 0, 0, 0, 0.0]), centre_depth=1.0)
    pitch = transform(nose, jnp.array([0.3, 0, 0, 0, 0, 0.0]), centre_depth=1.0)
    assert yaw[0] < -0.02 and abs(yaw[1]) < 1e-6
    assert pitch[1] > 0.02 and abs(pitch[0]) < 1e-6


def test_rotation_comes_before_translation_about_the_centre():
    centre = jnp.array([0.0, 0.0, 1.0])
    view = jnp.array([0.3, -0.5, 0.2, 0.01, 0.02, 0.03])
    moved = transform(centre, view, centre_depth=1.0)
    np.testing.assert_allclose(moved, centre + view[3:], atol=1e-6)


def test_inverse_undoes_the_transform():
    points = depth_to_points(_depth(), fov_deg=FOV)
    view = jnp.array([0.3, -0.5, 0.2, 0.01, 0.02, 0.03])
    there = transform(points, view, centre_depth=1.0)
    back = inverse_transform(there, view, centre_depth=1.0)
    np.testing.assert_allclose(back, points, atol=1e-6)


def test_normals_of_a_plane_point_away_from_the_camera():
    normals = depth_to_normals(jnp.full((5, 5), 1.0), fov_deg=FOV)
    np.testing.assert_allclose(normals, np.tile([0, 0, 1.0], (5, 5, 1)), atol=1e-6)


def test_normals_lean_against_the_depth_gradient():
    slope = jnp.tile(1.0 + 0.001 * jnp.arange(9.0), (9, 1))
    right = depth_to_normals(slope, fov_deg=FOV)[4, 4]
    down = depth_to_normals(slope.T, fov_deg=FOV)[4, 4]
    assert right[0] < -0.02 and abs(right[1]) < 1e-3
    assert down[1] < -0.02 and abs(down[0]) < 1e-3


def test_normals_agree_with_an_analytic_plane():
    # The plane n . P = c with n = (0.3, -0.2, 1)/|.|, lifted exactly.
    n = np.array([0.3, -0.2, 1.0])
    rays = np.asarray(depth_to_points(jnp.ones((7, 9)), fov_deg=FOV), float)
    depth = jnp.asarray(1.0 / (rays @ n), jnp.float32)
    normals = depth_to_normals(depth, fov_deg=FOV)[1:-1, 1:-1]
    expected = np.broadcast_to(n / np.linalg.norm(n), normals.shape)
    np.testing.assert_allclose(normals, expected, atol=2e-4)


def test_normals_are_unit_and_the_epsilon_shortens_them():
    depth = _depth(shape=(64, 64)) * 0.01 + 1.0
    unit = depth_to_normals(depth, fov_deg=FOV)
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), 1.0, atol=1e-5)
    plane = jnp.ones((64, 64))
    short = depth_to_normals(plane, fov_deg=FOV, norm_epsilon=1e-7)
    assert 0.996 < float(jnp.linalg.norm(short[9, 9])) < 0.9975


def test_gradients_match_finite_differences():
    lift = partial(depth_to_normals, fov_deg=FOV)
    with jax.enable_x64(True):
        depth = jnp.asarray(np.random.default_rng(0).uniform(0.99, 1.01, (5, 6)))
        check_grads(lift, (depth,), order=1, modes=["rev"], eps=1e-7, rtol=1e-4)
        view = jnp.array([0.1, 0.2, -0.1, 0.01, 0.0, 0.02])
        points = depth_to_points(depth, fov_deg=FOV)
        move = partial(transform, centre_depth=1.0)
        check_grads(move, (points, view), order=1, modes=["rev"])


def test_zero_depth_gives_finite_normals_and_gradients():
    def total(depth):
        return depth_to_normals(depth, fov_deg=FOV).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(jnp.zeros((5, 5)))).all()


@pytest.mark.parametrize("shape, fov", [((4, 1), 10.0), ((4, 4), 0.0), ((4, 4), 180.0)])
def test_bad_cameras_are_refused(shape, fov):
    with pytest.raises(ValueError, match="fov_deg"):
        depth_to_points(jnp.ones(shape), fov_deg=fov)
