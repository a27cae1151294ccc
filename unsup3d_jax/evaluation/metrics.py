"""How good are depth, viewpoint, albedo, light and confidence, against the truth.

Scale-invariant depth error (SIDE) and mean angle deviation (MAD) of Wu et al.,
CVPR 2020, Sec. 4.1, with the mask rule of the authors' code; the other measures
name what they leave out (a scale, a global rotation), because a photograph
cannot tell it. Functions take one example unless they say otherwise; `jax.vmap`
them over a batch. Nothing here returns NaN for an empty mask: such an image has
`scored_pixels == 0` and is left out by `mean_std`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unsup3d_jax.formation import geometry

# What is summed up on the host may come from either side.
AnyArray = Array | np.ndarray

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
        pearson: correlation of depth with true depth; 0 where either is constant.
            Below 0 what should stand out lies behind, which SIDE does not say.
        coverage: scored pixels over pixels of the true mask; 0 if that is empty.
            Below 1 even at best, since both masks are eroded.
        scored_pixels: number of pixels the other values are means over.
    """

    side: Float[Array, "*b"]
    mad_deg: Float[Array, "*b"]
    mad_authors_deg: Float[Array, "*b"]
    mae: Float[Array, "*b"]
    pearson: Float[Array, "*b"]
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
        pearson=depth_pearson(depth, true_depth, scored),
        coverage=jnp.sum(scored) / jnp.maximum(true_count, 1),
        scored_pixels=jnp.sum(scored),
    )


def depth_pearson(
    depth: Float[Array, "h w"],
    true_depth: Float[Array, "h w"],
    mask: Bool[Array, "h w"],
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


# --- viewpoint ----------------------------------------------------------------


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
    view: Float[Array, "n 6"], true_view: Float[Array, "n 6"]
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
        jax.vmap(geometry.rotation_matrix)(v[:, :3]) for v in (view, true_view)
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


def rotation_angle_deg(
    a: Float[Array, "*n 3 3"], b: Float[Array, "*n 3 3"]
) -> Float[Array, "*n"]:
    """Angle of the rotation between two rotations, degrees.

    |a - b| (Frobenius) is sqrt(8) sin(angle / 2), which keeps its digits near
    0 where the arc cosine of the trace has none.
    """
    chord = jnp.sqrt(jnp.sum((a - b) ** 2, axis=(-2, -1)) / 8.0)
    return jnp.degrees(2.0 * jnp.arcsin(jnp.clip(chord, 0.0, 1.0)))


# --- albedo and light -----------------------------------------------------------


def albedo_error(
    albedo: Float[Array, "h w 3"],
    true_albedo: Float[Array, "h w 3"],
    mask: Bool[Array, "h w"],
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
    light: Float[Array, "5"], view: Float[Array, "6"], true_light: Float[Array, "5"]
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
    rotation = geometry.rotation_matrix(view[:3])
    direction = jnp.sum(rotation * light[2:], axis=1)
    share, true_share = (
        x[1] / jnp.maximum(x[0] + x[1], 1e-6) for x in (light, true_light)
    )
    return angle_between_deg(direction, true_light[2:]), jnp.abs(share - true_share)


# --- confidence -----------------------------------------------------------------

# Bins of predicted sigma: half octaves from 2^-10 to 2^2; the first and last
# also take what lies beyond. Errors of images in [-1, 1] never exceed 2.
SIGMA_BIN_EDGES = tuple(2.0 ** (k / 2.0) for k in range(-20, 5))


def reliability_bins(
    sigma: Float[Array, "h w"],
    residual: Float[Array, "h w"],
    mask: Bool[Array, "h w"],
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
    score: Float[Array, "h w"], positive: Bool[Array, "h w"], mask: Bool[Array, "h w"]
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
    mask: Bool[Array, "h w"],
    depth: Float[Array, "h w"],
    view: Float[Array, "6"],
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
    points = geometry.depth_to_points(depth, fov_deg=fov_deg)
    points = geometry.inverse_transform(points, view, centre_depth=centre_depth)
    points = points * jnp.array([-1.0, 1.0, 1.0])
    points = geometry.transform(points, view, centre_depth=centre_depth)
    h, w = mask.shape
    pixel = geometry.project(points, (h, w), fov_deg=fov_deg)
    u, v = (jnp.round(pixel[..., i]).astype(jnp.int32) for i in range(2))
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    return inside & mask[jnp.clip(v, 0, h - 1), jnp.clip(u, 0, w - 1)]


# --- keypoints --------------------------------------------------------------------


def depth_at(
    depth: Float[Array, "h w"],
    valid: Bool[Array, "h w"],
    points: Float[Array, "k 2"],
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
