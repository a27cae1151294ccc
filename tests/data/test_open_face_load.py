"""Open faces as the data set of a config."""

import pytest
from samples import SIZE, faces, truth_config

from unsup3d_jax.data.batches import FACTORS
from unsup3d_jax.data.load import load_split
from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.errors import UserError


def test_open_faces_are_loaded_with_the_options_of_the_config(tmp_path, monkeypatch):
    calls = []

    def load(split, *, count, **options):
        calls.append((split, count, options))
        return faces(count)

    monkeypatch.setattr(open_faces, "load", load)
    config = truth_config(tmp_path)
    config.data.count_val, config.data.max_images, config.data.seed = 9, 6, 3
    config.data.pose, config.data.perturb = "natural", True
    dataset = load_split(config, "val")
    ((split, count, options),) = calls
    assert (split, count, len(dataset)) == ("val", 6, 6)
    assert {k: options[k] for k in ("image_size", "seed", "pose", "asymmetry")} == {
        "image_size": SIZE, "seed": 3, "pose": "natural", "asymmetry": 1.0,
    }  # fmt: skip
    assert options["perturb"] is True
    assert str(options["cache_dir"]) == str(tmp_path)


def test_options_that_open_faces_refuses_are_user_errors(tmp_path):
    config = truth_config(tmp_path)
    config.data.pose = "sideways"
    with pytest.raises(UserError, match="config.data, open_faces: pose"):
        load_split(config, "train")


@pytest.mark.parametrize(
    "section, name, value, allowed",
    [
        ("view", "fov_deg", 20.0, False),
        ("view", "rotation_centre_depth", 1.1, False),
        ("depth", "min", 0.95, False),
        ("depth", "max", 1.05, False),
        ("depth", "min", 0.8, True),  # reaches the faces, and more
    ],
)
def test_open_faces_are_refused_through_another_camera(
    tmp_path, monkeypatch, section, name, value, allowed
):
    monkeypatch.setattr(open_faces, "load", lambda split, *, count, **_: faces(3))
    config = truth_config(tmp_path)
    config[section][name] = value
    if allowed:
        assert len(load_split(config, "train")) == 3
    else:
        with pytest.raises(UserError, match=rf"{section}\.{name} must be .*{value}"):
            load_split(config, "train")


@pytest.mark.slow
def test_open_faces_render(tmp_path):
    config = truth_config(tmp_path)
    config.data.image_size, config.data.count_train = 16, 5
    dataset = load_split(config, "train")
    assert dataset.arrays["image"].shape == (5, 16, 16, 3)
    assert set(FACTORS) == set(dataset.arrays)


def test_a_plain_background_is_grey_off_the_face_and_another_set(tmp_path, monkeypatch):
    monkeypatch.setattr(open_faces, "load", lambda split, *, count, **_: faces(count))
    config = truth_config(tmp_path)
    rendered = load_split(config, "val")
    config.data.background = "plain"
    plain = load_split(config, "val")
    mask = plain.arrays["mask"]
    assert mask.any() and not mask.all()
    assert (plain.arrays["image"][~mask] == 128).all()
    kept = plain.arrays["image"][mask] == rendered.arrays["image"][mask]
    assert kept.all() and plain.digest != rendered.digest
    config.data.background = "white"
    with pytest.raises(UserError, match="data.background must be one of .*'white'"):
        load_split(config, "val")
