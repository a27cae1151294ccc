"""Surfaces in correspondence, vertex by vertex, against the true ones."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unsup3d_jax.formation.types import AnyArray


def aligned(
    points: Float[AnyArray, "n 3"], target: Float[AnyArray, "n 3"]
) -> Float[Array, "n 3"]:
    """Points after the similarity that brings them nearest to a target.

    Rotation, translation and scale that minimise the sum of squared distances (Umeyama,
    1991); no reflection.

    Args:
        points: not all in one place.
        target: corresponding points, any unit.
    """
    points, target = jnp.asarray(points), jnp.asarray(target)
    centre, goal = points.mean(0), target.mean(0)
    p, q = points - centre, target - goal
    # High precision: default matrix products on GPUs and TPUs have 10 bits.
    left, values, right = jnp.linalg.svd(jnp.matmul(p.T, q, precision="highest"))
    turn = jnp.matmul(left, right, precision="highest")
    sign = jnp.array([1.0, 1.0, 1.0]).at[2].set(jnp.sign(jnp.linalg.det(turn)))
    turn = jnp.matmul(left * sign, right, precision="highest")
    scale = jnp.sum(values * sign) / jnp.sum(p * p)
    return scale * jnp.matmul(p, turn, precision="highest") + goal


def rms_distance(
    points: Float[AnyArray, "n d"], target: Float[AnyArray, "n d"]
) -> Float[Array, ""]:
    """Root of the mean squared distance of corresponding points."""
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(points - target), axis=-1)))


def mask_agreement(
    found: Bool[AnyArray, "*n"], true: Bool[AnyArray, "*n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Intersection over union, and accuracy, of two masks; 1 where both are empty."""
    union = jnp.sum(found | true)
    overlap = jnp.sum(found & true) / jnp.maximum(union, 1)
    return jnp.where(union == 0, 1.0, overlap), jnp.mean(found == true)
