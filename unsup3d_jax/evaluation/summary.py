"""The scores of many images -> one row of a table, JSON-able.

Every number is a mean over images with its spread (n - 1). A data set without true
depth gets what is known without it, and its row says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unsup3d_jax.evaluation.confidence import reliability_curve
from unsup3d_jax.evaluation.depth import DepthScores
from unsup3d_jax.evaluation.keypoints import keypoint_depth_correlation
from unsup3d_jax.evaluation.scores import ImageScores
from unsup3d_jax.evaluation.viewpoint import ANGLES, angle_agreement, viewpoint_errors
from unsup3d_jax.formation.types import AnyArray

# Sums over images of what a method measures of its outputs -> named numbers.
Statistics = Callable[[Mapping[str, Any]], Mapping[str, Any]]


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


def spread(values: AnyArray, counts: AnyArray | None = None) -> dict[str, Any]:
    """`mean_std` of all values, or of those that count: {"mean", "std", "n"}."""
    if counts is None:
        counts = np.ones(values.shape, bool)
    summary = mean_std(jnp.asarray(values), jnp.asarray(counts))
    return {
        "mean": float(summary.mean),
        "std": float(summary.std),
        "n": int(summary.count),
    }


def row_of(
    name: str, scores: ImageScores, statistics: Statistics | None = None
) -> dict[str, Any]:
    """Summarises the scores of images as one table row.

    Args:
        name: of the row.
        scores: of `scores.collect`.
        statistics: makes "shape" of the sums of `scores.moments` over the images;
            without it moments are left out.

    Returns:
        "name", "images", "ground_truth"; where there is true depth, "scored_images"
        and for each of "side", "mad_deg", "mad_authors_deg", "mae", "depth_pearson",
        "coverage" {"mean", "std", "n"}, and "shared_pixels" with the same over the
        pixels that another row is scored on, where those were given; where there is a
        true viewpoint, "view" with {"pearson", "slope", "offset_deg", "spread_deg",
        "true_spread_deg"} for each angle, and "viewpoint" with "error_deg",
        "median_deg" and "offset_deg"; with true light, "light"; with true albedo,
        "albedo"; with confidence, "confidence" (calibration of both maps) and, where
        patches were laid, "auroc"; with keypoints, "keypoint_depth"; "shape";
        "recon_l1", "recon_l1_flip", "valid_share" and "losses". `report.RULES` says how
        each is measured.
    """
    row: dict[str, Any] = {
        "name": name,
        "images": jax.tree.leaves(scores)[0].shape[0],
        "ground_truth": scores.depth is not None,
    }
    row |= _depth_part(scores)
    row |= _viewpoint_part(scores)
    row |= _appearance_part(scores)
    row |= _confidence_part(scores)
    if scores.keypoint_depth is not None and scores.true_keypoint_depth is not None:
        row["keypoint_depth"] = keypoint_depth_correlation(
            scores.keypoint_depth, scores.true_keypoint_depth
        )
    if scores.moments is not None and statistics is not None:
        total = {k: v.astype(np.float64).sum(0) for k, v in scores.moments.items()}
        row["shape"] = {k: float(v) for k, v in statistics(total).items()}
    for key in ("recon_l1", "recon_l1_flip", "valid_share"):
        if (values := getattr(scores, key)) is not None:
            row[key] = spread(values)
    if scores.losses:
        row["losses"] = {k: spread(v) for k, v in scores.losses.items()}
    return row


def _depth_part(scores: ImageScores) -> dict[str, Any]:
    if scores.depth is None:
        return {"note": "no true depth in this data set: what is known without"}
    row = _depth_numbers(scores.depth)
    if scores.depth_shared is not None:
        row["shared_pixels"] = _depth_numbers(scores.depth_shared)
    return row


def _depth_numbers(depth: DepthScores) -> dict[str, Any]:
    scored = depth.scored_pixels > 0
    row: dict[str, Any] = {"scored_images": int(scored.sum())}
    for key in ("side", "mad_deg", "mad_authors_deg", "mae"):
        row[key] = spread(getattr(depth, key), scored)
    row["depth_pearson"] = spread(depth.pearson, scored)
    # An image without a scored pixel is not an image without weight here.
    row["coverage"] = spread(depth.coverage)
    return row


def _viewpoint_part(scores: ImageScores) -> dict[str, Any]:
    if scores.view is None or scores.true_view is None:
        return {}
    agreements = {
        angle: angle_agreement(
            jnp.asarray(scores.view[:, axis]), jnp.asarray(scores.true_view[:, axis])
        )
        for axis, angle in enumerate(ANGLES)
    }
    errors = viewpoint_errors(jnp.asarray(scores.view), jnp.asarray(scores.true_view))
    error_deg = np.asarray(errors.error_deg)
    return {
        "view": {
            angle: {key: float(value) for key, value in vars(agreement).items()}
            for angle, agreement in agreements.items()
        },
        "viewpoint": {
            "error_deg": spread(error_deg),
            "median_deg": float(np.median(error_deg)),
            "offset_deg": float(errors.offset_deg),
        },
    }


def _appearance_part(scores: ImageScores) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if scores.albedo is not None and scores.depth is not None:
        row["albedo"] = spread(scores.albedo, scores.depth.scored_pixels > 0)
    if scores.light_deg is not None and scores.light_share is not None:
        row["light"] = {
            "direction_deg": spread(scores.light_deg),
            "diffuse_share": spread(scores.light_share),
        }
    return row


def _confidence_part(scores: ImageScores) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if scores.reliability is not None and scores.reliability_flip is not None:
        row["confidence"] = {
            name: reliability_curve(bins.astype(np.float64).sum(0))
            for name, bins in (
                ("plain", scores.reliability),
                ("flip", scores.reliability_flip),
            )
        }
    if scores.auroc_patch is not None and scores.auroc_asymmetric is not None:
        row["auroc"] = {
            "patch": spread(scores.auroc_patch, scores.auroc_defined),
            "asymmetric": spread(scores.auroc_asymmetric, scores.auroc_defined),
        }
    return row
