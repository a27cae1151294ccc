"""Keypoints through the crop, the score of a known surface, and the whole job."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import keypoint_samples
import numpy as np
import pytest
from bust import NEAREST, config_of, make
from keypoint_samples import COUNT, K, write_csv, write_photo
from PIL import Image

from configs import default
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import keypoints
from unsup3d_jax.unsup3d.options import options_from_config


@pytest.fixture
def points():
    return keypoint_samples.points()


def test_keypoints_follow_the_crop_and_the_resize():
    """A white square drawn in the file lies where its moved corners say."""
    width, height, size = 120, 80, 32
    crop = (10, 30, 64, 64)
    pixels = np.zeros((height, width), np.uint8)
    pixels[30:46, 50:66] = 255
    image = Image.fromarray(pixels).crop((30, 10, 94, 74))
    small = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    corners = np.array([[49.5, 29.5, 1.0], [65.5, 45.5, 2.0]])  # outer edges
    moved = keypoints.to_model_pixels(
        corners, (width, height), crop=crop, image_size=size
    )
    np.testing.assert_allclose(moved[:, 2], [1, 2])
    rows, columns = np.where(small > 127)
    np.testing.assert_allclose(moved[0, :2], [columns.min() - 0.5, rows.min() - 0.5])
    np.testing.assert_allclose(moved[1, :2], [columns.max() + 0.5, rows.max() + 0.5])


def test_depth_is_read_where_the_keypoints_are(tmp_path, points, monkeypatch):
    """With a surface that is known: depth grows with u, in the cropped frame."""
    options = options_from_config(config_of(32))
    files = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for i, file in enumerate(files):
        write_photo(file, i, size=(80, 64))
    points[..., 0] += 8  # the largest centred square starts at column 8
    points[..., 2] = 3 * points[..., 0]
    points[1, 0, 0] = 2.0  # beside it

    def surface(params, image, where, options, view_range):
        return np.asarray(where[..., 0])

    monkeypatch.setattr(keypoints, "_depth_at", surface)
    got = keypoints.score({}, options, files, points, crop=())
    assert got["left_out"] == 1 and got["images"] == COUNT - 1
    np.testing.assert_allclose(got["sum"], K, rtol=1e-4)
    with pytest.raises(UserError, match="a correlation needs two"):
        keypoints.score({}, options, files[:1], points[:1], crop=())


def test_depth_is_that_of_the_turned_face(monkeypatch):
    """The nose of a known head, turned to either side, is nearest where it went."""
    factors, options = make(32)
    monkeypatch.setattr(keypoints.model, "decompose", lambda *a, **_: factors)
    v, u = np.mgrid[:32, :32].astype(np.float32)
    everywhere = np.tile(np.stack([u, v], -1).reshape(1, -1, 2), (2, 1, 1))
    read = jax.jit(keypoints._depth_at.__wrapped__, static_argnames="options")
    image = jnp.zeros((2, 32, 32, 3))
    found = read({}, image, jnp.asarray(everywhere), options=options, view_range=None)
    depth = np.asarray(found)
    pitch, yaw = np.asarray(factors.view[:, 0]), np.asarray(factors.view[:, 1])
    nearest = 1 - (1 - NEAREST) * np.cos(pitch) * np.cos(yaw)
    np.testing.assert_allclose(depth.min(axis=1), nearest, atol=3e-3)
    at = u.ravel()[depth.argmin(axis=1)] - 15.5
    assert np.all(np.abs(at) > 1) and at[0] * at[1] < 0


def _job(folder, **changes):
    job = keypoints.KeypointJob(
        input=folder, layout="csv", split="valid", near="small", output=None, sheet=None
    )
    return dataclasses.replace(job, **changes)


def _no_model():
    raise AssertionError("asked for, though nothing can be scored")


def test_what_is_missing_is_said_before_the_model_is_loaded(tmp_path):
    config = default.get_config()
    with pytest.raises(UserError, match="no image has a .csv"):
        keypoints.run(config, _no_model, _job(tmp_path))
    with pytest.raises(UserError, match="--near must be one of small, large"):
        keypoints.run(config, _no_model, _job(tmp_path, near="left"))
    with pytest.raises(UserError, match="--layout"):
        keypoints.run(config, _no_model, _job(tmp_path, layout="mat"))


@pytest.mark.parametrize("near, sign", [("small", 1), ("large", -1)])
def test_a_job_leaves_its_scores_and_its_sheet(
    tmp_path, points, monkeypatch, near, sign
):
    points[..., 2] = 3 * points[..., 0]
    photos = tmp_path / "photos"
    for i in range(COUNT):
        write_photo(photos / f"{i}.png", i)
        write_csv(photos / f"{i}.csv", points[i])
    config, asked = config_of(32), []

    def surface(params, image, where, options, view_range):
        asked.append(params)
        return np.asarray(where[..., 0])

    monkeypatch.setattr(keypoints, "_depth_at", surface)
    output, sheet = tmp_path / "out" / "scores.json", tmp_path / "sheet.png"
    job = _job(photos, near=near, output=output, sheet=sheet)
    result = keypoints.run(config, lambda: ({"of": "run"}, 7), job)
    assert asked == [{"of": "run"}]
    np.testing.assert_allclose(result["sum"], sign * K, rtol=1e-4)
    assert result["checkpoint_step"] == 7 and result["input"] == str(photos)
    assert result["left_out"] == 0
    assert json.loads(output.read_text()) == result
    assert Image.open(sheet).size[0] >= 2 * 128
