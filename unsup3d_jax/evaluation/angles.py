"""Angles between directions and between rotations, exact near zero."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unsup3d_jax.formation.types import AnyArray


def angle_between_deg(
    a: Float[AnyArray, "*n 3"], b: Float[AnyArray, "*n 3"]
) -> Float[Array, "*n"]:
    """Angle between vectors of any length, degrees.

    From sine and cosine: the arc cosine of a float32 scalar product near one
    cannot tell 0 from 0.03 degrees.
    """
    sine = jnp.linalg.norm(jnp.cross(a, b), axis=-1)
    cosine = jnp.sum(a * b, axis=-1)
    return jnp.degrees(jnp.arctan2(sine, cosine))


def rotation_angle_deg(
    a: Float[AnyArray, "*n 3 3"], b: Float[AnyArray, "*n 3 3"]
) -> Float[Array, "*n"]:
    """Angle of the rotation between two rotations, degrees.

    |a - b| (Frobenius) is sqrt(8) sin(angle / 2), which keeps its digits near
    0 where the arc cosine of the trace has none.
    """
    chord = jnp.sqrt(jnp.sum((a - b) ** 2, axis=(-2, -1)) / 8.0)
    return jnp.degrees(2.0 * jnp.arcsin(jnp.clip(chord, 0.0, 1.0)))


def view_angles_deg(rotation: Float[AnyArray, "*n 3 3"]) -> Float[Array, "*n 3"]:
    """Pitch, yaw and roll of R = Rz(roll) Ry(yaw) Rx(pitch), degrees.

    The inverse of `formation.geometry.rotation_matrix` for |yaw| < 90 degrees.
    """
    r = jnp.asarray(rotation)
    # The sine alone loses the digits near 90 degrees.
    flat = jnp.hypot(r[..., 0, 0], r[..., 1, 0])
    pitch = jnp.arctan2(r[..., 2, 1], r[..., 2, 2])
    yaw = jnp.arctan2(-r[..., 2, 0], flat)
    roll = jnp.arctan2(r[..., 1, 0], r[..., 0, 0])
    return jnp.degrees(jnp.stack([pitch, yaw, roll], axis=-1))
