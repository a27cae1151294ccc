"""Confidence maps against slow references: calibration, ranking, mirror images."""

import jax
import jax.numpy as jnp
import numpy as np
from turns import matrix

from unsup3d_jax.evaluation.confidence import (
    SIGMA_BIN_EDGES,
    auroc,
    mirrored_mask,
    reliability_bins,
    reliability_curve,
)
from unsup3d_jax.formation import geometry


def test_reliability_bins_against_a_loop():
    rng = np.random.default_rng(4)
    sigma = np.exp(rng.normal(-2, 3, (9, 8))).astype(np.float32)  # beyond both ends
    residual = rng.random((9, 8)).astype(np.float32)
    mask = rng.random((9, 8)) < 0.7
    edges = SIGMA_BIN_EDGES
    expected = np.zeros((len(edges) - 1, 3))
    for s, r in zip(sigma[mask], residual[mask], strict=True):
        k = sum(s >= e for e in edges[1:-1])
        expected[k] += [1, s, r]
    got = reliability_bins(jnp.asarray(sigma), jnp.asarray(residual), mask)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_laplace_residual_is_calibrated_and_twice_of_it_is_not():
    rng = np.random.default_rng(5)
    sigma = np.exp(rng.uniform(-4, 0, (200, 200))).astype(np.float32)
    residual = np.abs(rng.laplace(0, sigma / np.sqrt(2))).astype(np.float32)
    everywhere = np.ones(sigma.shape, bool)

    def curve(residual):
        bins = reliability_bins(sigma, jnp.asarray(residual), everywhere)
        return reliability_curve(np.asarray(bins))

    good, bad = curve(residual), curve(2 * residual)
    assert good["calibration_error"] < 0.05
    np.testing.assert_allclose(bad["calibration_error"], 0.5, atol=0.05)
    np.testing.assert_allclose(sum(p["share"] for p in good["curve"]), 1.0)
    for point in good["curve"]:
        np.testing.assert_allclose(
            point["expected_residual"], point["sigma"] / np.sqrt(2)
        )
    empty = reliability_curve(np.zeros((3, 3)))
    assert empty == {"curve": [], "calibration_error": None}


def test_auroc_counts_pairs_and_ties():
    rng = np.random.default_rng(6)
    score = rng.integers(0, 6, (7, 8)).astype(np.float32)  # many ties
    positive, mask = rng.random((7, 8)) < 0.3, rng.random((7, 8)) < 0.8
    a, b = score[positive & mask], score[~positive & mask]
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    got, defined = auroc(jnp.asarray(score), positive, mask)
    assert bool(defined)
    np.testing.assert_allclose(got, np.mean(pairs), rtol=1e-6)
    one_kind, defined = auroc(jnp.asarray(score), positive, positive)
    assert float(one_kind) == 0.5 and not bool(defined)


def test_mirrored_mask_is_the_mirror_image_seen_from_the_front():
    mask = np.zeros((9, 9), bool)
    mask[2:4, 1:3] = True
    depth = jnp.full((9, 9), 1.0)
    got = mirrored_mask(mask, depth, jnp.zeros(6), fov_deg=10.0, centre_depth=1.0)
    np.testing.assert_array_equal(got, mask[:, ::-1])


def test_mirrored_mask_follows_the_turned_surface():
    """A plane turned by its viewpoint keeps its own left and right."""
    size, turn = 33, 0.5
    view = jnp.array([0.0, turn, 0.0, 0.0, 0.0, 0.0])
    # The plane z = 1 of the canonical frame, seen from the turned camera.
    rays = np.asarray(geometry.depth_to_points(jnp.ones((size, size)), fov_deg=10.0))
    normal = matrix(np.asarray(view)) @ [0, 0, 1]
    depth = (normal[2] / (rays @ normal)).astype(np.float32)
    points = jax.vmap(lambda p: geometry.inverse_transform(p, view, centre_depth=1.0))(
        jnp.asarray(depth[..., None] * rays)
    )
    np.testing.assert_allclose(points[..., 2], 1.0, atol=1e-5)
    x = np.asarray(points[..., 0])
    mask = (x > 0.02) & (x < 0.05)
    got = mirrored_mask(mask, jnp.asarray(depth), view, fov_deg=10.0, centre_depth=1.0)
    sure = np.abs(np.abs(-x - 0.035) - 0.015) > 0.004  # a pixel from an edge
    sure[:4] = sure[-4:] = False  # whose mirror image lies above or below
    expected = (-x > 0.02) & (-x < 0.05)
    np.testing.assert_array_equal(np.asarray(got)[sure], expected[sure])
