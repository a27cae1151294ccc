"""Errors of a depth map against the truth: SIDE, MAD and more.

Scale-invariant depth error (SIDE) and mean angle deviation (MAD) of Wu et al.,
CVPR 2020, Sec. 4.1, with the mask rule of the authors' code. Functions take one
example; `jax.vmap` them over a batch. Nothing here returns NaN for an empty mask:
such an image has `scored_pixels == 0` and is left out by `summary.mean_std`.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unsup3d_jax.evaluation.angles import angle_between_deg
from unsup3d_jax.evaluation.masks import masked_mean, scored_mask
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.types import AnyArray

# Added to the norm of a normal in the authors' code; see depth_to_normals.
_AUTHORS_NORM_EPSILON = 1e-7


@struct.dataclass
class DepthScores:
    """Errors of one depth map in the input's view; 0 where nothing is scored.

    Attributes:
        side: scale-invariant depth error, dimensionless (tables print x 100).
        mad_deg: mean angle between the two surfaces' unit normals, degrees.
        mad_authors_deg: the same as the authors' code computes it: its normals
            are up to 0.3 % short at 64 px (more at higher resolution), so equal
            normals differ by 6.5 degrees. Comparable to the paper's table.
        mae: mean absolute depth error, scene units; not scale-invariant.
        pearson: correlation of depth with true depth; 0 where either is constant.
            Below 0 what should stand out lies behind, which SIDE does not say.
        coverage: scored pixels over pixels of the true mask; 0 if that is empty.
            Below 1 even at best, since both masks are eroded.
        scored_pixels: number of pixels the other values are means over.
    """

    side: Float[AnyArray, "*b"]
    mad_deg: Float[AnyArray, "*b"]
    mad_authors_deg: Float[AnyArray, "*b"]
    mae: Float[AnyArray, "*b"]
    pearson: Float[AnyArray, "*b"]
    coverage: Float[AnyArray, "*b"]
    scored_pixels: Int[AnyArray, "*b"]


def depth_scores(
    depth: Float[AnyArray, "h w"],
    true_depth: Float[AnyArray, "h w"],
    mask: Bool[AnyArray, "h w"],
    true_mask: Bool[AnyArray, "h w"],
    *,
    fov_deg: float,
) -> DepthScores:
    """Scores one depth map against the truth, both in the input's view.

    Args:
        depth: reconstruction, scene units.
        true_depth: scene units.
        mask: where the reconstruction covers the pixel (a baseline: everywhere).
        true_mask: the object.
        fov_deg: horizontal field of view, for the normals; static.
    """
    scored = scored_mask(depth, true_depth, mask, true_mask)
    # A pixel is scored only if all its neighbours are valid, and normals are
    # central differences: what stands outside the masks cannot matter, so it may
    # be replaced by something harmless.
    depth = jnp.where(mask & jnp.isfinite(depth), depth, 1.0)
    true_depth = jnp.where(true_mask & jnp.isfinite(true_depth), true_depth, 1.0)
    angle = angle_between_deg(
        geometry.depth_to_normals(depth, fov_deg=fov_deg),
        geometry.depth_to_normals(true_depth, fov_deg=fov_deg),
    )
    short, true_short = (
        geometry.depth_to_normals(
            d, fov_deg=fov_deg, norm_epsilon=_AUTHORS_NORM_EPSILON
        )
        for d in (depth, true_depth)
    )
    authors_angle = jnp.degrees(
        jnp.arccos(jnp.clip(jnp.sum(short * true_short, axis=-1), -1.0, 1.0))
    )
    true_count = jnp.sum(true_mask)
    return DepthScores(
        side=side(depth, true_depth, scored),
        mad_deg=masked_mean(angle, scored),
        mad_authors_deg=masked_mean(authors_angle, scored),
        mae=masked_mean(jnp.abs(depth - true_depth), scored),
        pearson=depth_pearson(depth, true_depth, scored),
        coverage=jnp.sum(scored) / jnp.maximum(true_count, 1),
        scored_pixels=jnp.sum(scored),
    )


def side(
    depth: Float[AnyArray, "h w"],
    true_depth: Float[AnyArray, "h w"],
    mask: Bool[AnyArray, "h w"],
) -> Float[Array, ""]:
    """Scale-invariant depth error: spread of ln d - ln d* (Sec. 4.1).

    The standard deviation is taken about the mean, as the authors' code does;
    the paper's mean of squares minus squared mean is the same number, but loses
    all its digits in float32.

    Args:
        depth, true_depth: scene units, positive inside the mask.
        mask: the pixels to score, already eroded.

    Returns:
        0 where the mask is empty.
    """
    ratio = jnp.log(jnp.where(mask, depth, 1.0)) - jnp.log(
        jnp.where(mask, true_depth, 1.0)
    )
    deviation = ratio - masked_mean(ratio, mask)
    return jnp.sqrt(masked_mean(deviation**2, mask))


def depth_pearson(
    depth: Float[AnyArray, "h w"],
    true_depth: Float[AnyArray, "h w"],
    mask: Bool[AnyArray, "h w"],
) -> Float[Array, ""]:
    """Correlation of depth and true depth over the mask, in [-1, 1].

    Returns:
        0 where the mask is empty, or either depth is constant on it.
    """
    x = jnp.where(mask, depth, 0.0) - masked_mean(depth, mask)
    y = jnp.where(mask, true_depth, 0.0) - masked_mean(true_depth, mask)
    variances = masked_mean(x**2, mask), masked_mean(y**2, mask)
    # A spread of 1e-6 scene units is what float32 makes of a constant near 1.
    varies = jnp.minimum(*variances) > 1e-12
    safe = jnp.where(varies, variances[0] * variances[1], 1.0)
    return jnp.where(varies, masked_mean(x * y, mask) / jnp.sqrt(safe), 0.0)
