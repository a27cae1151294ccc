"""Viewpoint, albedo, light, confidence and keypoints, against slow references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.evaluation import metrics
from unsup3d_jax.formation import geometry

# One small program each: operation by operation they compile for longer.
depth_at = jax.jit(metrics.depth_at)
rotation_matrix = jax.jit(geometry.rotation_matrix)
viewpoint_errors = jax.jit(metrics.viewpoint_errors)


def _rotations(rng, n, spread):
    view = np.zeros((n, 6), np.float32)
    view[:, :3] = rng.normal(0, spread, (n, 3))
    return view


def _matrix(view):
    return np.asarray(rotation_matrix(jnp.asarray(view[:3])), np.float64)


def _angles(rotation):
    """Angles about x, y, z of Rz Ry Rx."""
    return np.array(
        [
            np.arctan2(rotation[2, 1], rotation[2, 2]),
            np.arcsin(-rotation[2, 0]),
            np.arctan2(rotation[1, 0], rotation[0, 0]),
        ]
    )


def _angle_deg(a, b):
    cosine = (np.trace(a.T @ b) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


# --- viewpoint --------------------------------------------------------------------


def test_another_canonical_frame_is_no_error():
    rng = np.random.default_rng(0)
    truth = _rotations(rng, 7, 0.4)
    offset = _matrix(np.array([0.3, -0.8, 0.2], np.float32))
    view = truth.copy()
    for i in range(7):  # predicted R with R Q = R*
        view[i, :3] = _angles(_matrix(truth[i]) @ offset.T)
    got = viewpoint_errors(jnp.asarray(view), jnp.asarray(truth))
    np.testing.assert_allclose(got.error_deg, 0, atol=1e-3)
    np.testing.assert_allclose(got.offset, offset, atol=1e-5)
    np.testing.assert_allclose(got.offset_deg, _angle_deg(offset, np.eye(3)), rtol=1e-4)


def test_viewpoint_errors_are_those_of_the_best_rotation():
    rng = np.random.default_rng(1)
    view, truth = _rotations(rng, 9, 0.3), _rotations(rng, 9, 0.3)
    got = viewpoint_errors(jnp.asarray(view), jnp.asarray(truth))
    pairs = [(_matrix(v), _matrix(t)) for v, t in zip(view, truth, strict=True)]
    offset = np.asarray(got.offset, np.float64)
    expected = [_angle_deg(r @ offset, t) for r, t in pairs]
    np.testing.assert_allclose(got.error_deg, expected, rtol=1e-3)

    def cost(q):
        return sum(np.sum((r @ q - t) ** 2) for r, t in pairs)

    best = cost(offset)
    for _ in range(200):  # no rotation nearby, or far away, does better
        size = rng.choice([0.01, 0.1, 1.0])
        other = _matrix(rng.normal(0, size, 3).astype(np.float32)) @ offset
        assert cost(other) >= best - 1e-4


def test_offset_is_a_rotation_also_where_a_reflection_fits_better():
    # Predictions that are the mirror image of the truth.
    truth = np.zeros((4, 6), np.float32)
    truth[:, :3] = [[0.5, 0, 0], [-0.5, 0, 0], [0, 0, 1.2], [0, 0, -1.2]]
    got = viewpoint_errors(jnp.asarray(-truth), jnp.asarray(truth))
    assert np.linalg.det(np.asarray(got.offset)) > 0.99
    np.testing.assert_allclose(got.offset.T @ got.offset, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 0.01, 30.0, 179.9])
def test_rotation_angle_keeps_its_digits(degrees):
    turn = _matrix(np.array([0, np.radians(degrees), 0]))
    got = metrics.rotation_angle_deg(jnp.asarray(turn), jnp.eye(3))
    np.testing.assert_allclose(got, degrees, rtol=2e-2 if degrees < 1 else 1e-3)


# --- albedo and light -------------------------------------------------------------


def test_albedo_error_ignores_one_scale_and_what_is_outside():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.2, 0.8, (6, 5, 3)).astype(np.float32)
    mask = rng.random((6, 5)) < 0.6
    scaled = np.where(mask[..., None], 0.4 * truth, np.nan)
    got = metrics.albedo_error(jnp.asarray(scaled), truth, mask)
    np.testing.assert_allclose(got, 0, atol=1e-6)

    other = rng.uniform(0, 1, truth.shape).astype(np.float32)
    costs = []
    for scale in np.linspace(0, 2, 2001):  # search instead of a formula
        error = (scale * other - truth)[mask]
        costs.append(np.sqrt(np.mean(error**2)))
    got = metrics.albedo_error(jnp.asarray(other), truth, mask)
    np.testing.assert_allclose(got, min(costs), rtol=1e-5)
    nothing = metrics.albedo_error(jnp.asarray(other), truth, np.zeros((6, 5), bool))
    assert float(nothing) == 0.0


def test_light_error_does_not_see_the_canonical_frame_or_a_common_factor():
    rng = np.random.default_rng(3)
    view = jnp.asarray(_rotations(rng, 1, 0.5)[0])
    direction = np.array([0.3, -0.4, 1.0])
    direction /= np.linalg.norm(direction)
    truth = np.concatenate([[0.5, 0.3], direction]).astype(np.float32)
    canonical = _matrix(np.asarray(view)).T @ direction
    light = np.concatenate([[0.25, 0.15], canonical]).astype(np.float32)
    angle, share = metrics.light_errors(jnp.asarray(light), view, jnp.asarray(truth))
    assert float(angle) < 1e-3 and float(share) < 1e-6
    light[:2] = [0.1, 0.3]
    light[2:] = _matrix(np.asarray(view)).T @ [0, 0, 1]
    angle, share = metrics.light_errors(jnp.asarray(light), view, jnp.asarray(truth))
    np.testing.assert_allclose(angle, np.degrees(np.arccos(direction[2])), rtol=1e-3)
    np.testing.assert_allclose(share, 0.75 - 0.375, rtol=1e-5)


# --- confidence -------------------------------------------------------------------


def test_reliability_bins_against_a_loop():
    rng = np.random.default_rng(4)
    sigma = np.exp(rng.normal(-2, 3, (9, 8))).astype(np.float32)  # beyond both ends
    residual = rng.random((9, 8)).astype(np.float32)
    mask = rng.random((9, 8)) < 0.7
    edges = metrics.SIGMA_BIN_EDGES
    expected = np.zeros((len(edges) - 1, 3))
    for s, r in zip(sigma[mask], residual[mask], strict=True):
        k = sum(s >= e for e in edges[1:-1])
        expected[k] += [1, s, r]
    got = metrics.reliability_bins(jnp.asarray(sigma), jnp.asarray(residual), mask)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_laplace_residual_is_calibrated_and_twice_of_it_is_not():
    rng = np.random.default_rng(5)
    sigma = np.exp(rng.uniform(-4, 0, (200, 200))).astype(np.float32)
    residual = np.abs(rng.laplace(0, sigma / np.sqrt(2))).astype(np.float32)
    everywhere = np.ones(sigma.shape, bool)

    def curve(residual):
        bins = metrics.reliability_bins(sigma, jnp.asarray(residual), everywhere)
        return metrics.reliability_curve(np.asarray(bins))

    good, bad = curve(residual), curve(2 * residual)
    assert good["calibration_error"] < 0.05
    np.testing.assert_allclose(bad["calibration_error"], 0.5, atol=0.05)
    np.testing.assert_allclose(sum(p["share"] for p in good["curve"]), 1.0)
    for point in good["curve"]:
        np.testing.assert_allclose(
            point["expected_residual"], point["sigma"] / np.sqrt(2)
        )
    empty = metrics.reliability_curve(np.zeros((3, 3)))
    assert empty == {"curve": [], "calibration_error": None}


def test_auroc_counts_pairs_and_ties():
    rng = np.random.default_rng(6)
    score = rng.integers(0, 6, (7, 8)).astype(np.float32)  # many ties
    positive, mask = rng.random((7, 8)) < 0.3, rng.random((7, 8)) < 0.8
    a, b = score[positive & mask], score[~positive & mask]
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    got, defined = metrics.auroc(jnp.asarray(score), positive, mask)
    assert bool(defined)
    np.testing.assert_allclose(got, np.mean(pairs), rtol=1e-6)
    one_kind, defined = metrics.auroc(jnp.asarray(score), positive, positive)
    assert float(one_kind) == 0.5 and not bool(defined)


def test_mirrored_mask_is_the_mirror_image_seen_from_the_front():
    mask = np.zeros((9, 9), bool)
    mask[2:4, 1:3] = True
    depth = jnp.full((9, 9), 1.0)
    got = metrics.mirrored_mask(
        mask, depth, jnp.zeros(6), fov_deg=10.0, centre_depth=1.0
    )
    np.testing.assert_array_equal(got, mask[:, ::-1])


def test_mirrored_mask_follows_the_turned_surface():
    """A plane turned by its viewpoint keeps its own left and right."""
    size, turn = 33, 0.5
    view = jnp.array([0.0, turn, 0.0, 0.0, 0.0, 0.0])
    # The plane z = 1 of the canonical frame, seen from the turned camera.
    rays = np.asarray(geometry.depth_to_points(jnp.ones((size, size)), fov_deg=10.0))
    normal = _matrix(np.asarray(view)) @ [0, 0, 1]
    depth = (normal[2] / (rays @ normal)).astype(np.float32)
    points = jax.vmap(lambda p: geometry.inverse_transform(p, view, centre_depth=1.0))(
        jnp.asarray(depth[..., None] * rays)
    )
    np.testing.assert_allclose(points[..., 2], 1.0, atol=1e-5)
    x = np.asarray(points[..., 0])
    mask = (x > 0.02) & (x < 0.05)
    got = metrics.mirrored_mask(
        mask, jnp.asarray(depth), view, fov_deg=10.0, centre_depth=1.0
    )
    sure = np.abs(np.abs(-x - 0.035) - 0.015) > 0.004  # a pixel from an edge
    sure[:4] = sure[-4:] = False  # whose mirror image lies above or below
    expected = (-x > 0.02) & (-x < 0.05)
    np.testing.assert_array_equal(np.asarray(got)[sure], expected[sure])


# --- keypoints --------------------------------------------------------------------


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


def test_keypoint_correlation_is_the_trace_of_the_correlation_matrix():
    rng = np.random.default_rng(8)
    truth = rng.normal(1, 0.1, (12, 5))
    depth = 0.5 * truth + rng.normal(0, 0.05, (12, 5))
    a, b = (x - x.mean(1, keepdims=True) for x in (depth, truth))
    k = 5
    matrix = np.corrcoef(a.T, b.T)[:k, k:]
    got = metrics.keypoint_depth_correlation(depth, truth)
    np.testing.assert_allclose(got["sum"], np.trace(matrix))
    np.testing.assert_allclose(got["share"], np.trace(matrix) / k)
    raw = np.trace(np.corrcoef(depth.T, truth.T)[:k, k:])
    np.testing.assert_allclose(got["sum_absolute_depth"], raw)
    rows = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(got["per_image"]["mean"], np.mean(rows))
    np.testing.assert_allclose(got["per_image"]["std"], np.std(rows, ddof=1))


def test_the_truth_scores_all_its_keypoints_and_a_plane_none():
    rng = np.random.default_rng(9)
    truth = rng.normal(1, 0.1, (8, 66)).astype(np.float32)
    far = 3 * truth + rng.normal(0, 1, (8, 1))  # another unit, another distance
    perfect = metrics.keypoint_depth_correlation(far, truth)
    np.testing.assert_allclose(perfect["sum"], 66, rtol=1e-5)
    flat = metrics.keypoint_depth_correlation(np.ones_like(truth), truth)
    assert flat["sum"] == 0.0 and flat["per_image"]["mean"] == 0.0
    far[3, 5] = np.nan  # such an image is left out
    assert metrics.keypoint_depth_correlation(far, truth)["images"] == 7
    assert metrics.keypoint_depth_correlation(far[:1], truth[:1])["sum"] is None
    with pytest.raises(ValueError, match="equal"):
        metrics.keypoint_depth_correlation(far, truth[:, :5])
