"""The panel: a row for each image, whose columns mean what their names say."""

import bust
import jax
import numpy as np
import pytest

from unsup3d_jax.data import tiles
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import options_from_config
from unsup3d_jax.unsup3d.panel import paint, panel, turned_views

SIZE = 32
CELL = 96


@pytest.fixture(scope="module")
def head():
    return bust.make(SIZE)


@pytest.mark.once
def test_panel_has_a_row_per_image_and_shows_the_input_first(head):
    factors, options = head
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    reconstruct = jax.jit(model.reconstruct, static_argnames="options")
    found = reconstruct(factors, options=options)
    turned = turned_views(found.canonical.image, factors.canon_depth, options)
    got = paint(factors, found, turned, images, options)
    assert got.dtype == np.uint8
    header = got.shape[0] - (2 * (CELL + 2) + 2)
    assert 10 < header < 40 and got.shape[1] == 14 * (CELL + 2) + 2
    for row in range(2):
        top = header + 2 + row * (CELL + 2)
        cell = got[top : top + CELL, 2 : 2 + CELL]
        np.testing.assert_array_equal(cell[::3, ::3], tiles.to_bytes(images[row]))
        np.testing.assert_array_equal(cell[1::3, 2::3], cell[::3, ::3])
    assert (got[:header] > 200).any()  # the names of the columns


@pytest.mark.once
def test_panel_of_a_model_without_confidence_is_narrower():
    config = bust.config_of(SIZE)
    config.model.use_confidence = False
    options = options_from_config(config)
    shapes = jax.eval_shape(
        lambda key: model.init_params(key, options), jax.random.key(0)
    )
    params = jax.tree.map(lambda s: np.full(s.shape, 0.01, np.float32), shapes)
    images = np.full((1, SIZE, SIZE, 3), 0.5, np.float32)
    got = panel(params, images, options)
    assert got.shape[1] == 12 * (CELL + 2) + 2
