"""Forward warp and reprojection: laws that break with a sign or half a pixel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defaults import options

from unsup3d_jax.formation import geometry, reprojection

SCENE = options(raster__supersample=1).scene
SIZE = 32
# One program each: op by op they would compile for long.
reproject = jax.jit(reprojection.reproject, static_argnames="scene")
warp_depth = jax.jit(reprojection.warp_depth, static_argnames="scene")


def _view(**angles):
    names = ("rx", "ry", "rz", "tx", "ty", "tz")
    return jnp.array([[angles.get(n, 0.0) for n in names]])


def _bump(height=0.06, width=0.4):
    v, u = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    return jnp.asarray(
        1.03 - height * np.exp(-(u**2 + v**2) / (2 * width**2)), jnp.float32
    )[None]


def test_the_identity_view_returns_depth_and_image():
    depth = _bump()
    image = jax.random.uniform(jax.random.key(0), (1, SIZE, SIZE, 3))
    out = reproject(image, depth, _view(), SCENE)
    assert out.valid.all()
    np.testing.assert_allclose(out.depth, depth, atol=1e-6)
    # Positions are exact to 1e-4 px, so colours to that times the contrast.
    np.testing.assert_allclose(out.image, image, atol=1e-3)


def test_supersampling_keeps_the_identity_inside_the_border():
    depth = _bump()
    scene = options(raster__supersample=2).scene
    warped, valid = warp_depth(depth, _view(), scene)
    # Samples at +-1/4 pixel leave the mesh in the outermost ring only.
    assert valid[0, 1:-1, 1:-1].all() and not valid[0, 0].any()
    np.testing.assert_allclose(warped[0, 2:-2, 2:-2], depth[0, 2:-2, 2:-2], atol=1e-3)


def test_the_authors_half_pixel_shows_the_depth_to_the_right_and_below():
    ramp = jnp.tile(1.0 + 1e-3 * jnp.arange(SIZE, dtype=jnp.float32), (SIZE, 1))[None]
    scene = options(raster__supersample=2, compat__half_pixel_depth=True).scene
    warped, valid = warp_depth(ramp, _view(), scene)
    inside = slice(2, -2)
    np.testing.assert_allclose(
        warped[0, inside, inside] - ramp[0, inside, inside], 5e-4, atol=5e-5
    )
    # The mesh ends at the last pixel centre: last row and column are empty.
    assert valid[0, :-1, :-1].all()
    assert not valid[0, -1].any() and not valid[0, :, -1].any()


def test_sideways_translation_shifts_by_focal_length_over_depth():
    depth = jnp.ones((1, SIZE, SIZE))
    pixel = 1.0 / geometry.focal_length(SIZE, fov_deg=10.0)
    image = jax.random.uniform(jax.random.key(0), (1, SIZE, SIZE, 3))
    out = reproject(image, depth, _view(tx=3 * pixel, ty=2 * pixel), SCENE)
    np.testing.assert_allclose(out.image[0, 4:, 5:], image[0, 2:-2, 2:-3], atol=2e-2)
    assert not out.valid[0, :, :2].any() and not out.valid[0, :1].any()


def test_yaw_brings_the_nose_to_the_left_and_it_stays_nearest():
    # A white spot on the tip of a narrow bump is the nose.
    image = jnp.zeros((1, SIZE, SIZE, 3)).at[:, 15:17, 15:17].set(1.0)
    out = reproject(image, _bump(width=0.2), _view(ry=0.4), SCENE)
    white = np.where(out.valid[0], out.image[0, ..., 0], 0.0)
    row, column = (np.indices(white.shape) * white).sum((1, 2)) / white.sum()
    tip = jnp.array([0.0, 0.0, float(_bump(width=0.2).min())])
    moved = geometry.transform(tip, _view(ry=0.4)[0], centre_depth=1.0)
    expected = geometry.project(moved, (SIZE, SIZE), fov_deg=10.0)
    assert expected[0] < (SIZE - 1) / 2 - 1.5
    np.testing.assert_allclose([column, row], expected, atol=0.6)


def test_warped_points_lie_on_the_moved_surface():
    # A tilted plane moved rigidly is a plane: compare with its analytic depth.
    view = _view(rx=0.1, ry=0.25, tz=0.02)
    depth = jnp.ones((1, SIZE, SIZE))
    warped, valid = warp_depth(depth, view, SCENE)
    rotation = np.asarray(geometry.rotation_matrix(view[0, :3]), float)
    normal, centre = rotation[:, 2], np.array([0, 0, 1.02])
    rays = np.asarray(
        geometry.depth_to_points(jnp.ones((SIZE, SIZE)), fov_deg=10.0), float
    )
    expected = (normal @ centre) / (rays @ normal)
    assert valid.mean() > 0.7
    np.testing.assert_allclose(warped[0][valid[0]], expected[valid[0]], atol=2e-6)


def test_the_nearer_surface_hides_the_farther():
    # A near strip in front of a far plane, seen from the side.
    depth = jnp.full((1, SIZE, SIZE), 1.05).at[:, :, 14:18].set(0.92)
    warped, valid = warp_depth(depth, _view(ry=0.6), SCENE)
    far_only, _ = warp_depth(jnp.full_like(depth, 1.05), _view(ry=0.6), SCENE)
    both = np.asarray(valid[0])
    assert (np.asarray(warped - far_only)[0][both] < 1e-5).mean() > 0.95
    assert (np.asarray(far_only - warped)[0][both] > 0.02).sum() > 20


def test_mirrored_factors_give_the_mirrored_image():
    depth = _bump() + 0.01 * jax.random.uniform(jax.random.key(1), (1, SIZE, SIZE))
    image = jax.random.uniform(jax.random.key(0), (1, SIZE, SIZE, 3))
    view = _view(rx=0.1, ry=0.3, rz=0.1, tx=0.01, ty=0.01)
    mirrored_view = view * jnp.array([1, -1, -1, -1, 1, 1.0])
    out = reproject(image, depth, view, SCENE)
    twin = reproject(image[:, :, ::-1], depth[:, :, ::-1], mirrored_view, SCENE)
    # Cells split along one diagonal, which mirroring exchanges: noise of the
    # depth inside a cell may differ, smooth parts agree.
    close = np.abs(twin.image[:, :, ::-1] - out.image) < 0.05
    assert close[np.asarray(out.valid)].mean() > 0.9


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def _drawn(view, image, of_image, of_depth):
    """Sum of image and depth by their weights, and the reprojection; d/d view."""
    out = reproject(image, _bump(), view, SCENE)
    total = jnp.sum(out.image * of_image[..., None]) + jnp.sum(out.depth * of_depth)
    return total, out


def test_a_view_from_nowhere_is_empty_and_finite():
    ones = jnp.ones((SIZE, SIZE))
    image = jnp.ones((1, SIZE, SIZE, 3))
    (_, out), gradient = _drawn(_view(tx=5.0), image, ones, ones)
    assert not out.valid.any()
    assert np.isfinite(out.image).all() and np.isfinite(gradient).all()


def _windowed(view):
    """Of a smooth scene, so that the image changes smoothly with the viewpoint."""
    v, u = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    image = jnp.asarray(np.stack([u, v, np.sin(3 * u + 2 * v)], -1)[None], jnp.float32)
    window = jnp.asarray(np.exp(-30 * ((u - 0.5) ** 2 + (v - 0.5) ** 2)), jnp.float32)
    (total, _), gradient = _drawn(view, image, window, jnp.zeros((SIZE, SIZE)))
    return total, gradient


@pytest.mark.parametrize("index", range(6))
def test_view_gradient_matches_finite_differences(index):
    view = _view(rx=0.07, ry=0.11, rz=0.05, tx=0.004, ty=-0.003, tz=0.002)
    step = (4e-3 if index < 3 else 4e-4) * jnp.eye(6)[index][None]
    there, back = _windowed(view + step)[0], _windowed(view - step)[0]
    numeric = (there - back) / (2 * jnp.sum(step))
    gradient = _windowed(view)[1][0]
    scale = float(jnp.abs(gradient[:3]).max())
    scale = scale if index < 3 else scale * 20
    assert abs(float(numeric - gradient[index])) < 0.06 * scale


@pytest.mark.once
def test_the_soft_warp_tends_to_the_hard_one():
    view = _view(rx=0.1, ry=0.3)
    hard, valid = warp_depth(_bump(), view, SCENE)
    errors = []
    for sigma in (0.05, 0.002):
        soft = dataclasses.replace(SCENE, sigma=sigma, gamma=1e-4)
        warped, _ = warp_depth(_bump(), view, soft)
        error = np.abs(np.asarray(warped - hard))[0, 4:-4, 4:-4]
        errors.append(np.mean(error[np.asarray(valid[0, 4:-4, 4:-4])]))
    # What is left: pixels that lie on an edge, where two faces count half each.
    assert errors[1] < 0.2 * errors[0] and errors[1] < 2e-3
