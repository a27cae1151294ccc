"""Lambertian shading with one directional light (Sec. 3.3 of the paper)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unsup3d_jax.formation import geometry


def shade(
    albedo: Float[Array, "h w 3"],
    normal: Float[Array, "h w 3"],
    light: Float[Array, "5"],
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """J = (k_s + k_d max(0, <l, n>)) a.

    Args:
        albedo: in [0, 1].
        normal: unit, pointing away from the camera as `depth_to_normals`.
        light: ambient k_s, diffuse k_d, unit direction (the way light travels,
            in the frame of the normals).

    Returns:
        The shaded image, not clipped (up to k_s + k_d), and the diffuse term
        max(0, <l, n>).
    """
    ambient, diffuse, direction = light[0], light[1], light[2:]
    shading = jnp.maximum(0.0, jnp.sum(normal * direction, axis=-1))
    return albedo * (ambient + diffuse * shading)[..., None], shading


def to_canonical(
    light: Float[Array, "5"], view: Float[Array, "6"]
) -> Float[Array, "5"]:
    """Turns a light given in the input's camera frame to the canonical frame."""
    rotation = geometry.rotation_matrix(view[:3])
    direction = jnp.sum(rotation * light[2:, None], axis=0)  # R^T l
    return jnp.concatenate([light[:2], direction])
