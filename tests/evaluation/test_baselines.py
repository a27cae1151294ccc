"""Rows that need no method, against numpy; and the whole way from arrays to a row."""

import balls
import numpy as np
import pytest
from balls import dataset_of
from defaults import options

from unsup3d_jax.evaluation import masks, summary
from unsup3d_jax.evaluation.baselines import average_depth, baseline_row
from unsup3d_jax.evaluation.scores import Limits, collect, score_depth

SIZE, COUNT = 32, 5
LIMITS = Limits(batch_size=3, max_images=0)
SCENE = options().scene


@pytest.fixture(scope="module")
def arrays():
    return balls.make(COUNT, SIZE)


def test_constant_baseline_is_the_spread_of_the_true_log_depth(arrays):
    got = baseline_row("constant", dataset_of(arrays), SCENE, LIMITS)
    expected = []
    for depth, mask in zip(arrays["depth"], arrays["mask"], strict=True):
        scored = np.asarray(masks.erode(mask))
        expected.append(np.log(depth[scored]).std())
    np.testing.assert_allclose(got["side"]["mean"], np.mean(expected), rtol=1e-3)
    assert got["name"] == "constant" and "view" not in got


def test_average_depth_is_taken_on_the_object_only(arrays):
    got = np.asarray(average_depth(dataset_of(arrays), Limits(2, 0), on_object=True))
    depth, mask = arrays["depth"], arrays["mask"]
    count = mask.sum(0)
    expected = (depth * mask).sum(0) / np.maximum(count, 1)
    np.testing.assert_allclose(got[count > 0], expected[count > 0], rtol=1e-6)
    # The background (1.1) never enters, and what no mask holds is continued.
    assert got.max() <= expected[count > 0].max() + 1e-6 and got.min() > 0.9


def test_average_with_background_is_the_plain_mean(arrays):
    got = average_depth(dataset_of(arrays), LIMITS, on_object=False)
    np.testing.assert_allclose(got, arrays["depth"].mean(0), rtol=1e-6)


def test_mask_defaults_to_what_is_nearer_than_the_background(arrays):
    given, found = (
        baseline_row("constant", data, SCENE, LIMITS)
        for data in (dataset_of(arrays), dataset_of(arrays, mask=None))
    )
    assert given["side"] == found["side"] and given["coverage"] == found["coverage"]


def test_a_baseline_is_scored_on_the_pixels_of_another_row_too(arrays):
    """The last batch is padded, and each image has pixels of its own."""
    shared = np.random.default_rng(1).uniform(size=(COUNT, SIZE, SIZE)) > 0.02
    data = dataset_of(arrays)
    got = baseline_row("constant", data, SCENE, LIMITS, shared=shared)
    side, coverage = [], []
    for depth, mask, part in zip(arrays["depth"], arrays["mask"], shared, strict=True):
        scored = np.asarray(masks.erode(mask)) & np.asarray(masks.erode(part))
        side.append(np.log(depth[scored]).std())
        coverage.append(scored.sum() / mask.sum())
    found = got.pop("shared_pixels")
    np.testing.assert_allclose(found["side"]["mean"], np.mean(side), rtol=1e-3)
    np.testing.assert_allclose(found["coverage"]["mean"], np.mean(coverage), rtol=1e-5)
    assert found["scored_images"] == COUNT
    # What it scores on its own pixels is what it was, to the last bit.
    assert got == baseline_row("constant", data, SCENE, LIMITS)
    assert found["coverage"]["mean"] < 0.95 * got["coverage"]["mean"]


def test_unknown_name_is_an_error(arrays):
    with pytest.raises(ValueError, match="none of constant"):
        baseline_row("untrained", dataset_of(arrays), SCENE, LIMITS)


def test_true_depth_scores_perfectly_without_any_method(arrays):
    def score(batch, truth, _):
        return score_depth(batch.depth, batch.mask, batch, truth, fov_deg=10.0)

    scores = collect("truth", score, dataset_of(arrays), Limits(2, max_images=3))
    np.testing.assert_array_equal(scores.usable, arrays["mask"][:3])
    row = summary.row_of("truth", scores)
    assert (row["name"], row["images"], row["scored_images"]) == ("truth", 3, 3)
    assert row["side"] == {"mean": 0.0, "std": 0.0, "n": 3}
    np.testing.assert_allclose(row["depth_pearson"]["mean"], 1.0, rtol=1e-4)
    assert "view" not in row and "shape" not in row
