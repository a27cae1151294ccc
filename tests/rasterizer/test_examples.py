"""The examples do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer.examples import camera_pose, depth_to_mesh, silhouette_fit, texture_fit

pytestmark = pytest.mark.once


def test_the_ellipse_is_found():
    truth = jnp.array([18.3, 13.6, 9.2, 6.1])
    start = jnp.array([12.0, 18.0, 5.0, 5.0])
    found = silhouette_fit.fit(silhouette_fit.draw(truth), start)
    np.testing.assert_allclose(found, truth, atol=0.05)


def test_the_texture_is_found():
    truth = jax.random.uniform(jax.random.key(0), (8, 8, 3))
    start = jnp.full((8, 8, 3), 0.5)
    texture, losses = texture_fit.fit(texture_fit.draw(truth), start)
    assert losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(texture, truth, atol=0.1)


def test_the_camera_is_found():
    truth = jnp.array([0.1, -0.2, 0.15, 0.03, -0.02, 4.0])
    start = jnp.array([0.0, 0, 0, 0, 0, 4.1])
    found = camera_pose.fit(camera_pose.draw(truth), start)
    np.testing.assert_allclose(found, truth, atol=1e-3)


def test_a_mesh_of_a_depth_map_shows_that_depth_map():
    y, x = np.mgrid[-1:1:13j, -1:1:13j].astype(np.float32)
    depth = np.where(np.abs(x) < 0.5, 2.0 + 0.1 * y, 4.0).astype(np.float32)
    pose = rasterizer.look_at([1.0, 2.0, 3.0], [0.0, 0.5, 0.0])
    camera = rasterizer.perspective_camera((13, 13), fov_deg=40.0, pose=pose)
    points, faces = depth_to_mesh.to_mesh(depth, camera)
    # No face reaches from the strip in front to the wall behind it.
    assert len(faces) == 2 * 12 * (12 - 2)
    seen, shading = depth_to_mesh.look(points, faces, camera, (13, 13))
    drawn = seen > 0
    assert drawn.mean() > 0.8
    np.testing.assert_allclose(seen[drawn], depth[drawn], rtol=1e-3)
    assert shading[drawn].min() > 0.5
    # From behind, the wall is all there is.
    behind = rasterizer.unproject(np.array([[6.0, 6.0, 9.0]], np.float32), camera)[0]
    rotation, translation = rasterizer.look_at(behind, [1.0, 2.0, 3.0])
    camera = dataclasses.replace(camera, rotation=rotation, translation=translation)
    seen, _ = depth_to_mesh.look(points, faces, camera, (13, 13))
    assert (seen > 4.5).any()
