"""Doubt: a photo among those of the validation split, and where that is kept."""

import json

import bust
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation.scores import ImageScores
from unsup3d_jax.formation.types import Canonical, Reconstruction, Warped
from unsup3d_jax.unsup3d import belief, evaluate, reconstruct_files, score

STEP = 7


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    error = rng.uniform(0.02, 0.08, 400).astype(np.float32)
    return ImageScores(
        recon_l1=error,
        valid_share=rng.uniform(0.7, 0.9, 400).astype(np.float32),
    )


@pytest.fixture(scope="module")
def usual(scores):
    return belief.Usual.of(scores, STEP)


def photo(error=0.05, coverage=0.8):
    return {"error": error, "coverage": coverage}


def test_five_percent_of_its_own_photos_are_doubted(usual, scores):
    rows = zip(scores.recon_l1, scores.valid_share, strict=True)
    doubts = np.array([usual.doubt(photo(*map(float, row))) for row in rows])
    assert usual.images == 400 and 0.0 <= doubts.min() < 5.0
    assert 0.03 < (doubts > belief.LIMIT).mean() < 0.07
    assert abs(np.median(doubts) - 50.0) < 3.0


@pytest.mark.parametrize(
    "odd", [{"error": 0.3}, {"coverage": 0.2}, {"error": float("nan")}]
)
def test_each_measure_alone_makes_doubt(usual, odd):
    assert usual.doubt(photo()) < 80.0
    assert usual.doubt(photo() | odd) == 100.0
    # What is better than all does not.
    assert usual.doubt(photo(error=0.0, coverage=1.0)) < 5.0


def test_it_is_kept_beside_the_checkpoint_it_is_of(usual, tmp_path):
    assert belief.find(tmp_path, STEP) is None
    (tmp_path / "config.json").write_text("{}")
    belief.save(tmp_path, usual)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "checkpoints" / "7"):
        assert belief.find(place, STEP) == usual
        assert belief.find(place, STEP + 1) is None
    stored = json.loads((tmp_path / belief.NAME).read_text())
    assert belief.Usual.read(stored) == usual
    stored["worst"][3] = None
    for torn in (stored, {}, None, [1], stored | {"worst": [1.0]}):
        assert belief.Usual.read(torn) is None
    (tmp_path / belief.NAME).write_text("[")
    assert belief.find(tmp_path, STEP) is None


def test_photos_are_measured_as_the_validation_split_is():
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(2, 8, 8, 3)).astype(np.float32)

    def warped(covered):
        made = jnp.asarray(rng.uniform(size=images.shape), jnp.float32)
        return Warped(depth=made[..., 0], valid=jnp.asarray(covered), image=made)

    some = rng.uniform(size=(2, 8, 8)) < 0.6
    some[1] = False  # nothing is covered: no number is NaN
    canonical = Canonical(
        image=jnp.asarray(images),
        normal=jnp.asarray(images),
        shading=jnp.asarray(images[..., 0]),
    )
    found = Reconstruction(
        canonical=canonical,
        canonical_flip=canonical,
        plain=warped(some),
        flip=warped(~some),
    )
    measured = belief.measure(found, images)
    expected = evaluate._reconstruction_errors(found, jnp.asarray(images))
    for name, key in belief.MEASURES.items():
        ours = [row[name] for row in measured]
        np.testing.assert_allclose(ours, expected[key], rtol=1e-5, atol=1e-7)


def test_what_is_said_of_a_photo(usual):
    said = reconstruct_files.remark({"belief": belief.numbers(photo(), usual)})
    assert said.warning == "" and said.text.startswith(
        "error 0.050, coverage 80%, doub"
    )
    assert said.columns["doubtful"] is False
    bad = belief.numbers(photo(error=0.3), usual)
    said = reconstruct_files.remark({"belief": bad})
    assert "worse than 100 % of the photos" in said.warning
    assert "error 0.300, usually 0.05" in said.warning and said.columns["doubtful"]
    np.testing.assert_allclose(belief.as_array(bad), [0.3, 0.8, 100.0])
    unknown = belief.numbers(photo(error=0.3), None)
    said = reconstruct_files.remark({"belief": unknown})
    assert said.text == "error 0.300, coverage 80%" and said.warning == ""
    assert np.isnan(belief.as_array(unknown)[2])
    assert reconstruct_files.remark({}).columns == {}


def test_it_is_measured_on_the_validation_split_or_said_why_not(scores, monkeypatch):
    def split(images):
        def load(name):
            if not images:
                raise UserError(f"no {name} split.")
            return [None] * images

        return load

    asked = []

    def score_images(params, data, options, *, limits, **_):
        asked.append((len(data), limits.max_images))
        return scores

    monkeypatch.setattr(evaluate, "score_images", score_images)
    config = bust.config_of(32)
    assert score.find_usual(config, split(0), {}, STEP) == "no val split."
    few = score.find_usual(config, split(19), {}, STEP)
    assert few == "19 validation images are too few (20)." and not asked
    assert score.find_usual(config, split(20), {}, STEP) == belief.Usual.of(
        scores, STEP
    )
    assert asked == [(20, belief.MOST_IMAGES)]
    config.model.supervision = "depth"
    assert "all of its factors" in str(score.find_usual(config, split(20), {}, STEP))
