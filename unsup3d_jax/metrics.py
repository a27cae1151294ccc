"""How good is a depth map, and a viewpoint, against the truth.

Scale-invariant depth error (SIDE) and mean angle deviation (MAD) of Wu et al.,
CVPR 2020, Sec. 4.1, with the mask rule of the authors' code. Functions take one
example; `jax.vmap` them over a batch. Nothing here returns NaN for an empty
mask: such an image has `scored_pixels == 0` and is left out by `mean_std`.
"""

import math

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unsup3d_jax import geometry

ANGLES = ("pitch", "yaw", "roll")  # rotation about x, y, z: order of a view

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
        coverage: scored pixels over pixels of the true mask; 0 if that is empty.
            Below 1 even at best, since both masks are eroded.
        scored_pixels: number of pixels the other values are means over.
    """

    side: Float[Array, "*b"]
    mad_deg: Float[Array, "*b"]
    mad_authors_deg: Float[Array, "*b"]
    mae: Float[Array, "*b"]
    coverage: Float[Array, "*b"]
    scored_pixels: Int[Array, "*b"]


def erode(mask: Bool[Array, "h w"]) -> Bool[Array, "h w"]:
    """Keeps the pixels whose 3 x 3 neighbourhood lies in the mask.

    Outside the image counts as outside the mask, so border pixels never stay
    (the authors' code: 3 x 3 average with zero padding > 0.99).
    """
    h, w = mask.shape
    padded = jnp.pad(mask, 1)
    kept = mask
    for dv in range(3):
        for du in range(3):
            kept = kept & padded[dv : dv + h, du : du + w]
    return kept


def scored_mask(
    depth: Float[Array, "h w"],
    true_depth: Float[Array, "h w"],
    mask: Bool[Array, "h w"],
    true_mask: Bool[Array, "h w"],
) -> Bool[Array, "h w"]:
    """Pixels that count: both masks, each eroded by one pixel.

    A depth that is not a finite positive number is outside its mask: it lowers
    the coverage instead of turning the score into NaN.
    """
    usable = mask & jnp.isfinite(depth) & (depth > 0.0)
    true_usable = true_mask & jnp.isfinite(true_depth) & (true_depth > 0.0)
    return erode(usable) & erode(true_usable)


def masked_mean(
    values: Float[Array, "h w"], mask: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Mean over the mask, 0 where the mask is empty; ignores NaN outside it."""
    count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)


def side(
    depth: Float[Array, "h w"],
    true_depth: Float[Array, "h w"],
    mask: Bool[Array, "h w"],
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


def angle_between_deg(
    a: Float[Array, "*n 3"], b: Float[Array, "*n 3"]
) -> Float[Array, "*n"]:
    """Angle between vectors of any length, degrees.

    From sine and cosine: the arc cosine of a float32 scalar product near one
    cannot tell 0 from 0.03 degrees.
    """
    sine = jnp.linalg.norm(jnp.cross(a, b), axis=-1)
    cosine = jnp.sum(a * b, axis=-1)
    return jnp.degrees(jnp.arctan2(sine, cosine))


def depth_scores(
    depth: Float[Array, "h w"],
    true_depth: Float[Array, "h w"],
    mask: Bool[Array, "h w"],
    true_mask: Bool[Array, "h w"],
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
        coverage=jnp.sum(scored) / jnp.maximum(true_count, 1),
        scored_pixels=jnp.sum(scored),
    )


@struct.dataclass
class MeanStd:
    """Mean and spread over the images that count.

    Attributes:
        mean: 0 if nothing counts.
        std: with n - 1 in the denominator; 0 for fewer than two.
        count: number of images that count.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    count: Int[Array, ""]


def mean_std(values: Float[Array, " n"], counts: Bool[Array, " n"]) -> MeanStd:
    """Mean and standard deviation (n - 1) of the values that count."""
    n = jnp.sum(counts)
    mean = jnp.sum(jnp.where(counts, values, 0.0)) / jnp.maximum(n, 1)
    squares = jnp.sum(jnp.where(counts, (values - mean) ** 2, 0.0))
    return MeanStd(mean, jnp.sqrt(squares / jnp.maximum(n - 1, 1)), n)


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
    angle: Float[Array, " n"], true_angle: Float[Array, " n"]
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
