"""Laws of hard rasterization."""

import numpy as np

import rasterizer


def _grid(height, width, depth=1.0):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.full_like(x, depth, dtype=float)], -1).astype(np.float32)


def test_identity_view_covers_every_pixel_with_its_own_vertex():
    vertices = _grid(9, 12)
    vertices[..., 2] += np.random.default_rng(0).random((9, 12), np.float32)
    image = rasterizer.render_grid_depth(vertices, (9, 12), background=100.0)
    assert image.covered.all()
    np.testing.assert_array_equal(image.depth, vertices[..., 2])
