"""The example without a network, and the programs that measure."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import stn3dmm_layers, stn3dmm_views
from unsup3d_jax.stn3dmm import fit_example, morphable


@pytest.mark.once
def test_the_example_finds_a_face_by_its_landmarks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_example, "GRID", 24)
    words = ["fit_example", f"--output={tmp_path}", "--size=64", "--seed=3"]
    monkeypatch.setattr(sys, "argv", words)
    fit_example.main()
    said = capsys.readouterr().out
    landmarks, px, degrees = (
        float(said.split(word)[0].split()[-1]) for word in (" landm", " px", " deg")
    )
    assert landmarks == 21 and px < 0.3 and degrees < 0.5
    assert {"flattened.png", "mesh.glb", "frontal.png"} <= {
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


def test_a_gain_a_channel_does_not_count():
    rng = np.random.default_rng(0)
    true, counted = rng.uniform(size=(8, 8, 3)), rng.uniform(size=(8, 8)) > 0.3
    face = true * [0.5, 0.8, 1.1]
    face[~counted] = 7.0
    assert stn3dmm_views.difference(face, true, counted) < 1e-12
    assert stn3dmm_views.difference(true[::-1], true, counted) > 0.05
