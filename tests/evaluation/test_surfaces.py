"""Similarity alignment, against SciPy's and by its own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unsup3d_jax.evaluation import angles
from unsup3d_jax.evaluation.surfaces import aligned, mask_agreement, rms_distance
from unsup3d_jax.formation.geometry import rotation_matrix

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 3)).astype(np.float32)
align = jax.jit(aligned)


def test_what_differs_by_a_similarity_is_brought_together():
    turn = Rotation.from_rotvec([0.4, -1.0, 2.0]).as_matrix()
    target = (1.7 * POINTS @ turn.T + [3, -2, 1]).astype(np.float32)
    np.testing.assert_allclose(align(POINTS, target), target, atol=2e-5)
    assert rms_distance(align(POINTS, target), target) < 1e-5


@pytest.mark.parametrize("mirrored", [False, True])
def test_no_similarity_brings_noisy_points_nearer(mirrored):
    sign = np.float32([-1, 1, 1]) if mirrored else np.float32([1, 1, 1])
    target = (POINTS + 0.3 * RNG.normal(size=POINTS.shape)).astype(np.float32) * sign
    found = align(POINTS, target)
    best = rms_distance(found, target)
    # A similarity without reflection: the rotation alone by SciPy, then its scale.
    p, q = POINTS - POINTS.mean(0), target - target.mean(0)
    turn = Rotation.align_vectors(q, p)[0].as_matrix()
    scale = np.sum(q * (p @ turn.T)) / np.sum(p * p)
    expected = scale * p @ turn.T + target.mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for change in (1.01 * (found - found.mean(0)) + found.mean(0), found + 0.01):
        assert rms_distance(change, target) > best


def test_agreement_of_masks():
    a = jnp.array([True, True, False, False])
    overlap, accuracy = mask_agreement(a, jnp.array([True, False, True, False]))
    assert (overlap, accuracy) == (np.float32(1 / 3), 0.5)
    assert mask_agreement(~a | a, a) == (0.5, 0.5)
    assert mask_agreement(a & ~a, a & ~a) == (1.0, 1.0)


def test_angles_are_those_that_a_rotation_is_made_of():
    view = RNG.uniform(-1.4, 1.4, (50, 3)).astype(np.float32)
    turns = jax.vmap(rotation_matrix)(view)
    np.testing.assert_allclose(
        angles.view_angles_deg(turns), np.degrees(view), atol=2e-3
    )
