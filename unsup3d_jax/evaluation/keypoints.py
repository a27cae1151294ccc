"""Depth at keypoints, against the true one: the measure of the paper's Table 5."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from unsup3d_jax.formation.types import AnyArray


def depth_at(
    depth: Float[AnyArray, "h w"],
    valid: Bool[AnyArray, "h w"],
    points: Float[AnyArray, "k 2"],
) -> Float[Array, " k"]:
    """Depth at image positions (u, v), pixels, integers at pixel centres.

    Bilinear where all four neighbours are valid, else that of the nearest
    valid pixel: keypoints of the jaw often fall just beside the object. NaN if
    no pixel is valid.
    """
    h, w = depth.shape
    u = jnp.clip(points[:, 0], 0.0, w - 1.0)
    v = jnp.clip(points[:, 1], 0.0, h - 1.0)
    u0 = jnp.minimum(jnp.floor(u).astype(jnp.int32), w - 2)
    v0 = jnp.minimum(jnp.floor(v).astype(jnp.int32), h - 2)
    total, usable = jnp.zeros(u.shape), jnp.ones(u.shape, bool)
    for dv in (0, 1):
        for du in (0, 1):
            weight = (1.0 - jnp.abs(u - u0 - du)) * (1.0 - jnp.abs(v - v0 - dv))
            good = valid[v0 + dv, u0 + du]
            # A neighbour without weight need not be valid.
            usable = usable & (good | (weight <= 0.0))
            total = total + jnp.where(good, depth[v0 + dv, u0 + du], 0.0) * weight
    row, column = jnp.arange(h)[:, None], jnp.arange(w)
    distance2 = (row - points[:, 1, None, None]) ** 2
    distance2 = distance2 + (column - points[:, 0, None, None]) ** 2
    distance2 = jnp.where(valid, distance2, jnp.inf).reshape(len(points), -1)
    nearest = depth.ravel()[jnp.argmin(distance2, axis=1)]
    nearest = jnp.where(jnp.any(valid), nearest, jnp.nan)
    return jnp.where(usable, total, nearest)


def keypoint_depth_correlation(
    depth: Float[AnyArray, "n k"], true_depth: Float[AnyArray, "n k"]
) -> dict:
    """Table 5: correlation of predicted and true depth at keypoints, over images.

    For each keypoint the Pearson correlation over the images, summed over the
    keypoints: the truth itself has k (66 in the paper). This is the trace of
    the correlation matrix that DepthNet (Moniz et al., NeurIPS 2018) reports.
    An image's distance is unknown, so both depths are first taken relative to
    their mean over the image's keypoints.

    Args:
        depth, true_depth: any unit; larger is farther in both. Rows with a
            number that is not finite are left out.

    Returns:
        JSON-able: "sum" (at most k), "share" (sum / k), "sum_absolute_depth"
        (without the centring), "keypoints", "images", and "per_image" {"mean",
        "std", "n"}: the correlation over the keypoints of one image.

    Raises:
        ValueError: if the shapes differ.
    """
    if depth.shape != true_depth.shape or depth.ndim != 2:
        raise ValueError(f"need equal (n, k), got {depth.shape}, {true_depth.shape}.")
    a, b = np.asarray(depth, np.float64), np.asarray(true_depth, np.float64)
    usable = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    a, b = a[usable], b[usable]
    images, keypoints = a.shape
    result: dict = {"keypoints": keypoints, "images": images}
    if images < 2:
        return result | {"sum": None, "share": None, "sum_absolute_depth": None}
    # What varies less than float32 rounds is a constant.
    floors = (1e-6 * np.abs(a).max(), 1e-6 * np.abs(b).max())
    relative_a = a - a.mean(1, keepdims=True)
    relative_b = b - b.mean(1, keepdims=True)
    over_images = _correlations(relative_a, relative_b, floors, axis=0)
    per_image = _correlations(relative_a, relative_b, floors, axis=1)
    return result | {
        "sum": float(over_images.sum()),
        "share": float(over_images.mean()),
        "sum_absolute_depth": float(_correlations(a, b, floors, axis=0).sum()),
        "per_image": {
            "mean": float(per_image.mean()),
            "std": float(per_image.std(ddof=1)),
            "n": images,
        },
    }


def _correlations(
    a: np.ndarray, b: np.ndarray, floors: tuple[float, float], *, axis: int
) -> np.ndarray:
    """Pearson correlations along an axis; 0 where either spreads by its floor."""
    a = a - a.mean(axis, keepdims=True)
    b = b - b.mean(axis, keepdims=True)
    spreads = [np.sqrt((x**2).mean(axis)) for x in (a, b)]
    varies = (spreads[0] > floors[0]) & (spreads[1] > floors[1])
    product = np.where(varies, spreads[0] * spreads[1], 1.0)
    return np.where(varies, (a * b).mean(axis) / product, 0.0)
