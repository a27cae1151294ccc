"""Pictures: colours mean what they say, and turns go the right way."""

import bust
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.formation import geometry
from unsup3d_jax.show import pictures

SIZE = 32


@pytest.fixture(scope="module")
def head():
    return bust.make(SIZE)


def test_near_is_bright():
    got = pictures.depth_picture(np.array([[0.9, 1.0, 1.1, 1.3]]), near=0.9, far=1.1)
    np.testing.assert_allclose(got[0, :, 0], [1.0, 0.5, 0.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def test_normal_colours_are_those_of_a_normal_map():
    def normal_of(slope_x, slope_y):
        x, y = np.meshgrid(np.arange(9) - 4, np.arange(9) - 4)
        depth = jnp.asarray(1.0 + 1e-3 * (slope_x * x + slope_y * y), jnp.float32)
        normal = geometry.depth_to_normals(depth, fov_deg=10.0)
        return pictures.normal_picture(normal)[4, 4]

    np.testing.assert_allclose(normal_of(0, 0), [0.5, 0.5, 1.0], atol=1e-3)
    # Depth that grows to the right faces right: red. Downwards: dark in green.
    assert normal_of(3, 0)[0] > 0.55 and abs(normal_of(3, 0)[1] - 0.5) < 0.02
    assert normal_of(0, 3)[1] < 0.45 and abs(normal_of(0, 3)[0] - 0.5) < 0.02


def test_trusted_pixels_are_bright():
    got = pictures.confidence_picture(np.array([[0.0, 1.0, 9.0]]))
    np.testing.assert_allclose(got[0, :, 1], [1.0, 0.5, 0.1])


@pytest.fixture(scope="module")
def turned(head):
    factors, options = head
    turn = jax.jit(pictures.turned_views, static_argnames=("scene", "yaws_deg"))
    got = turn(
        factors.canon_albedo,
        factors.canon_depth,
        scene=options.scene,
        yaws_deg=(-30, 0, 30),
    )
    return jax.device_get(got)


def red(image):
    return (image[..., 0] > 0.6) & (image[..., 1] < 0.3)


def test_unturned_view_is_the_canonical_image(head, turned):
    image, valid = turned
    assert valid[1].mean() > 0.9  # the rim lies deeper than 1 and ends earlier
    inside = np.repeat(valid[1][..., None], 3, -1)
    difference = np.abs(image[1] - np.asarray(head[0].canon_albedo))[inside]
    assert np.median(difference) < 0.02


def test_positive_yaw_moves_the_near_side_to_the_left(turned):
    image, valid = turned
    # The red cheek lies on the near side, left of the nose.
    columns = [np.nonzero(red(image[t, 0]) & valid[t, 0])[1].mean() for t in range(3)]
    assert columns[0] > columns[1] + 2 and columns[1] > columns[2] + 1
