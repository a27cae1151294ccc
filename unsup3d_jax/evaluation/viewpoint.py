"""Predicted against true viewpoints of a set of images.

The canonical frame is a method's own choice, the same for all images: what is
measured here does not depend on it.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from unsup3d_jax.evaluation.angles import rotation_angle_deg
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.types import AnyArray

ANGLES = ("pitch", "yaw", "roll")  # rotation about x, y, z: order of a view


@struct.dataclass
class AngleAgreement:
    """Predicted against true angle over a set of images.

    Attributes:
        pearson: correlation coefficient; 0 where either angle does not vary.
        slope: of the least-squares line prediction = slope * truth + c; below 1
            when rotations are under-estimated; 0 where the truth does not vary.
        offset_deg: mean of prediction - truth.
        spread_deg, true_spread_deg: standard deviations (n - 1).
    """

    pearson: Float[Array, "*a"]
    slope: Float[Array, "*a"]
    offset_deg: Float[Array, "*a"]
    spread_deg: Float[Array, "*a"]
    true_spread_deg: Float[Array, "*a"]


def angle_agreement(
    angle: Float[AnyArray, " n"], true_angle: Float[AnyArray, " n"]
) -> AngleAgreement:
    """Compares predicted with true angles.

    The canonical frame is the network's own choice, so a constant offset is no
    error in itself; correlation and slope do not see it.

    Args:
        angle, true_angle: radians, one per image.
    """
    n = angle.shape[0]
    centred, true_centred = angle - jnp.mean(angle), true_angle - jnp.mean(true_angle)
    square = jnp.sum(centred**2)
    true_square = jnp.sum(true_centred**2)
    product = jnp.sum(centred * true_centred)
    # Below a spread of 1e-5 rad the sums are rounding noise of the means.
    floor = n * 1e-10
    varies, true_varies = square > floor, true_square > floor
    both = varies & true_varies
    safe, true_safe = (
        jnp.where(varies, square, 1.0),
        jnp.where(true_varies, true_square, 1.0),
    )
    degrees = 180.0 / math.pi
    return AngleAgreement(
        pearson=jnp.where(both, product / jnp.sqrt(safe * true_safe), 0.0),
        slope=jnp.where(true_varies, product / true_safe, 0.0),
        offset_deg=degrees * jnp.mean(angle - true_angle),
        spread_deg=degrees * jnp.sqrt(square / max(n - 1, 1)),
        true_spread_deg=degrees * jnp.sqrt(true_square / max(n - 1, 1)),
    )


@struct.dataclass
class ViewpointErrors:
    """Rotation errors of a set of images, after one common rotation.

    Attributes:
        error_deg: angle between each predicted rotation, followed into the
            canonical frame by `offset`, and the true one; degrees.
        offset: (3, 3) the common rotation: true canonical to predicted
            canonical frame.
        offset_deg: its angle, degrees.
    """

    error_deg: Float[Array, " n"]
    offset: Float[Array, "3 3"]
    offset_deg: Float[Array, ""]


def viewpoint_errors(
    view: Float[AnyArray, "n 6"], true_view: Float[AnyArray, "n 6"]
) -> ViewpointErrors:
    """Angles between predicted and true rotations, up to one global rotation.

    A view turns the canonical frame into the camera's. The network chooses its
    own canonical frame, the same for all images, so predictions are compared
    as R_i Q with the one rotation Q that brings all of them nearest to the
    truth: the minimiser of sum |R_i Q - R*_i|^2, from a singular value
    decomposition (orthogonal Procrustes). Where nothing is learnt, Q explains
    the mean viewpoint and what remains is the spread of the truth.

    Args:
        view, true_view: rotation x, y, z (radians) first; the rest is unused.
    """
    rotation, truth = (
        jax.vmap(geometry.rotation_matrix)(jnp.asarray(v[:, :3]))
        for v in (view, true_view)
    )
    # High precision: default matrix products on GPUs and TPUs have 10 bits.
    relative = jnp.einsum("nji,njk->ik", rotation, truth, precision="highest")
    left, _, right = jnp.linalg.svd(relative)
    sign = jnp.sign(jnp.linalg.det(left) * jnp.linalg.det(right))
    flip = jnp.stack([jnp.ones(()), jnp.ones(()), jnp.where(sign < 0, -1.0, 1.0)])
    offset = jnp.matmul(left * flip, right, precision="highest")
    aligned = jnp.matmul(rotation, offset, precision="highest")
    identity = jnp.eye(3, dtype=offset.dtype)
    return ViewpointErrors(
        error_deg=rotation_angle_deg(aligned, truth),
        offset=offset,
        offset_deg=rotation_angle_deg(offset, identity),
    )
