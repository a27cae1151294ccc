"""Theta of given landmarks without a network: damped Gauss-Newton on each image.

The demonstration of Bas et al. (ICCVW 2017) that the layers can be optimised, and the
ceiling that an evaluation sets beside a localiser: what landmarks tell of theta.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.stn3dmm import layers
from unsup3d_jax.stn3dmm.layers import POSE_SIZE, Camera
from unsup3d_jax.stn3dmm.losses import huber_cost
from unsup3d_jax.stn3dmm.types import GridModel

# Damping, relative to the squared length of each column of the Jacobian.
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-6, 1e6


@struct.dataclass
class Fit:
    """Theta of each image.

    Attributes:
        theta: (b, 6 + d) vectors, as `layers.split` takes them.
        error_px: (b,) root of the mean squared distance of known landmarks, pixels; 0
            where none is known.
        known: (b,) how many are known.
    """

    theta: Float[Leaf, "*b p"]
    error_px: Float[Leaf, "*b"]
    known: Int[Leaf, "*b"]


def fit_landmarks(
    model: GridModel,
    target: Float[AnyArray, "b l 2"],
    camera: Camera,
    *,
    image_size: int,
    noise_px: float = 0.5,
    huber_px: float | None = None,
    steps: int = 40,
    start: Float[AnyArray, "b p"] | None = None,
) -> Fit:
    """The most probable theta, by Levenberg and Marquardt's method from theta = 0.

    Minimises sum |L_i - l_i|^2 / noise_px^2 + |alpha|^2: coefficients are normal, as
    the model has them, and pose is free. Steps that do not lower this are not taken,
    so that all images can take the same number.

    Args:
        model: whose landmarks the targets are.
        target: (u, v) in pixels; NaN for what is not known. An image without any known
            landmark keeps its start.
        camera: static.
        image_size: pixels a side; static.
        noise_px: standard deviation of a landmark's coordinates, against which the
            coefficients are weighed: small for exact landmarks, a pixel or more for
            what people clicked.
        huber_px: the distance beyond which a landmark costs linearly, so that one that
            is wrong does not turn the face; None: nowhere.
        steps: static.
        start: theta vectors; 0 unless given.

    Returns:
        Of each image the best theta found.

    Raises:
        ValueError: unless noise_px > 0, huber_px > 0 and steps > 0, or if target has
            another number of landmarks than the model.
    """
    if not noise_px > 0.0 or steps < 1:
        raise ValueError(f"need noise_px > 0 and steps > 0, got {noise_px=}, {steps=}.")
    if huber_px is not None and not huber_px > 0.0:
        raise ValueError(f"need huber_px > 0, got {huber_px=}.")
    count = model.landmark_mean.shape[0]
    if target.shape[1:] != (count, 2):
        raise ValueError(
            f"the model has {count} landmarks, target is {target.shape}, not "
            f"(images, {count}, 2)."
        )
    dtype = model.landmark_mean.dtype
    if start is None:
        size = POSE_SIZE + model.landmark_basis.shape[0]
        start = jnp.zeros((target.shape[0], size), dtype)

    bound = None if huber_px is None else huber_px / noise_px
    return _fit(
        *(model, jnp.asarray(target), jnp.asarray(start), noise_px, bound),
        camera=camera,
        image_size=image_size,
        steps=steps,
    )


@partial(jax.jit, static_argnames=("camera", "image_size", "steps"))
def _fit(model, target, start, noise_px, bound, *, camera, image_size, steps) -> Fit:
    """`fit_landmarks`, checked; the bound in units of the noise."""

    def one(points: Array, vector: Array) -> Fit:
        dtype = vector.dtype
        known = jnp.all(jnp.isfinite(points), axis=-1)
        points = jnp.where(known[:, None], points, 0.0).astype(dtype)

        def errors(vector: Array) -> Array:
            seen = layers.project_landmarks(
                model, layers.split(vector), camera, image_size=image_size
            )
            return jnp.where(known[:, None], (seen - points) / noise_px, 0.0)

        best = _minimise(errors, vector, bound=bound, steps=steps)
        number = jnp.sum(known)
        square = jnp.sum(jnp.square(errors(best))) * noise_px**2
        return Fit(best, jnp.sqrt(square / jnp.maximum(number, 1)), number)

    return jax.vmap(one)(target, start)


def fit_pose(
    model: GridModel,
    target: Float[AnyArray, "b l 2"],
    theta: Float[AnyArray, "b p"],
    camera: Camera,
    *,
    image_size: int,
    steps: int = 4,
) -> Float[Array, "b p"]:
    """Theta with the pose that fits landmarks best, its coefficients as they are.

    From the pose in theta, by the steps of `fit_landmarks` without a prior; a few
    suffice where that is near. What landmarks still miss there is shape.

    Args:
        model, target, camera, image_size, steps: as for `fit_landmarks`.
        theta: where to begin.
    """

    def one(points: Array, vector: Array) -> Array:
        known = jnp.all(jnp.isfinite(points), axis=-1)
        points = jnp.where(known[:, None], points, 0.0)
        # The shape stays, so that it is made once.
        shape = layers.landmark_shape(model, vector[POSE_SIZE:])

        def errors(pose: Array) -> Array:
            at = layers.split(pose)
            turned = layers.turn(shape, at.rotation)
            seen = layers.project(turned, at, camera, image_size)
            return jnp.where(known[:, None], seen - points, 0.0)

        pose = _minimise(errors, vector[:POSE_SIZE], bound=None, steps=steps)
        return jnp.concatenate([pose, vector[POSE_SIZE:]])

    return jax.vmap(one)(jnp.asarray(target), jnp.asarray(theta))


def _minimise(errors, vector: Array, *, bound: Array | None, steps: int) -> Array:
    """Lowers sum rho(|errors_i|) + |alpha|^2 from `vector`."""

    def cost_of(errors: Array, vector: Array) -> Array:
        square = jnp.sum(jnp.square(errors), axis=-1)
        cost = square if bound is None else huber_cost(square, bound)
        return jnp.sum(cost) + jnp.sum(jnp.square(vector[POSE_SIZE:]))

    # The prior's part of the normal equations.
    of_prior = (jnp.arange(vector.size) >= POSE_SIZE).astype(vector.dtype)

    def step(_, carry):
        vector, cost, damping = carry
        now = errors(vector)
        slope = jax.jacfwd(errors)(vector).reshape(-1, vector.size)
        weight = _weights(now, bound)
        weighted = slope * weight[:, None]
        # Products in full: half precision would lose the prior beside the landmarks.
        square = jnp.matmul(slope.T, weighted, precision="highest") + jnp.diag(of_prior)
        gradient = (
            jnp.matmul(weighted.T, now.reshape(-1), precision="highest")
            + of_prior * vector
        )
        # Scaled by the columns, radians and deviations are alike.
        size = jnp.sqrt(jnp.maximum(jnp.diagonal(square), 1e-12))
        damped = square / (size[:, None] * size) + damping * jnp.eye(vector.size)
        factor = jnp.linalg.cholesky(damped)
        solution = jax.scipy.linalg.cho_solve((factor, True), gradient / size) / size
        trial = vector - solution
        trial_cost = cost_of(errors(trial), trial)
        # NaN, of a factorisation that failed, is not less.
        better = trial_cost < cost
        vector = jnp.where(better, trial, vector)
        cost = jnp.where(better, trial_cost, cost)
        damping = jnp.clip(
            damping * jnp.where(better, 0.2, 5.0), _LEAST_DAMPING, _MOST_DAMPING
        )
        return vector, cost, damping

    first = cost_of(errors(vector), vector)
    damping = jnp.asarray(_FIRST_DAMPING, vector.dtype)
    return jax.lax.fori_loop(0, steps, step, (vector, first, damping))[0]


def _weights(errors: Float[Array, "l 2"], bound: Array | None) -> Float[Array, " l2"]:
    """How much each coordinate counts in the quadratic that stands for Huber's cost."""
    if bound is None:
        return jnp.ones(errors.size, errors.dtype)
    length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(errors), axis=-1), bound * bound))
    return jnp.repeat(bound / length, 2)
