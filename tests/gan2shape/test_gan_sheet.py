"""The picture of a run: a row an image, a column a stage."""

import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import sheet
from unsup3d_jax.gan2shape.subjects import Subjects

N, SIZE = 3, 32


def record(rows):
    depth = np.linspace(0.95, 1.05, SIZE, dtype=np.float32)
    flat = np.ones((N, SIZE, SIZE), np.float32)
    return {
        "depth": np.stack([flat, *[flat * depth] * (rows - 1)]),
        "canon_albedo": np.full((rows, N, SIZE, SIZE, 3), 0.25, np.float32),
        "image": np.full((rows, N, SIZE, SIZE, 3), 0.75, np.float32),
    }


def subjects():
    shape = (N, SIZE, SIZE)
    ones = np.ones(shape, np.float32)
    image = np.zeros((*shape, 3), np.float32)
    return Subjects(("a", "b", "c"), image, ones, ones, None)


def test_a_column_a_stage_and_flat_is_light_blue():
    picture = sheet.of_stages(subjects(), record(3), first="prior", fov_deg=10.0)
    height, width, _ = picture.shape
    columns, cell = 6, width / 6  # image, prior, two stages, albedo, rendered
    row = int(height - 0.5 * cell)
    middles = [picture[row, int((k + 0.5) * cell)] for k in range(columns)]
    np.testing.assert_array_equal(middles[0], 0)
    np.testing.assert_array_equal(middles[1], [128, 128, 255])
    assert middles[2][0] != 128  # turned away
    np.testing.assert_array_equal(middles[2], middles[3])
    np.testing.assert_array_equal(middles[4], 64)
    np.testing.assert_array_equal(middles[5], 191)


def test_it_is_written_whole_or_the_path_is_named(tmp_path):
    picture = np.zeros((4, 5, 3), np.uint8)
    sheet.write(tmp_path / "new" / "sheet.png", picture)
    assert Image.open(tmp_path / "new" / "sheet.png").size == (5, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="sheet.png cannot be written"):
        sheet.write(tmp_path / "file" / "sheet.png", picture)
