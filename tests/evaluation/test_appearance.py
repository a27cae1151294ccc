"""Albedo and light, whose common factor no image tells."""

import jax.numpy as jnp
import numpy as np
from turns import matrix, rotations

from unsup3d_jax.evaluation.appearance import albedo_error, light_errors


def test_albedo_error_ignores_one_scale_and_what_is_outside():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.2, 0.8, (6, 5, 3)).astype(np.float32)
    mask = rng.random((6, 5)) < 0.6
    scaled = np.where(mask[..., None], 0.4 * truth, np.nan)
    got = albedo_error(jnp.asarray(scaled), truth, mask)
    np.testing.assert_allclose(got, 0, atol=1e-6)

    other = rng.uniform(0, 1, truth.shape).astype(np.float32)
    costs = []
    for scale in np.linspace(0, 2, 2001):  # search instead of a formula
        error = (scale * other - truth)[mask]
        costs.append(np.sqrt(np.mean(error**2)))
    got = albedo_error(jnp.asarray(other), truth, mask)
    np.testing.assert_allclose(got, min(costs), rtol=1e-5)
    nothing = albedo_error(jnp.asarray(other), truth, np.zeros((6, 5), bool))
    assert float(nothing) == 0.0


def test_light_error_does_not_see_the_canonical_frame_or_a_common_factor():
    rng = np.random.default_rng(3)
    view = jnp.asarray(rotations(rng, 1, 0.5)[0])
    direction = np.array([0.3, -0.4, 1.0])
    direction /= np.linalg.norm(direction)
    truth = np.concatenate([[0.5, 0.3], direction]).astype(np.float32)
    canonical = matrix(np.asarray(view)).T @ direction
    light = np.concatenate([[0.25, 0.15], canonical]).astype(np.float32)
    angle, share = light_errors(jnp.asarray(light), view, jnp.asarray(truth))
    assert float(angle) < 1e-3 and float(share) < 1e-6
    light[:2] = [0.1, 0.3]
    light[2:] = matrix(np.asarray(view)).T @ [0, 0, 1]
    angle, share = light_errors(jnp.asarray(light), view, jnp.asarray(truth))
    np.testing.assert_allclose(angle, np.degrees(np.arccos(direction[2])), rtol=1e-3)
    np.testing.assert_allclose(share, 0.75 - 0.375, rtol=1e-5)
