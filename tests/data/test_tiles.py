"""Every contact sheet is made of these tiles."""

import numpy as np
import pytest

from unsup3d_jax.data import tiles


def test_bytes_are_rounded_and_clipped():
    got = tiles.to_bytes(np.array([-0.1, 0.0, 0.501 / 255, 0.5, 1.0, 2.0, np.nan]))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, [0, 0, 1, 128, 255, 255, 0])


def test_grid_fills_rows_from_the_left():
    images = [np.full((4, 5, 3), shade, np.uint8) for shade in (50, 100, 150)]
    got = tiles.grid_of_images(images, columns=2, scale=2)
    assert got.shape == (2 * 10 + 2, 2 * 12 + 2, 3)
    assert (got[2:10, 2:12] == 50).all() and (got[2:10, 14:24] == 100).all()
    assert (got[12:20, 2:12] == 150).all() and got[13, 15, 0] < 50


def test_grid_takes_floats_and_rejects_nothing():
    got = tiles.grid_of_images(np.ones((1, 2, 2, 3)))
    assert got[2:4, 2:4].min() == 255
    with pytest.raises(ValueError, match="at least one"):
        tiles.grid_of_images([])
