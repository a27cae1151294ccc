"""Videos of a depth map: which way it turns, which side the light is on."""

import bust
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defaults import options

from unsup3d_jax.formation import reprojection
from unsup3d_jax.show import foreground, video

SIZE = 32
SCENE = options().scene
WHOLE = foreground.whole(np.ones((SIZE, SIZE)), border_columns=2)


@pytest.fixture(scope="module")
def head():
    """Maps of the head that no method made, and a view: it turns by +25 degrees."""
    factors, _ = bust.make(SIZE)
    shade = jax.jit(reprojection.shade_canonical, static_argnums=3)
    shaded = shade(factors.canon_albedo, factors.canon_depth, factors.light, SCENE)
    maps = {
        "image": shaded.image,
        "normal": shaded.normal,
        "depth": factors.canon_depth,
        "albedo": factors.canon_albedo,
        "view": factors.view,
    }
    return {name: np.asarray(array[0]) for name, array in maps.items()}


@pytest.mark.once
def test_turntable_turns_the_nose_left_for_positive_yaw(head, monkeypatch):
    monkeypatch.setattr(video, "TURNTABLE_FRAMES", 4)  # yaw 0, 50, 0, -50 degrees
    maps = (head["image"], head["normal"], head["depth"])
    frames = video.turntable_frames(*maps, SCENE, WHOLE)
    frames = [f[:, :256].astype(float) for f in frames]

    def red_column(frame):
        return np.nonzero((frame[..., 0] > 150) & (frame[..., 1] < 60))[1]

    # The red cheek faces the viewer when the head has turned to the right.
    assert len(red_column(frames[3])) > 3 * len(red_column(frames[1]))
    assert red_column(frames[3]).mean() > red_column(frames[0]).mean() + 20


def test_turntable_shows_all_of_the_object_at_every_yaw(monkeypatch):
    """A board that is larger than what the camera sees, and swings to the sides."""
    monkeypatch.setattr(video, "TURNTABLE_FRAMES", 4)
    depth = np.full((SIZE, SIZE), 0.92, np.float32)
    white = np.ones((SIZE, SIZE, 3), np.float32)
    normal = np.zeros_like(white) + np.array([0, 0, 1], np.float32)
    frames = list(video.turntable_frames(white, normal, depth, SCENE, WHOLE))
    covered = np.stack([f[:, :256, 0] > 100 for f in frames])
    assert covered.any((1, 2)).all()
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        assert not covered[edge].any()
    # And no smaller than that needs.
    extent = [np.ptp(np.nonzero(covered.any(axes))[0]) for axes in ((0, 1), (0, 2))]
    assert max(extent) > 0.9 * 256


def test_an_object_in_sight_all_round_is_shown_as_the_camera_sees_it(head):
    cells = np.zeros_like(WHOLE.cells)
    cells[10:20, 10:20] = True
    frame = video.turntable_frame(head["depth"], SCENE, WHOLE.replace(cells=cells))
    np.testing.assert_array_equal(frame, [0.5, 0.5, 1.0])


@pytest.mark.once
def test_cells_that_are_not_the_object_are_not_drawn(head):
    cells = np.zeros_like(WHOLE.cells)
    cells[8:16, 8:16] = True
    plane, view = np.ones((SIZE, SIZE), np.float32), np.zeros(6, np.float32)
    part = WHOLE.replace(cells=cells)
    _, covered = video.render(
        head["albedo"], plane, view, SCENE, part=part, size=2 * SIZE
    )
    rows, columns = np.nonzero(covered)
    # Pixels 8 to 16 of 32, among 64.
    for found in (rows, columns):
        assert found.min() == np.ceil(8 * 63 / 31) and found.max() == 16 * 63 // 31


def test_unturned_render_is_the_canonical_image(head):
    got, covered = video.render(
        head["albedo"],
        jnp.ones((SIZE, SIZE)),
        jnp.zeros(6),
        SCENE,
        part=WHOLE,
        size=SIZE,
    )
    assert np.asarray(covered)[:, 2:-2].all() and not np.asarray(covered)[:, :2].any()
    np.testing.assert_allclose(got[:, 3:-3], head["albedo"][:, 3:-3], atol=2e-3)


def test_relit_side_follows_the_light(head, monkeypatch):
    monkeypatch.setattr(video, "RELIGHT_FRAMES", 4)  # travels right, down, left, up
    maps = (head["albedo"], head["normal"], head["depth"], head["view"])
    frames = video.relight_frames(*maps, SCENE, WHOLE)
    grey = [f[..., 0].astype(float) for f in frames]
    left, right = np.s_[100:150, 256 + 70 : 256 + 100], np.s_[100:150, 256 + 170 : 456]
    assert grey[0][left].mean() > grey[2][left].mean() + 10
    assert grey[2][right].mean() > grey[0][right].mean() + 10
    top, bottom = np.s_[40:80, 256 + 100 : 412], np.s_[180:220, 256 + 100 : 412]
    assert grey[1][top].mean() > grey[1][bottom].mean() + 10


def test_failing_ffmpeg_says_why(tmp_path):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(OSError, match="ffmpeg could not write.*missing"):
        video.write_video(tmp_path / "missing" / "video.mp4", frames)
