"""Does a confidence map know where the reconstruction is wrong?"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.types import AnyArray

# Bins of predicted sigma: half octaves from 2^-10 to 2^2; the first and last
# also take what lies beyond. Errors of images in [-1, 1] never exceed 2.
SIGMA_BIN_EDGES = tuple(2.0 ** (k / 2.0) for k in range(-20, 5))


def reliability_bins(
    sigma: Float[AnyArray, "h w"],
    residual: Float[AnyArray, "h w"],
    mask: Bool[AnyArray, "h w"],
) -> Float[Array, "bins 3"]:
    """Sums over the pixels whose sigma falls into each bin.

    Args:
        sigma: predicted, of images in [-1, 1].
        residual: mean over channels of the absolute error, same scale.
        mask: the pixels that count.

    Returns:
        (bins, 3): number of pixels, sum of sigma, sum of residual, for the
        intervals between `SIGMA_BIN_EDGES`.
    """
    edges = jnp.asarray(SIGMA_BIN_EDGES[1:-1])
    bins = len(SIGMA_BIN_EDGES) - 1
    index = jnp.searchsorted(edges, sigma, side="right")
    inside = (index[..., None] == jnp.arange(bins)) & mask[..., None]
    weight = inside.astype(jnp.float32)
    return jnp.stack(
        [
            jnp.sum(weight, axis=(0, 1)),
            jnp.sum(jnp.where(inside, sigma[..., None], 0.0), axis=(0, 1)),
            jnp.sum(jnp.where(inside, residual[..., None], 0.0), axis=(0, 1)),
        ],
        axis=-1,
    )


def reliability_curve(bins: Float[AnyArray, "bins 3"]) -> dict:
    """The calibration of a confidence map, from summed `reliability_bins`.

    A Laplace distribution of standard deviation sigma, Eq. (3), has mean
    absolute error sigma / sqrt(2): calibrated maps lie on that line.

    Returns:
        JSON-able: "curve", one {"sigma", "expected_residual", "residual",
        "share"} for each bin that has pixels, and "calibration_error", the mean
        of |residual - expected| over pixels as a share of the mean residual
        (0: calibrated; None: no pixels).
    """
    bins = np.asarray(bins, np.float64)
    count, sigma, residual = bins.T
    total = count.sum()
    curve = [
        {
            "sigma": float(s / n),
            "expected_residual": float(s / n / math.sqrt(2.0)),
            "residual": float(r / n),
            "share": float(n / total),
        }
        for n, s, r in zip(count, sigma, residual, strict=True)
        if n > 0
    ]
    gap = np.abs(residual - sigma / math.sqrt(2.0)).sum()
    whole = residual.sum()
    return {
        "curve": curve,
        "calibration_error": float(gap / whole) if whole > 0 else None,
    }


def auroc(
    score: Float[AnyArray, "h w"],
    positive: Bool[AnyArray, "h w"],
    mask: Bool[AnyArray, "h w"],
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Area under the receiver operating characteristic, over masked pixels.

    The probability that a positive pixel scores higher than a negative one;
    ties count one half (Mann-Whitney).

    Returns:
        The area, 0.5 where it is undefined; and whether both kinds of pixel
        occur in the mask.
    """
    # Excluded pixels go to the end of the order and weigh nothing.
    value = jnp.where(mask, score, jnp.inf).ravel()
    is_positive = (positive & mask).ravel()
    is_negative = (~positive & mask).ravel()
    order = jnp.sort(jnp.where(is_negative, value, jnp.inf))
    below = jnp.searchsorted(order, value, side="left").astype(jnp.float32)
    up_to = jnp.searchsorted(order, value, side="right").astype(jnp.float32)
    wins = jnp.where(is_positive, (below + up_to) / 2.0, 0.0)
    positives, negatives = jnp.sum(is_positive), jnp.sum(is_negative)
    defined = (positives > 0) & (negatives > 0)
    pairs = jnp.maximum(positives, 1) * jnp.maximum(negatives, 1).astype(jnp.float32)
    return jnp.where(defined, jnp.sum(wins) / pairs, 0.5), defined


def mirrored_mask(
    mask: Bool[AnyArray, "h w"],
    depth: Float[AnyArray, "h w"],
    view: Float[AnyArray, "6"],
    *,
    fov_deg: float,
    centre_depth: float,
) -> Bool[Array, "h w"]:
    """Whether the mirror image of each surface point lies in a mask.

    A patch of colour makes two places asymmetric: where it lies, and the place
    opposite on the face, which the mirrored reconstruction paints with it.

    Args:
        mask: in the input's view.
        depth, view: true; the object is symmetric about x = 0 of the frame
            that the view turns into the camera's.
    """
    depth, view = jnp.asarray(depth), jnp.asarray(view)
    points = geometry.depth_to_points(depth, fov_deg=fov_deg)
    points = geometry.inverse_transform(points, view, centre_depth=centre_depth)
    points = points * jnp.array([-1.0, 1.0, 1.0])
    points = geometry.transform(points, view, centre_depth=centre_depth)
    h, w = mask.shape
    pixel = geometry.project(points, (h, w), fov_deg=fov_deg)
    u, v = (jnp.round(pixel[..., i]).astype(jnp.int32) for i in range(2))
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    return inside & mask[jnp.clip(v, 0, h - 1), jnp.clip(u, 0, w - 1)]
