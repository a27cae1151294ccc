"""The example without a network, and the programs that measure."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import stn3dmm_layers, stn3dmm_rows, stn3dmm_views
from unsup3d_jax.stn3dmm import example_face, fit_example, morphable


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fit_example", *words])
    fit_example.main()


@pytest.mark.once
def test_the_example_finds_a_face_by_its_landmarks(tmp_path, monkeypatch, capsys):
    """From theta = 0: 0.5 degrees, 0.3 px, and all of it in 10 seconds of a CPU."""
    began = time.process_time()
    run(monkeypatch, f"--output={tmp_path}")
    assert time.process_time() - began < 10.0
    said = capsys.readouterr().out
    landmarks, px, degrees = (
        float(said.split(word)[0].split()[-1]) for word in (" landm", " px", " deg")
    )
    assert landmarks == 21 and px < 0.3 and degrees < 0.5
    record = json.loads((tmp_path / "theta.json").read_text())
    assert record["landmark_error_px"] < 0.3 and record["rotation_error_deg"] < 0.5
    # The face is turned, and has a shape of its own: theta = 0 is no answer.
    true = np.array(record["true_theta"])
    assert np.degrees(np.linalg.norm(true[:3])) > 20 and np.abs(true[6:]).max() > 1
    np.testing.assert_allclose(record["theta"], true, atol=0.1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"flattened.png", "panel.png", "theta.json"}


def test_the_face_that_ships_is_where_its_theta_says():
    """Its landmarks lie on it: lips are red, and the nose is not."""
    picture = example_face.shipped()
    size = example_face.SIZE
    assert picture.image.shape == (size, size, 3)
    kept = np.flatnonzero(picture.coefficients)
    last = example_face.NUM_IDENTITY
    assert set(kept) <= {*range(5), *range(last, last + 5)} and len(kept) == 10
    model, camera = fit_example.model_of(8, "ibug68", few=True)
    points = fit_example.known_of(picture, model, camera).landmarks
    outer, inner = points[[50, 51, 52, 56, 57, 58]], points[[61, 62, 63, 66, 66, 66]]
    lips, nose = (outer + inner) / 2, points[27:31]  # iBUG's
    for part, low, high in ((lips, 1.9, 2.3), (nose, 1.1, 1.5)):
        u, v = np.rint(part).astype(int).T
        red, green, _ = picture.image[v, u].astype(float).T
        assert ((low < red / green) & (red / green < high)).all()


@pytest.mark.slow  # a renderer to compile
def test_the_face_that_ships_is_what_its_script_renders(tmp_path, monkeypatch):
    path = tmp_path / "face.npz"
    monkeypatch.setattr(sys, "argv", ["example_face", str(path)])
    example_face.main()
    with np.load(path) as made:
        for name, array in example_face.shipped()._asdict().items():
            apart = np.abs(made[name].astype(float) - array)
            assert np.quantile(apart, 0.99) <= (1.0 if name == "image" else 1e-5)


@pytest.mark.slow
def test_anybody_is_fitted_and_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_example, "GRID", 24)
    monkeypatch.setattr(fit_example, "FINE_GRID", 24)
    run(monkeypatch, f"--output={tmp_path}", "--seed=3", "--export")
    said = capsys.readouterr().out
    assert float(said.split(" px")[0].split()[-1]) < 0.3
    assert float(said.split(" deg")[0].split()[-1]) < 3.0
    assert {"mesh.glb", "frontal.png", "theta.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_plain_numpy_does_the_same_as_the_layers():
    model = morphable.grid_model(
        morphable.load_model("open"), 20, identity=6, expression=4
    )
    camera = morphable.default_camera(model)
    images, theta = stn3dmm_layers.inputs(model, 3, 32)
    on_device = jax.tree.map(jnp.asarray, model)
    forward, _ = stn3dmm_layers.programs(on_device, camera, "facing")
    naive = stn3dmm_layers.Naive(model, camera, 32)(images, theta)
    found = forward(images, theta)
    assert stn3dmm_layers.check(found, naive)["mean"] < 1e-5
    with pytest.raises(SystemExit, match="disagree"):
        stn3dmm_layers.check(forward(images[::-1].copy(), theta), naive)


def test_a_finished_row_counts_for_its_keys_only(tmp_path):
    record = tmp_path / "full-0.json"
    row = {"keys": ["a=1"], "common": ["--config=c", "--config.data.cache_dir=here"]}
    record.write_text(json.dumps(row))
    same = ["--config=c", "--config.data.cache_dir=there"]
    assert stn3dmm_rows.finished_row(record, ["a=1"], same, "") == row
    for keys, common, also in (
        (["a=2"], same, ""),
        (["a=1"], [*same, "--config.train.steps=9"], ""),
        (["a=1"], same, "data.pose=natural"),
    ):
        with pytest.raises(SystemExit, match="full-0.json is of another row"):
            stn3dmm_rows.finished_row(record, keys, common, also)


def test_a_gain_a_channel_does_not_count():
    rng = np.random.default_rng(0)
    true, counted = rng.uniform(size=(8, 8, 3)), rng.uniform(size=(8, 8)) > 0.3
    face = true * [0.5, 0.8, 1.1]
    face[~counted] = 7.0
    assert stn3dmm_views.difference(face, true, counted) < 1e-12
    assert stn3dmm_views.difference(true[::-1], true, counted) > 0.05
