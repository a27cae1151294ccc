"""Theta recovered from landmarks that a known theta made."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_faces
import stn_reference

from unsup3d_jax.evaluation import angles
from unsup3d_jax.stn3dmm import fit, layers, losses

pytestmark = pytest.mark.once

SIZE, COLUMNS = 112, 4
CAMERA = stn_faces.camera(0.09)


@partial(jax.jit, static_argnames="camera")
def _landmarks(model, vectors, camera):
    def one(vector):
        return layers.project_landmarks(
            model, layers.split(vector), camera, image_size=SIZE
        )

    return jax.vmap(one)(vectors)


def _truth(count, *, yaw_deg=60.0, seed=0):
    """Thetas with yaw up to yaw_deg and pitch and roll up to a third of it."""
    rng = np.random.default_rng(seed)
    vectors = stn_faces.thetas(count, COLUMNS, seed=seed, spread=0.1)
    vectors[:, :3] = (
        np.radians(yaw_deg) * rng.uniform(-1, 1, (count, 3)) * [0.3, 1, 0.3]
    )
    return vectors.astype(np.float32)


def _turns(vectors):
    return jnp.asarray([stn_reference.rotation(v[:3]) for v in np.asarray(vectors)])


def test_theta_is_found_from_nothing():
    """Pose within half a degree and landmarks within 0.05 px, for yaw up to 60."""
    model, truth = stn_faces.face(5, COLUMNS), _truth(12)
    target = _landmarks(model, truth, CAMERA)
    got = fit.fit_landmarks(model, target, CAMERA, image_size=SIZE, noise_px=0.01)
    wrong = angles.rotation_angle_deg(_turns(got.theta), _turns(truth))
    assert float(np.max(wrong)) < 0.5
    assert float(np.max(got.error_px)) < 0.05
    np.testing.assert_allclose(got.theta, truth, atol=0.05)
    np.testing.assert_array_equal(got.known, np.full(12, 13))


def test_what_is_not_known_is_left_out():
    model, truth = stn_faces.face(5, COLUMNS), _truth(12, yaw_deg=30.0)
    target = np.array(_landmarks(model, truth, CAMERA))
    target[:, [1, 7], :] = np.nan
    target[0] = np.nan
    got = fit.fit_landmarks(model, target, CAMERA, image_size=SIZE, noise_px=0.01)
    wrong = angles.rotation_angle_deg(_turns(got.theta), _turns(truth))
    assert float(np.max(wrong[1:])) < 0.5
    np.testing.assert_array_equal(got.theta[0], np.zeros(6 + COLUMNS))
    np.testing.assert_array_equal(got.known, [0] + [11] * 11)
    assert float(got.error_px[0]) == 0.0


@pytest.mark.once
def test_one_wrong_landmark_turns_the_face_less_with_a_bound():
    model, truth = stn_faces.face(5, COLUMNS), _truth(12, yaw_deg=30.0)
    target = np.array(_landmarks(model, truth, CAMERA))
    target[:, 3] += [25.0, -15.0]
    fitted = partial(
        fit.fit_landmarks, model, target, CAMERA, image_size=SIZE, noise_px=0.5
    )
    robust, plain = (
        angles.rotation_angle_deg(_turns(f.theta), _turns(truth))
        for f in (fitted(huber_px=1.0), fitted())
    )
    assert float(np.median(robust)) < 0.5 * float(np.median(plain))


def test_no_start_is_left_for_a_worse_theta():
    """From a face that looks away, too large or too small; NaN neither."""
    model, truth = stn_faces.face(5, COLUMNS), _truth(12)
    target = _landmarks(model, truth, CAMERA)
    rng = np.random.default_rng(3)
    start = rng.normal(size=(12, 6 + COLUMNS)) * [2, 2, 2, 1, 1, 2, 1, 1, 1, 1]
    start = jnp.asarray(start, jnp.float32)
    got = fit.fit_landmarks(
        model, target, CAMERA, image_size=SIZE, noise_px=0.01, start=start
    )
    before, after = (
        np.sum((_landmarks(model, v, CAMERA) - target) ** 2, (1, 2))
        + 0.01**2 * np.sum(v[:, 6:] ** 2, 1)
        for v in (start, got.theta)
    )
    assert (np.asarray(after) <= np.asarray(before)).all()


@pytest.mark.parametrize("huber_px", [None, 1.0])
def test_the_end_is_a_minimum(huber_px):
    """No gradient is left of the cost as it is written, with noise and all."""
    model, truth = stn_faces.face(5, COLUMNS), _truth(12, yaw_deg=30.0)
    noise = np.random.default_rng(1).normal(size=(12, 13, 2)) * 0.5
    target = np.asarray(_landmarks(model, truth, CAMERA)) + noise

    def cost(vector, points, model):
        seen = layers.project_landmarks(
            model, layers.split(vector), CAMERA, image_size=SIZE
        )
        square = jnp.sum(jnp.square((seen - points) / 0.5), axis=-1)
        if huber_px is not None:
            square = losses.huber_cost(square, huber_px / 0.5)
        return jnp.sum(square) + jnp.sum(jnp.square(vector[6:]))

    slope = jax.jit(jax.vmap(jax.grad(cost), (0, 0, None)))
    target = jnp.asarray(target, jnp.float32)
    got = fit.fit_landmarks(
        model, target, CAMERA, image_size=SIZE, noise_px=0.5, huber_px=huber_px
    )
    at_end, at_start = (
        float(np.max(np.abs(slope(vectors, target, model))))
        for vectors in (got.theta, jnp.zeros_like(got.theta))
    )
    assert at_end < 2e-4 * at_start


def test_a_pose_is_found_beside_coefficients_that_stay():
    """From a pose near by, with landmarks that nobody saw."""
    model, truth = stn_faces.face(5, COLUMNS), _truth(12, yaw_deg=30.0)
    target = np.array(_landmarks(model, truth, CAMERA))
    target[:, [1, 7], :] = np.nan
    near = truth.copy()
    near[:, :6] += 0.05 * np.random.default_rng(2).normal(size=(12, 6))
    got = jax.jit(partial(fit.fit_pose, camera=CAMERA, image_size=SIZE))(
        model, target, near
    )
    np.testing.assert_allclose(got[:, :6], truth[:, :6], atol=2e-3)
    np.testing.assert_array_equal(got[:, 6:], truth[:, 6:])


def test_wrong_settings_are_named(unchecked):
    model, target = stn_faces.face(5, COLUMNS), jnp.zeros((1, 13, 2))
    given = partial(fit.fit_landmarks, model, camera=CAMERA, image_size=SIZE)
    with pytest.raises(ValueError, match="noise_px"):
        given(target, noise_px=0.0)
    with pytest.raises(ValueError, match="huber_px"):
        given(target, huber_px=-1.0)
    with pytest.raises(ValueError, match="13 landmarks"):
        given(target[:, :9])
