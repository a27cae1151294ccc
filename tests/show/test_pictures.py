"""Pictures: colours mean what they say, and turns go the right way."""

import bust
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.formation import geometry
from unsup3d_jax.show import pictures
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import options_from_config

SIZE = 32
CELL = 96


@pytest.fixture(scope="module")
def head():
    return bust.make(SIZE)


def test_bytes_are_rounded_and_clipped():
    got = pictures.to_bytes(np.array([-0.1, 0.0, 0.501 / 255, 0.5, 1.0, 2.0, np.nan]))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, [0, 0, 1, 128, 255, 255, 0])


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


def test_panel_has_a_row_per_image_and_shows_the_input_first(head):
    factors, options = head
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    got = pictures.panel_of_factors(factors, images, options)
    assert got.dtype == np.uint8
    header = got.shape[0] - (2 * (CELL + 2) + 2)
    assert 10 < header < 40 and got.shape[1] == 14 * (CELL + 2) + 2
    for row in range(2):
        top = header + 2 + row * (CELL + 2)
        cell = got[top : top + CELL, 2 : 2 + CELL]
        np.testing.assert_array_equal(cell[::3, ::3], pictures.to_bytes(images[row]))
        np.testing.assert_array_equal(cell[1::3, 2::3], cell[::3, ::3])
    assert (got[:header] > 200).any()  # the names of the columns


def test_panel_of_a_model_without_confidence_is_narrower():
    config = bust.config_of(SIZE)
    config.model.use_confidence = False
    options = options_from_config(config)
    shapes = jax.eval_shape(
        lambda key: model.init_params(key, options), jax.random.key(0)
    )
    params = jax.tree.map(lambda s: np.full(s.shape, 0.01, np.float32), shapes)
    images = np.full((1, SIZE, SIZE, 3), 0.5, np.float32)
    got = pictures.panel(params, images, options)
    assert got.shape[1] == 12 * (CELL + 2) + 2


def test_grid_fills_rows_from_the_left():
    images = [np.full((4, 5, 3), shade, np.uint8) for shade in (50, 100, 150)]
    got = pictures.grid_of_images(images, columns=2, scale=2)
    assert got.shape == (2 * 10 + 2, 2 * 12 + 2, 3)
    assert (got[2:10, 2:12] == 50).all() and (got[2:10, 14:24] == 100).all()
    assert (got[12:20, 2:12] == 150).all() and got[13, 15, 0] < 50


def test_grid_takes_floats_and_rejects_nothing():
    got = pictures.grid_of_images(np.ones((1, 2, 2, 3)))
    assert got[2:4, 2:4].min() == 255
    with pytest.raises(ValueError, match="at least one"):
        pictures.grid_of_images([])
