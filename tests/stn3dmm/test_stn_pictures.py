"""Pictures of localised faces."""

import jax
import numpy as np
import pytest
import stn_people

from unsup3d_jax.stn3dmm import pictures, task
from unsup3d_jax.stn3dmm.textures import GUESSED, MIRRORED, SEEN

SIZE, GRID = 32, 8


def plane(count=GRID, low=4.0, high=24.0):
    """(u, v) of a grid over a part of a photo, row-major."""
    u, v = np.meshgrid(np.linspace(low, high, count), np.linspace(low, high, count))
    return np.stack([u, v], axis=-1).reshape(-1, 2)


def test_mesh_is_drawn_where_it_lies_and_hidden_lines_are_red():
    grey = np.full((SIZE, SIZE, 3), 0.4, np.float32)
    seen = np.ones((GRID, GRID))
    seen[:, GRID // 2 :] = 0.0
    picture = pictures.mesh_overlay(grey, plane(), seen)
    scale = len(picture) // SIZE
    assert len(picture) == scale * SIZE >= 192
    changed = np.abs(picture - 0.4).max(-1) > 0.05
    rows, columns = np.nonzero(changed)
    # Pixel 4's centre is half a pixel further in the enlarged picture.
    for found in (rows, columns):
        assert (
            abs(found.min() - 4.5 * scale) < 3 and abs(found.max() - 24.5 * scale) < 3
        )
    left, right = picture[:, : 10 * scale], picture[:, 20 * scale :]
    assert left[..., 2].max() > 0.7 and left[..., 0].max() < 0.45
    assert right[..., 0].max() > 0.45 and right[..., 2].max() < 0.45


def test_landmarks_are_drawn_where_they_are_and_unknown_ones_are_not():
    grey = np.full((SIZE, SIZE, 3), 0.4, np.float32)
    points = np.array([[8.0, 20.0], [np.nan, 3.0], [1e9, 5.0]])
    picture = pictures.landmarks_picture(grey, points)
    rows, columns = np.nonzero(np.abs(picture - 0.4).max(-1) > 0.05)
    scale = len(picture) / SIZE
    np.testing.assert_allclose(rows.mean(), 20.5 * scale, atol=1.0)
    np.testing.assert_allclose(columns.mean(), 8.5 * scale, atol=1.0)
    known = pictures.landmarks_picture(grey, points, np.array([[25.0, 6.0]] * 3))
    u, v = round(25.5 * scale), round(6.5 * scale)
    assert np.abs(known[v - 8 : v + 8, u - 8 : u + 8] - 0.4).max() > 0.3
    np.testing.assert_allclose(known[v, u], 0.4, atol=0.01)  # a ring


def test_tints_tell_mirrored_from_guessed():
    source = np.array([[SEEN, MIRRORED, GUESSED]] * 2)
    grey = np.full((2, 3, 3), 0.5, np.float32)
    shown = pictures.marked(grey, pictures.source_shares(source))
    np.testing.assert_array_equal(shown[:, 0], grey[:, 0])
    assert (shown[:, 1, 2] > shown[:, 1, 0]).all()
    assert (shown[:, 2, 0] > shown[:, 2, 2]).all()


def test_training_panel_has_a_row_a_photo():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    flat = rng.uniform(size=(2, GRID, GRID, 3)).astype(np.float32)
    seen = np.ones((2, GRID, GRID), np.float32)
    panel = pictures.training_panel(
        images, np.stack([plane()] * 2), plane(3)[None].repeat(2, 0), flat, seen
    )
    assert panel.shape[0] > 2 * 192 and panel.shape[1] > 6 * 192
    np.testing.assert_array_equal(pictures.masked(flat, 0 * seen), np.zeros_like(flat))


@pytest.mark.once
def test_a_run_shows_a_few_faces_of_the_validation_set():
    config = stn_people.config(log__picture_count=3)
    the_task = task.stn_task(config, stn_people.splits(config))
    assert the_task.picture is not None
    panel = the_task.picture(the_task.init(jax.random.key(0)), 0)
    assert panel.shape[0] > 3 * 192 and panel.shape[1] > 6 * 192
