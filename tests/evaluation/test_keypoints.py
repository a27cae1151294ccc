"""Depth at keypoints: where it is looked up, and the correlation of Table 5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.evaluation import keypoints
from unsup3d_jax.evaluation.keypoints import keypoint_depth_correlation

# One small program: operation by operation it compiles for longer.
depth_at = jax.jit(keypoints.depth_at)


def test_depth_at_is_bilinear_inside_and_nearest_beside_the_object():
    rng = np.random.default_rng(7)
    depth = rng.uniform(0.9, 1.1, (6, 7)).astype(np.float32)
    valid = np.ones((6, 7), bool)
    valid[:, 5:] = False
    depth[:, 5:] = 1.2
    points = np.array([[1.25, 2.5], [3.0, 4.0], [4.0, 5.0], [5.6, 1.2], [-3.0, 9.0]])
    got = depth_at(jnp.asarray(depth), valid, jnp.asarray(points, jnp.float32))
    bilinear = 0.5 * (0.75 * depth[2, 1] + 0.25 * depth[2, 2])
    bilinear += 0.5 * (0.75 * depth[3, 1] + 0.25 * depth[3, 2])
    expected = [bilinear, depth[4, 3], depth[5, 4], depth[1, 4], depth[5, 0]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    nowhere = depth_at(jnp.asarray(depth), ~valid & False, jnp.zeros((1, 2)))
    assert np.isnan(nowhere).all()


def test_keypoint_correlation_is_the_trace_of_the_correlationmatrix():
    rng = np.random.default_rng(8)
    truth = rng.normal(1, 0.1, (12, 5))
    depth = 0.5 * truth + rng.normal(0, 0.05, (12, 5))
    a, b = (x - x.mean(1, keepdims=True) for x in (depth, truth))
    k = 5
    matrix = np.corrcoef(a.T, b.T)[:k, k:]
    got = keypoint_depth_correlation(depth, truth)
    np.testing.assert_allclose(got["sum"], np.trace(matrix))
    np.testing.assert_allclose(got["share"], np.trace(matrix) / k)
    raw = np.trace(np.corrcoef(depth.T, truth.T)[:k, k:])
    np.testing.assert_allclose(got["sum_absolute_depth"], raw)
    rows = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(got["per_image"]["mean"], np.mean(rows))
    np.testing.assert_allclose(got["per_image"]["std"], np.std(rows, ddof=1))


def test_the_truth_scores_all_its_keypoints_and_a_plane_none(unchecked):
    rng = np.random.default_rng(9)
    truth = rng.normal(1, 0.1, (8, 66)).astype(np.float32)
    far = 3 * truth + rng.normal(0, 1, (8, 1))  # another unit, another distance
    perfect = keypoint_depth_correlation(far, truth)
    np.testing.assert_allclose(perfect["sum"], 66, rtol=1e-5)
    flat = keypoint_depth_correlation(np.ones_like(truth), truth)
    assert flat["sum"] == 0.0 and flat["per_image"]["mean"] == 0.0
    far[3, 5] = np.nan  # such an image is left out
    assert keypoint_depth_correlation(far, truth)["images"] == 7
    assert keypoint_depth_correlation(far[:1], truth[:1])["sum"] is None
    with pytest.raises(ValueError, match="equal"):
        keypoint_depth_correlation(far, truth[:, :5])
