"""Viewpoints of a set of images: angle by angle, and up to one common rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from turns import angle_deg, angles, matrix, rotations

from unsup3d_jax.evaluation import viewpoint
from unsup3d_jax.evaluation.angles import rotation_angle_deg
from unsup3d_jax.evaluation.viewpoint import angle_agreement

# One small program: operation by operation it compiles for longer.
viewpoint_errors = jax.jit(viewpoint.viewpoint_errors)


def test_angle_agreement_matches_numpy():
    rng = np.random.default_rng(1)
    truth = rng.normal(0.1, 0.5, 200)
    angle = 0.6 * truth + 0.05 + rng.normal(0, 0.1, 200)
    got = angle_agreement(jnp.asarray(angle), jnp.asarray(truth))
    np.testing.assert_allclose(got.pearson, np.corrcoef(angle, truth)[0, 1], rtol=1e-4)
    np.testing.assert_allclose(got.slope, np.polyfit(truth, angle, 1)[0], rtol=1e-4)
    np.testing.assert_allclose(
        got.offset_deg, np.degrees(np.mean(angle - truth)), rtol=1e-3
    )
    np.testing.assert_allclose(
        got.true_spread_deg, np.degrees(truth.std(ddof=1)), rtol=1e-4
    )


def test_slope_regresses_the_prediction_on_the_truth():
    # Swapped axes would give 2 instead of 0.5; a mirrored yaw -0.5.
    truth = jnp.linspace(-1, 1, 9)
    got = angle_agreement(0.5 * truth, truth)
    np.testing.assert_allclose([got.slope, got.pearson], [0.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(angle_agreement(-0.5 * truth, truth).slope, -0.5)


@pytest.mark.parametrize("constant", ["prediction", "truth"])
def test_angles_that_do_not_vary_give_zero_not_nan(constant):
    varying, fixed = jnp.linspace(-1, 1, 9), jnp.full(9, 0.3)
    pair = (fixed, varying) if constant == "prediction" else (varying, fixed)
    got = angle_agreement(*pair)
    assert got.pearson == 0.0
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(got))


def test_another_canonical_frame_is_no_error():
    rng = np.random.default_rng(0)
    truth = rotations(rng, 7, 0.4)
    offset = matrix(np.array([0.3, -0.8, 0.2], np.float32))
    view = truth.copy()
    for i in range(7):  # predicted R with R Q = R*
        view[i, :3] = angles(matrix(truth[i]) @ offset.T)
    got = viewpoint_errors(jnp.asarray(view), jnp.asarray(truth))
    np.testing.assert_allclose(got.error_deg, 0, atol=1e-3)
    np.testing.assert_allclose(got.offset, offset, atol=1e-5)
    np.testing.assert_allclose(got.offset_deg, angle_deg(offset, np.eye(3)), rtol=1e-4)


def test_viewpoint_errors_are_those_of_the_best_rotation():
    rng = np.random.default_rng(1)
    view, truth = rotations(rng, 9, 0.3), rotations(rng, 9, 0.3)
    got = viewpoint_errors(jnp.asarray(view), jnp.asarray(truth))
    pairs = [(matrix(v), matrix(t)) for v, t in zip(view, truth, strict=True)]
    offset = np.asarray(got.offset, np.float64)
    expected = [angle_deg(r @ offset, t) for r, t in pairs]
    np.testing.assert_allclose(got.error_deg, expected, rtol=1e-3)

    def cost(q):
        return sum(np.sum((r @ q - t) ** 2) for r, t in pairs)

    best = cost(offset)
    for _ in range(200):  # no rotation nearby, or far away, does better
        size = rng.choice([0.01, 0.1, 1.0])
        other = matrix(rng.normal(0, size, 3).astype(np.float32)) @ offset
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
    turn = matrix(np.array([0, np.radians(degrees), 0]))
    got = rotation_angle_deg(jnp.asarray(turn), jnp.eye(3))
    np.testing.assert_allclose(got, degrees, rtol=2e-2 if degrees < 1 else 1e-3)
