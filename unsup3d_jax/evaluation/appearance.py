"""Errors of albedo and light, up to the factor that they share.

A photograph cannot tell a brighter light from a lighter surface, so neither
measure sees a common factor. Functions take one example.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unsup3d_jax.evaluation.angles import angle_between_deg
from unsup3d_jax.evaluation.masks import masked_mean
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.types import AnyArray


def albedo_error(
    albedo: Float[AnyArray, "h w 3"],
    true_albedo: Float[AnyArray, "h w 3"],
    mask: Bool[AnyArray, "h w"],
) -> Float[Array, ""]:
    """Root mean square albedo error after the best common scale.

    Albedo and light share a factor that no image can tell, so the prediction
    is first multiplied by the one number (for all pixels and channels) that
    brings it nearest to the truth.

    Args:
        albedo, true_albedo: [0, 1], both in the input's view.
        mask: the pixels to score.

    Returns:
        In [0, 1]; 0 where the mask is empty.
    """
    weight = mask[..., None]
    a, b = jnp.where(weight, albedo, 0.0), jnp.where(weight, true_albedo, 0.0)
    scale = jnp.sum(a * b) / jnp.maximum(jnp.sum(a * a), 1e-12)
    square = jnp.mean((scale * a - b) ** 2, axis=-1)
    return jnp.sqrt(masked_mean(square, mask))


def light_errors(
    light: Float[AnyArray, "5"],
    view: Float[AnyArray, "6"],
    true_light: Float[AnyArray, "5"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Errors of direction and of the diffuse share of a light.

    The direction is turned to the camera's frame by the predicted viewpoint,
    where it does not depend on the choice of a canonical frame. Strengths are
    known up to the factor that albedo shares, so what is compared is the
    diffuse share k_d / (k_s + k_d).

    Args:
        light: predicted, canonical frame: ambient, diffuse, unit direction.
        view: predicted.
        true_light: in the camera's frame.

    Returns:
        Angle in degrees, and absolute difference of the shares.
    """
    rotation = geometry.rotation_matrix(jnp.asarray(view[:3]))
    direction = jnp.sum(rotation * light[2:], axis=1)
    share, true_share = (
        x[1] / jnp.maximum(x[0] + x[1], 1e-6) for x in (light, true_light)
    )
    return angle_between_deg(direction, true_light[2:]), jnp.abs(share - true_share)
