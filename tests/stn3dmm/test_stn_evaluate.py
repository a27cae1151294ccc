"""What theta scores: nothing at the truth, and what is known beside it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import stn_people
from scipy.spatial.transform import Rotation

from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.scored import Scored
from unsup3d_jax.engine.task import Session, run_keys
from unsup3d_jax.stn3dmm import (
    evaluate,
    localiser,
    model_files,
    morphable,
    options,
    people,
    score,
    several_views,
)

pytestmark = pytest.mark.once

CONFIG = stn_people.config()
NAMES = {"nme", "nme_visible", "nme_eyes", "vertex_nme", "rotation_deg", "texture_l1"}


@pytest.fixture(scope="module")
def judge():
    return evaluate.judge_of(CONFIG, options.load_face(CONFIG))


@pytest.fixture(scope="module")
def images():
    return evaluate.flat_images(stn_people.dataset(CONFIG, "test", count=6))


def scored(theta, images, judge):
    scores = evaluate.score(theta, images, judge, 4)
    assert all(len(x) == len(theta) for x in scores.values())
    return evaluate.row_of("it", scores)


@pytest.mark.once
def test_the_truth_has_no_errors(judge, images):
    row = scored(images["truth"], images, judge)
    for name in (*NAMES, "yaw_deg", "pitch_deg", "roll_deg", "shape_mm"):
        assert row[name]["mean"] < 1e-3, name
        assert row[name]["n"] == 6
    for name in ("visible_iou", "visible_accuracy"):
        assert row[name]["mean"] == 1.0
    # On a coarse grid the normals alone are nearly right.
    assert 0.7 < row["facing_iou"]["mean"] <= 1.0
    assert row["shape_slope"]["mean"] == pytest.approx(1.0, abs=1e-4)
    assert row["mean_shape_mm"]["mean"] > 1.0


def test_a_turn_is_a_turn_and_no_shape(judge, images):
    """Five degrees of yaw to the image's left, as the open faces have it."""
    theta = np.array(images["truth"])
    turn = np.radians(5.0)
    # Yaw > 0 turns the nose to the left: about -y of the posed frame.
    about = Rotation.from_rotvec([0, -turn, 0])
    theta[:, :3] = (about * Rotation.from_rotvec(theta[:, :3])).as_rotvec()
    row = scored(theta, images, judge)
    assert row["rotation_deg"]["mean"] == pytest.approx(5.0, abs=1e-2)
    assert row["yaw_deg"]["mean"] == pytest.approx(5.0, abs=0.2)
    assert row["shape_mm"]["mean"] < 1e-3 < row["nme"]["mean"]
    assert row["vertex_nme"]["mean"] > 0.01


def test_angles_are_apart_by_the_shorter_way(judge, images):
    """Upside down, a little to either side."""
    turned = dict(images)
    turned["truth"] = np.array(images["truth"])
    turned["truth"][:, :3] = np.float32([0, 0, np.pi - 0.02])
    theta = np.array(turned["truth"])
    theta[:, 2] *= -1
    row = scored(theta, turned, judge)
    assert row["roll_deg"]["mean"] == pytest.approx(np.degrees(0.04), abs=1e-2)
    assert row["rotation_deg"]["mean"] == pytest.approx(np.degrees(0.04), abs=1e-2)


def test_without_coefficients_the_shape_is_the_mean_shape(judge, images):
    theta = np.array(images["truth"])
    theta[:, 6:] = 0.0
    row = scored(theta, images, judge)
    assert row["shape_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["shape_slope"]["mean"] == 0.0
    assert row["rotation_deg"]["mean"] < 1e-3 < row["nme"]["mean"]


def test_moved_by_a_pixel_points_are_off_by_a_pixel(judge, images):
    moved = dict(images)
    moved["keypoints"] = images["keypoints"] + np.float32([1, 0, 0])
    row = scored(images["truth"], moved, judge)
    points = images["keypoints"][..., :2]
    box = np.sqrt(np.ptp(points, axis=1).prod(-1))
    assert row["nme"]["mean"] == pytest.approx((1 / box).mean(), rel=1e-3)
    eyes = np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)
    assert row["nme_eyes"]["mean"] == pytest.approx((1 / eyes).mean(), rel=1e-3)


def test_photos_without_truth_have_landmarks_alone(judge, images):
    photos = {"image": images["image"], "keypoints": np.array(images["keypoints"])}
    photos["keypoints"][0] = np.nan
    row = scored(images["truth"], photos, judge)
    assert row["nme"]["n"] == 5 and not row["ground_truth"]
    assert row["nme"]["mean"] < 1e-4 and "by_yaw" not in row
    assert "shape" not in score.format_table([row])


def test_bins_of_yaw_hold_every_image_once(judge, images):
    row = scored(np.zeros_like(images["truth"]), images, judge)
    assert sum(part["nme"]["n"] for part in row["by_yaw"].values()) == 6
    assert row["by_yaw"]["0-30"]["yaw_deg"]["mean"] < 30


@pytest.mark.once
def test_views_at_the_truth_differ_by_what_the_images_do(judge):
    """Images of one colour each: flattened faces keep it."""
    several = stn_people.dataset(CONFIG, "val", count=2, views=4)
    colours = np.uint8([10, 60, 110, 160])[None, :, None, None, None]
    several.arrays["image"][:] = colours
    found = several_views.score_views(several.arrays["truth"], several, judge)
    assert (found["people"], found["views"]) == (2, 4)
    # The mean of the first two is 35, of the last two 135: 100 away, and 125, 75.
    assert found["variance"]["mean"] == pytest.approx(1.0, abs=0.35)
    assert 70 < 255 * found["mean"]["mean"] < 130
    same = several_views.variance(jnp.full((3, 2, 2, 3), 0.5), jnp.ones((3, 2, 2)))
    assert same == 0.0


def test_the_mean_of_views_leaves_out_what_is_hidden():
    flat = np.float32([0.2, 0.8, 0.5]).reshape(3, 1, 1, 1) * np.ones((3, 1, 2, 3))
    mask = jnp.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
    mean, known = several_views.mean_of(jnp.asarray(flat, jnp.float32), mask)
    np.testing.assert_allclose(mean[0, 0], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(known, [[1, 0]])


@pytest.mark.slow
def test_a_fit_of_true_landmarks_is_near_them(judge, images):
    theta = score.fitted(judge, images["keypoints"][..., :2])
    row = scored(theta, images, judge)
    zero = scored(np.zeros_like(theta), images, judge)
    assert row["nme"]["mean"] < 0.1 * zero["nme"]["mean"]
    assert row["shape_mm"]["mean"] < zero["shape_mm"]["mean"]


def scored_run(config, workdir):
    """A session, and the table of random parameters at step 7."""
    config.lock()
    session = Session(config, stn_people.splits(config), Interrupts())
    static = options.options_from_config(config, options.load_face(config))
    params = localiser.init_params(run_keys(0)[0], static.localiser, 32)
    ours = Scored(params, 7)
    return session, score.score_run(
        session, workdir, ours, "test", train_baselines=False
    )


def test_a_run_is_scored_once_beside_its_baselines(tmp_path):
    config = stn_people.config(
        eval__max_images=5, eval__baselines=("zero", "constant", "no_shape")
    )
    session, table = scored_run(config, tmp_path)
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [*config.eval.baselines, "ours"]
    record = json.loads((tmp_path / "eval" / "test.json").read_text())
    assert record["images"] == 5 and record["checkpoint_step"] == 7
    rows = record["baselines"]
    assert rows["zero"]["shape_ratio"] == pytest.approx(1.0, abs=1e-5)
    again = score.recorded_table(session, tmp_path, 7, "test")
    assert again == table
    assert score.recorded_table(session, tmp_path, 8, "test") is None


@pytest.mark.once
def test_another_model_on_open_faces_is_scored_by_landmarks(tmp_path, monkeypatch):
    """Their true theta is none of its own, so no views are compared with it."""
    path = tmp_path / "mine.npz"
    model_files.save_model(path, morphable.load_model("open"))
    monkeypatch.setattr(people, "load_views", None)
    config = stn_people.config(
        face__model=str(path), eval__people=2, eval__baselines=("zero",)
    )
    scored_run(config, tmp_path)
    record = json.loads((tmp_path / "eval" / "test.json").read_text())
    assert record["nme"]["n"] == 6 and not record["ground_truth"]
    assert "views" not in record
