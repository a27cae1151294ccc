"""Which part of a depth map is the object, of shapes whose outline is known."""

import numpy as np
import pytest

from unsup3d_jax.show import foreground

SIZE = 32
BORDER = 1.04
Y, X = np.mgrid[:SIZE, :SIZE] / ((SIZE - 1) / 2) - 1.0


def part_of(depth):
    depth = depth.copy()
    depth[:, :2] = depth[:, -2:] = BORDER
    return foreground.object_part(depth, border_columns=2, border_depth=BORDER)


def pixels_of(part):
    """Those of the object, without those that were moved to its outline."""
    return part.vertices() & (part.weights[4] == 1.0)


def ball():
    """A ball before a background as far as the border, and where it is."""
    inside = 1.0 - (X / 0.7) ** 2 - (Y / 0.8) ** 2
    depth = np.where(inside > 0, 1.04 - 0.1 * np.sqrt(np.maximum(inside, 0)), 1.06)
    return depth, inside


def assert_is_the_ball(part, inside):
    found = pixels_of(part)
    # It is a tenth as high as in the middle where that is 0.01.
    assert found[inside > 0.05].all() and not found[inside <= 0].any()


def test_the_background_and_the_apron_before_it_leave():
    depth, inside = ball()
    assert_is_the_ball(part_of(depth), inside)
    # From the ball's outline it goes on to the background as a slope, not a step.
    slope = (inside > -0.6) & (inside <= 0)
    depth[slope] = 1.04 - 0.008 * (1 + inside[slope])
    assert_is_the_ball(part_of(depth), inside)


@pytest.mark.parametrize("corner", [0.9, 1.1])
def test_spikes_in_the_corners_leave(corner):
    depth, inside = ball()
    depth[:4, 2:6] = depth[-4:, -6:-2] = corner
    assert_is_the_ball(part_of(depth), inside)


def test_a_thread_to_the_edge_leaves():
    depth, inside = ball()
    before = pixels_of(part_of(depth))
    depth[14:16] = np.where(inside[14:16] > 0, depth[14:16], 1.0)
    found = pixels_of(part_of(depth))
    # But for the pixel that touches the ball.
    assert found[before].all() and (found & ~before).sum() <= 4


def test_a_deep_place_inside_of_the_object_stays():
    depth, inside = ball()
    depth[14:18, 14:18] -= 0.06  # a nose with sides as steep as the outline
    depth[20:23, 12:20] = 1.08  # and a mouth deeper than the border
    assert_is_the_ball(part_of(depth), inside)


def test_an_object_up_to_the_edge_of_the_picture_stays_there():
    """A neck below, hair above: the picture ends, not the object."""
    depth, _ = ball()
    depth[:, 12:20] = 0.97
    part = part_of(depth)
    # But for the outermost rows, which have no normal.
    assert pixels_of(part)[1:-1, 12:20].all() and part.cells[1:-1, 12:19].all()
    assert not part.cells[[0, -1], 12:19].any()


def test_the_outline_runs_between_the_pixels():
    """Where a cone is a tenth as high as in the middle, at whatever angle."""
    height = 0.1 * np.maximum(1.0 - np.hypot(X, Y) / 0.8, 0.0)
    part = part_of(BORDER - height)
    top = np.quantile(height[:, 2:-2], 0.95)
    edge = part.vertices() & ~pixels_of(part)
    moved = np.asarray(part.place(np.stack([X, Y], axis=-1)))[edge]
    radius = np.hypot(*moved.T)
    expected = 0.8 * (1.0 - 0.1 * top / 0.1)
    np.testing.assert_allclose(radius, expected, atol=0.2 / SIZE)
    # As straight as that needs: a pixel is 2 / SIZE wide.
    assert len(radius) > 60


@pytest.mark.parametrize("plane", [0.95, 1.05])
def test_what_has_no_background_stays_whole(plane):
    part = part_of(np.full((SIZE, SIZE), plane))
    whole = foreground.whole(np.ones((SIZE, SIZE)), border_columns=2)
    assert not pixels_of(part)[:, :2].any() and not pixels_of(part)[:, -2:].any()
    assert pixels_of(part).sum() >= 0.9 * pixels_of(whole).sum()
    np.testing.assert_array_equal(whole.place(X[..., None])[..., 0], X.astype("f4"))


def test_without_a_border_there_is_no_background_to_compare_with():
    depth, _ = ball()
    part = foreground.object_part(depth, border_columns=0, border_depth=BORDER)
    assert pixels_of(part).all()
