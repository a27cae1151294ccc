"""Videos of a depth map: which way it turns, which side the light is on."""

import bust
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defaults import options

from unsup3d_jax.formation import reprojection
from unsup3d_jax.show import video

SIZE = 32
SCENE = options().scene


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


def test_turntable_turns_the_nose_left_for_positive_yaw(head, monkeypatch):
    monkeypatch.setattr(video, "TURNTABLE_FRAMES", 4)  # yaw 0, 50, 0, -50 degrees
    maps = (head["image"], head["normal"], head["depth"])
    frames = video.turntable_frames(*maps, SCENE, border_columns=2)
    frames = [f[:, :256].astype(float) for f in frames]

    def red_column(frame):
        return np.nonzero((frame[..., 0] > 150) & (frame[..., 1] < 60))[1]

    # The red cheek faces the viewer when the head has turned to the right.
    assert len(red_column(frames[3])) > 3 * len(red_column(frames[1]))
    assert red_column(frames[3]).mean() > red_column(frames[0]).mean() + 20


def test_unturned_render_is_the_canonical_image(head):
    got, covered = video.render(
        head["albedo"],
        jnp.ones((SIZE, SIZE)),
        jnp.zeros(6),
        SCENE,
        border_columns=2,
        size=SIZE,
    )
    assert np.asarray(covered)[:, 2:-2].all() and not np.asarray(covered)[:, :2].any()
    np.testing.assert_allclose(got[:, 3:-3], head["albedo"][:, 3:-3], atol=2e-3)


def test_relit_side_follows_the_light(head, monkeypatch):
    monkeypatch.setattr(video, "RELIGHT_FRAMES", 4)  # travels right, down, left, up
    maps = (head["albedo"], head["normal"], head["depth"], head["view"])
    frames = video.relight_frames(*maps, SCENE, border_columns=2)
    grey = [f[..., 0].astype(float) for f in frames]
    left, right = np.s_[100:150, 256 + 70 : 256 + 100], np.s_[100:150, 256 + 170 : 456]
    assert grey[0][left].mean() > grey[2][left].mean() + 10
    assert grey[2][right].mean() > grey[0][right].mean() + 10
    top, bottom = np.s_[40:80, 256 + 100 : 412], np.s_[180:220, 256 + 100 : 412]
    assert grey[1][top].mean() > grey[1][bottom].mean() + 10


def test_failing_ffmpeg_says_why(tmp_path):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(RuntimeError, match="ffmpeg could not write"):
        video.write_video(tmp_path / "missing" / "video.mp4", frames)
