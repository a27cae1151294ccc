"""Scores a model over a split, beside the trivial baselines of Table 2.

Every number is a mean over images with its spread (n - 1), computed image by
image, so that it does not depend on the batch size. A data set without true
depth gets reconstruction errors only, and its result says so.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from unsup3d_jax.data import pipeline
from unsup3d_jax.errors import writing
from unsup3d_jax.evaluation import metrics
from unsup3d_jax.evaluation.metrics import AnyArray
from unsup3d_jax.files import write_atomically
from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import Batch, Factors, Reconstruction, Truth
from unsup3d_jax.unsup3d import model, watch
from unsup3d_jax.unsup3d.options import LossWeights, ModelOptions

# Named in every result, because numbers under other rules do not compare.
RULES = {
    "side": (
        "standard deviation over scored pixels of ln depth - ln true depth, per "
        "image; a fraction, tables print it x100"
    ),
    "mad_deg": "mean angle between unit normals over scored pixels, per image",
    "mad_authors_deg": (
        "the same with the authors' normals, divided by norm + 1e-7, which adds up "
        "to 6.5 degrees at 64 px; compare this one with the paper's table"
    ),
    "depth_pearson": (
        "correlation of depth and true depth over scored pixels, per image; 0 where "
        "either is constant"
    ),
    "mask": (
        "true mask and predicted validity, each eroded 3x3 with zeros outside the "
        "image; pixels in both are scored; baselines are valid everywhere"
    ),
    "coverage": "scored pixels over pixels of the true mask before erosion",
    "spread": "standard deviation over images, n - 1",
    "viewpoint": (
        "angle between predicted and true rotation after the one rotation, common "
        "to all images, that brings the canonical frames together (Procrustes); "
        "offset_deg is its size"
    ),
    "albedo": (
        "root mean square over scored pixels and channels after one scale an image"
    ),
    "light": (
        "direction_deg: angle in the camera's frame; diffuse_share: difference of "
        "k_d / (k_s + k_d), which does not change with a common factor"
    ),
    "confidence": (
        "pixels valid in both reconstructions; sigma against the mean absolute error "
        "over channels of images in [-1, 1], whose expectation is sigma / sqrt 2 "
        "under Eq. (3); calibration_error 0 is calibrated"
    ),
    "auroc": (
        "of sigma of the mirrored reconstruction, over pixels of the object valid in "
        "both; patch: against the perturbation's mask; asymmetric: against that mask "
        "and its mirror image on the true surface, which is asymmetric as well"
    ),
    "keypoint_depth": (
        "correlation over images of predicted and true depth at each keypoint, both "
        "relative to their mean over the image's keypoints; summed over keypoints "
        "(Table 5); keypoints beside the reconstruction take its nearest pixel"
    ),
    "shape": (
        "over images: depth_std inside an image (scene units), depth_relief (what "
        "surrounds the centre minus the centre), hollow_share (relief below 0), "
        "view_std_{x,y,z}_deg; canonical frame"
    ),
}

# More of what a data set may know, for `Truth`; the same names.
_TRUTH_FIELDS = ("albedo", "perturb", "keypoints")

DESCRIPTIONS = {
    "constant": "a plane at constant depth facing the camera",
    "average": (
        "average of the true depth maps of the evaluated split in image space, at "
        "each pixel over the images whose mask holds it"
    ),
    "average_background": (
        "the same with the background averaged in, the literal reading of the "
        "paper's Table 2; bends towards the background at the rim of the object"
    ),
    "untrained": "the model at initialisation, with whatever prior that holds",
}

# A pixel of the average depth needs the object in this share of the images;
# rarer pixels are continued smoothly from the others.
_AVERAGE_SUPPORT = 0.02


@struct.dataclass
class ImageScores:
    """Everything measured on one image; fields the truth is missing for are None.

    Attributes:
        depth: errors of the reconstructed depth.
        view, true_view: (6,) radians and scene units.
        recon_l1, recon_l1_flip: mean absolute colour error over valid pixels, [0, 1].
        valid_share: share of the image that the reconstruction covers.
        losses: the training objective's terms on this image alone.
        moments: of `watch.moments`, of this image alone.
        albedo: error up to scale; on images with scored pixels.
        light_deg, light_share: see `metrics.light_errors`.
        reliability, reliability_flip: see `metrics.reliability_bins`.
        auroc_patch, auroc_asymmetric: of the mirrored reconstruction's sigma;
            `auroc_defined` where both kinds of pixel occur in both.
        keypoint_depth, true_keypoint_depth: (k,) scene units.
    """

    depth: metrics.DepthScores | None = None
    view: Float[Array, "*b 6"] | None = None
    true_view: Float[Array, "*b 6"] | None = None
    recon_l1: Float[Array, "*b"] | None = None
    recon_l1_flip: Float[Array, "*b"] | None = None
    valid_share: Float[Array, "*b"] | None = None
    losses: dict[str, Float[Array, "*b"]] | None = None
    moments: dict[str, Float[Array, "..."]] | None = None
    albedo: Float[Array, "*b"] | None = None
    light_deg: Float[Array, "*b"] | None = None
    light_share: Float[Array, "*b"] | None = None
    reliability: Float[Array, "*b bins 3"] | None = None
    reliability_flip: Float[Array, "*b bins 3"] | None = None
    auroc_patch: Float[Array, "*b"] | None = None
    auroc_asymmetric: Float[Array, "*b"] | None = None
    auroc_defined: Bool[Array, "*b"] | None = None
    keypoint_depth: Float[Array, "*b k"] | None = None
    true_keypoint_depth: Float[Array, "*b k"] | None = None


def evaluate(
    params: dict,
    dataset: Any,
    options: ModelOptions,
    *,
    constants: dict | None = None,
    weights: LossWeights | None = None,
    batch_size: int = 64,
    max_images: int = 0,
    name: str = "ours",
) -> dict:
    """Scores a model on a data set.

    Args:
        params: of `model.init_params`.
        dataset: of `data.pipeline.load_split`.
        options: static options; oracle switches take effect here too.
        constants: of `model.load_constants`. Without, perceptual terms are left
            out of the losses.
        weights: scheduled loss weights of the step; None: flip weight 1.
        batch_size: images at a time; changes speed only.
        max_images: use only the first N images; 0: all.
        name: of the row in a table.

    Returns:
        A JSON-able dictionary: "name", "images", "ground_truth"; where there is
        true depth, "scored_images" and for each of "side", "mad_deg",
        "mad_authors_deg", "mae", "depth_pearson", "coverage" {"mean", "std", "n"};
        where there is a true viewpoint, "view" with {"pearson", "slope", "offset_deg",
        "spread_deg", "true_spread_deg"} for each angle, and "viewpoint" with
        "error_deg", "median_deg" and "offset_deg"; with true light, "light"; with
        true albedo, "albedo"; with confidence, "confidence" (calibration of both
        maps) and, where patches were laid, "auroc"; with keypoints,
        "keypoint_depth"; "shape"; "recon_l1", "recon_l1_flip", "valid_share" and
        "losses". `RULES` says how each is measured.

    Raises:
        ValueError: if the data set is empty or the oracle's truth is missing.
    """
    constants = constants or {}
    if "vgg" not in constants:
        options = _without_perceptual(options)
    if weights is None:
        weights = LossWeights(flip=jnp.ones(()))

    def score(batch: Batch, truth: Truth) -> ImageScores:
        return _score_model(params, constants, batch, truth, weights, options)

    return _collect(score, dataset, name, batch_size, max_images)


def baselines(
    dataset: Any,
    options: ModelOptions,
    *,
    names: Sequence[str] = ("constant", "average", "untrained"),
    initial_params: dict | None = None,
    batch_size: int = 64,
    max_images: int = 0,
) -> list[dict]:
    """Scores the rows of Table 2 that need no training.

    Args:
        dataset: of `data.pipeline.load_split`, with true depth.
        options: of the model; baselines use its camera.
        names: any of `DESCRIPTIONS`.
        initial_params: parameters before training; needed for "untrained".
        batch_size, max_images: as in `evaluate`.

    Returns:
        Rows as of `evaluate`, in the order of `names`; none if the data set has no
        true depth, as there is nothing to compare.

    Raises:
        ValueError: if a name is unknown or "untrained" lacks `initial_params`.
    """
    if unknown := [name for name in names if name not in DESCRIPTIONS]:
        raise ValueError(f"baselines {unknown} are none of {', '.join(DESCRIPTIONS)}.")
    if "untrained" in names and initial_params is None:
        raise ValueError("the untrained baseline needs initial_params.")
    if not _has_depth(dataset):
        return []
    rows = []
    for name in names:
        if name == "untrained":
            row = evaluate(
                initial_params,  # pyright: ignore[reportArgumentType]
                dataset,
                options,
                batch_size=batch_size,
                max_images=max_images,
                name=name,
            )
        else:
            if name == "constant":
                size = options.networks.image_size
                depth = jnp.full((size, size), options.scene.centre_depth)
            else:
                depth = average_depth(
                    dataset,
                    batch_size=batch_size,
                    max_images=max_images,
                    on_object=name == "average",
                )
            score = functools.partial(_score_map, depth, fov_deg=options.scene.fov_deg)
            row = _collect(score, dataset, name, batch_size, max_images)
        row["description"] = DESCRIPTIONS[name]
        rows.append(row)
    return rows


def average_depth(
    dataset: Any, *, batch_size: int = 64, max_images: int = 0, on_object: bool = True
) -> Float[Array, "h w"]:
    """Average true depth of a split in image space.

    Args:
        on_object: at each pixel, average over the images whose mask holds it,
            and continue pixels that are rarely on the object from the others by
            repeated averaging of neighbours: the best use of an average, since
            only the object is scored (open faces: SIDE 0.98 against 2.1). False
            averages the background in.
    """
    total, count, images = 0.0, 0.0, 0
    for batch, _, real in _batches(dataset, batch_size, max_images):
        depth = np.asarray(batch.depth, np.float64)[:real]
        mask = np.asarray(_true_mask(batch))[:real]
        mask = mask if on_object else np.ones_like(mask)
        total = total + np.sum(depth * mask, axis=0)
        count = count + np.sum(mask, axis=0)
        images += real
    count, total = np.asarray(count), np.asarray(total)
    known = count >= max(1.0, _AVERAGE_SUPPORT * images)
    if not known.any():
        return jnp.ones(count.shape)
    return jnp.asarray(_continue_smoothly(total / np.maximum(count, 1.0), known))


def _continue_smoothly(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills unknown pixels outwards with the mean of their known neighbours."""
    h, w = values.shape
    values, filled = np.where(known, values, 0.0), known.copy()
    while not filled.all():
        padded, weight = np.pad(values * filled, 1), np.pad(filled.astype(float), 1)
        window = [(v, u) for v in range(3) for u in range(3)]
        near = sum(padded[v : v + h, u : u + w] for v, u in window)
        share = sum(weight[v : v + h, u : u + w] for v, u in window)
        new = ~filled & (share > 0)
        values = np.where(new, near / np.maximum(share, 1.0), values)
        filled |= new
    return values.astype(np.float32)


def scalars(row: dict) -> dict[str, float]:
    """The few numbers of a row worth a curve, for metrics.jsonl and TensorBoard."""
    out = {f"loss_{k}": v["mean"] for k, v in row.get("losses", {}).items()}
    for key in ("recon_l1", "valid_share", "mad_deg", "coverage"):
        if key in row:
            out[key] = row[key]["mean"]
    if "side" in row:
        out["side_x100"] = 100.0 * row["side"]["mean"]
    for angle, agreement in row.get("view", {}).items():
        out[f"{angle}_pearson"] = agreement["pearson"]
        out[f"{angle}_slope"] = agreement["slope"]
    if "viewpoint" in row:
        out["viewpoint_deg"] = row["viewpoint"]["error_deg"]["mean"]
    return out


def format_table(rows: Sequence[dict]) -> str:
    """The table for a terminal, one line a row, in the order given."""
    header = [
        "method",
        "SIDE x10^-2",
        "MAD deg",
        "MAD authors' code",
        "coverage",
        "yaw r",
        "yaw slope",
        "recon L1",
        "images",
    ]

    def spread(row: dict, key: str, scale: float, digits: int) -> str:
        if key not in row or row[key]["n"] == 0:
            return "-"
        mean, std = scale * row[key]["mean"], scale * row[key]["std"]
        return f"{mean:.{digits}f} ± {std:.{digits}f}"

    def plain(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [header]
    for row in rows:
        yaw = row.get("view", {}).get("yaw", {})
        scored, images = row.get("scored_images"), row["images"]
        partly = scored is not None and scored < images
        lines.append(
            [
                row["name"],
                spread(row, "side", 100.0, 3),
                spread(row, "mad_deg", 1.0, 2),
                spread(row, "mad_authors_deg", 1.0, 2),
                plain(row.get("coverage", {}).get("mean"), 3),
                plain(yaw.get("pearson"), 3),
                plain(yaw.get("slope"), 2),
                plain(row.get("recon_l1", {}).get("mean"), 4),
                f"{scored} of {images}" if partly else str(images),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    if any(not row["ground_truth"] for row in rows):
        text.append("No true depth in this data set: reconstruction error only.")
    return "\n".join(text)


def write_scores(
    workdir: str | Path,
    split: str,
    row: dict,
    *,
    baseline_rows: Sequence[dict] = (),
    step: int,
    crop: Sequence[int] = (),
    data_name: str = "",
    scored: Mapping[str, Any] | None = None,
) -> Path:
    """Writes eval/<split>.json, whole or not at all.

    Args:
        workdir: of the run.
        split: train, val or test.
        row: of `evaluate`.
        baseline_rows: of `baselines`, and rows of trained baselines.
        step: training step of the checkpoint.
        crop: `data.crop`, pixels cut from each image before resizing.
        data_name: `data.name`.
        scored: what tells this evaluation from others of the split.

    Returns:
        The path of the file.

    Raises:
        UserError: if it cannot be written.
    """
    path = Path(workdir) / "eval" / f"{split}.json"
    content = {
        "split": split,
        "data": data_name,
        "checkpoint_step": int(step),
        "crop": list(crop) if crop else "none",
        "scored": dict(scored or {}),
        "rules": RULES | {"crop": crop_rule(crop)},
        **row,
        "baselines": {r["name"]: r for r in baseline_rows},
    }
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    with writing(path, "The same command scores again; no training is lost."):
        write_atomically(path, text + "\n")
    return path


def crop_rule(crop: Sequence[int]) -> str:
    """Says in words what `data.crop` does to each image before it is resized."""
    if len(crop) == 0:
        return "none: the whole image, resized to a square"
    if len(crop) == 1:
        size = f"{crop[0]} x {crop[0]} pixels" if crop[0] else "largest square"
        return f"centred, {size}, before resizing"
    y0, x0, h, w = crop
    return f"rows {y0} to {y0 + h - 1}, columns {x0} to {x0 + w - 1}, before resizing"


def _finite(value: Any) -> Any:
    """JSON has no NaN: such numbers become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _without_perceptual(options: ModelOptions) -> ModelOptions:
    loss = dataclasses.replace(options.loss, perceptual=0.0)
    return dataclasses.replace(options, loss=loss)


def _has_depth(dataset: Any) -> bool:
    for batch, _ in pipeline.eval_batches(dataset, 1):
        return batch.depth is not None
    return False


def _batches(
    dataset: Any, batch_size: int, max_images: int
) -> Iterator[tuple[Batch, Truth, int]]:
    """Batches of static shape and how many of each one's images count."""
    left = max_images if max_images > 0 else len(dataset)
    first = 0
    for batch, real in pipeline.eval_batches(dataset, batch_size):
        if left <= 0:
            return
        yield batch, _truth(dataset, first, real, batch_size), min(real, left)
        left -= real
        first += real


def _truth(dataset: Any, first: int, real: int, batch_size: int) -> Truth:
    """What the data set knows beyond a Batch; padded as `eval_batches` pads."""
    fields = [name for name in _TRUTH_FIELDS if name in dataset.arrays]
    if not fields:  # also all streamed sets
        return Truth()
    rows = np.minimum(np.arange(first, first + batch_size), first + real - 1)
    arrays = dataset.take(rows, fields)
    if "albedo" in arrays:
        arrays["albedo"] = arrays["albedo"].astype(np.float32) / 255.0
    return Truth(**jax.device_put(arrays))


def _true_mask(batch: Batch) -> Array:
    """The data set's mask, or else what is nearer than the background.

    The authors' rule for the latter takes the farthest depth of the whole
    batch as background.
    """
    if batch.mask is not None:
        return batch.mask
    return batch.depth < jnp.max(batch.depth)  # pyright: ignore


@jax.jit
def _reconstruction_errors(
    reconstruction: Reconstruction, image: Float[Array, "b h w 3"]
) -> dict[str, Array]:
    errors = {}
    for key, warped in (
        ("recon_l1", reconstruction.plain),
        ("recon_l1_flip", reconstruction.flip),
    ):
        error = jnp.mean(jnp.abs(warped.image - image), axis=-1)
        errors[key] = jax.vmap(metrics.masked_mean)(error, warped.valid)
    errors["valid_share"] = jnp.mean(reconstruction.plain.valid, axis=(1, 2))
    return errors


def _score_model(
    params: dict,
    constants: dict,
    batch: Batch,
    truth: Truth,
    weights: LossWeights,
    options: ModelOptions,
) -> ImageScores:
    # The compiled forward pass is the same whatever else the data set knows.
    seen = Batch(image=batch.image)
    if options.oracle_view or options.oracle_light:
        seen = dataclasses.replace(seen, view=batch.view, light=batch.light)
    if options.supervised:
        seen = dataclasses.replace(seen, depth=batch.depth, mask=batch.mask)
    factors, reconstruction, losses, moments = _forward(
        params, constants, seen, weights, options
    )
    scores = ImageScores(losses=losses)
    plain = reconstruction.plain
    if not options.supervised:  # which has neither a viewpoint nor a picture
        errors = _reconstruction_errors(reconstruction, batch.image)
        scores = dataclasses.replace(
            scores, **errors, view=factors.view, true_view=batch.view, moments=moments
        )
        more = _factor_scores(factors, reconstruction, batch, truth, options)
        scores = dataclasses.replace(scores, **more)
    if truth.keypoints is not None:
        at_keypoints = _depths_at(plain.depth, plain.valid, truth.keypoints[..., :2])
        scores = dataclasses.replace(
            scores,
            keypoint_depth=at_keypoints,
            true_keypoint_depth=truth.keypoints[..., 2],
        )
    if batch.depth is None:
        return scores
    fov_deg = options.scene.fov_deg
    return dataclasses.replace(
        scores, depth=_depth_scores(plain.depth, batch, plain.valid, fov_deg=fov_deg)
    )


@functools.partial(jax.jit, static_argnames="options")
def _factor_scores(
    factors: Factors,
    reconstruction: Reconstruction,
    batch: Batch,
    truth: Truth,
    options: ModelOptions,
) -> dict[str, Array]:
    """Errors of albedo, light and confidence, as far as the truth is known."""
    plain, flip, scene = reconstruction.plain, reconstruction.flip, options.scene
    result: dict[str, Array] = {}
    # A predicted shading map leaves no light to compare.
    if batch.light is not None and options.factors.shading == "lambert":
        result["light_deg"], result["light_share"] = jax.vmap(metrics.light_errors)(
            factors.light, factors.view, batch.light
        )
    if truth.albedo is not None and batch.depth is not None:
        seen = reprojection.sample_canonical(
            factors.canon_albedo, plain.depth, factors.view, scene
        )
        scored = jax.vmap(metrics.scored_mask)(
            plain.depth, batch.depth, plain.valid, _true_mask(batch)
        )
        result["albedo"] = jax.vmap(metrics.albedo_error)(seen, truth.albedo, scored)
    if factors.conf_sigma is None or factors.conf_sigma_flip is None:
        return result
    valid = plain.valid & flip.valid
    for name, sigma, warped in (
        ("reliability", factors.conf_sigma, plain),
        ("reliability_flip", factors.conf_sigma_flip, flip),
    ):
        residual = 2.0 * jnp.mean(jnp.abs(warped.image - batch.image), axis=-1)
        result[name] = jax.vmap(metrics.reliability_bins)(sigma, residual, valid)
    known = (truth.perturb, batch.depth, batch.view)
    if any(x is None for x in known):
        return result
    patch, depth, view = (jnp.asarray(x) for x in known)
    mirrored = jax.vmap(
        functools.partial(
            metrics.mirrored_mask,
            fov_deg=scene.fov_deg,
            centre_depth=scene.centre_depth,
        )
    )(patch, depth, view)
    pixels = valid & _true_mask(batch)
    area = jax.vmap(metrics.auroc)
    sigma = factors.conf_sigma_flip
    result["auroc_patch"], defined = area(sigma, patch, pixels)
    result["auroc_asymmetric"], both = area(sigma, patch | mirrored, pixels)
    result["auroc_defined"] = defined & both
    return result


@functools.partial(jax.jit, static_argnames="options")
def _forward(
    params: dict,
    constants: dict,
    batch: Batch,
    weights: LossWeights,
    options: ModelOptions,
) -> tuple[Factors, Reconstruction, dict[str, Array], dict[str, Array]]:
    """Factors, reconstruction, loss terms and moments of each image of a batch."""

    def one(single: Batch) -> tuple[Factors, Reconstruction, dict, dict]:
        # A batch of one: its loss terms are those of this image alone, so their
        # average does not depend on how images share batches or on padding.
        single = jax.tree.map(lambda a: a[None], single)
        outputs = model.objective(params, constants, single, weights, options)[1]
        factors, reconstruction = jax.tree.map(
            lambda a: a[0], (outputs.factors, outputs.reconstruction)
        )
        return factors, reconstruction, outputs.terms, watch.moments(outputs)

    return jax.vmap(one)(batch)


def _score_map(
    depth: Float[Array, "h w"], batch: Batch, truth: Truth, *, fov_deg: float
) -> ImageScores:
    """Scores one depth map, valid everywhere, against every image of a batch."""
    depths = jnp.broadcast_to(depth, batch.image.shape[:3])
    everywhere = jnp.ones(depths.shape, bool)
    scores = ImageScores(
        depth=_depth_scores(depths, batch, everywhere, fov_deg=fov_deg)
    )
    if truth.keypoints is None:
        return scores
    return dataclasses.replace(
        scores,
        keypoint_depth=_depths_at(depths, everywhere, truth.keypoints[..., :2]),
        true_keypoint_depth=truth.keypoints[..., 2],
    )


_depths_at = jax.jit(jax.vmap(metrics.depth_at))


@functools.partial(jax.jit, static_argnames="fov_deg")
def _depth_scores(
    depth: Array, batch: Batch, valid: Array, *, fov_deg: float
) -> metrics.DepthScores:
    score = functools.partial(metrics.depth_scores, fov_deg=fov_deg)
    true_depth: Any = batch.depth  # callers have checked that there is one
    return jax.vmap(score)(depth, true_depth, valid, _true_mask(batch))


def _collect(
    score: Callable[[Batch, Truth], ImageScores],
    dataset: Any,
    name: str,
    batch_size: int,
    max_images: int,
) -> dict:
    """Runs `score` over the data set and summarises it as one table row."""
    parts = []
    for batch, truth, real in _batches(dataset, batch_size, max_images):
        scores = jax.device_get(score(batch, truth))
        parts.append(jax.tree.map(lambda a, n=real: a[:n], scores))
    if not parts:
        raise ValueError(f"cannot evaluate {name!r}: the data set has no images.")
    scores = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    images = sum(jax.tree.leaves(part)[0].shape[0] for part in parts)
    row: dict[str, Any] = {
        "name": name,
        "images": images,
        "ground_truth": scores.depth is not None,
    }
    if scores.depth is None:
        row["note"] = "no true depth in this data set: reconstruction error only"
    else:
        scored = scores.depth.scored_pixels > 0
        row["scored_images"] = int(scored.sum())
        for key in ("side", "mad_deg", "mad_authors_deg", "mae"):
            row[key] = _summary(getattr(scores.depth, key), scored)
        row["depth_pearson"] = _summary(scores.depth.pearson, scored)
        # An image without a scored pixel is not an image without weight here.
        row["coverage"] = _summary(scores.depth.coverage)
    if scores.view is not None and scores.true_view is not None:
        row["view"] = {
            angle: {
                key: float(value)
                for key, value in vars(
                    metrics.angle_agreement(
                        jnp.asarray(scores.view[:, axis]),
                        jnp.asarray(scores.true_view[:, axis]),
                    )
                ).items()
            }
            for axis, angle in enumerate(metrics.ANGLES)
        }
        row["viewpoint"] = _viewpoint_summary(scores.view, scores.true_view)
    row |= _factor_summaries(scores)
    for key in ("recon_l1", "recon_l1_flip", "valid_share"):
        if getattr(scores, key) is not None:
            row[key] = _summary(getattr(scores, key))
    if scores.losses:
        row["losses"] = {k: _summary(v) for k, v in scores.losses.items()}
    return row


def _viewpoint_summary(view: AnyArray, true_view: AnyArray) -> dict:
    errors = metrics.viewpoint_errors(jnp.asarray(view), jnp.asarray(true_view))
    error_deg = np.asarray(errors.error_deg)
    return {
        "error_deg": _summary(error_deg),
        "median_deg": float(np.median(error_deg)),
        "offset_deg": float(errors.offset_deg),
    }


def _factor_summaries(scores: ImageScores) -> dict:
    """Summaries of what `_factor_scores` and the keypoints gave."""
    row: dict[str, Any] = {}
    if scores.albedo is not None and scores.depth is not None:
        row["albedo"] = _summary(scores.albedo, scores.depth.scored_pixels > 0)
    if scores.light_deg is not None and scores.light_share is not None:
        row["light"] = {
            "direction_deg": _summary(scores.light_deg),
            "diffuse_share": _summary(scores.light_share),
        }
    if scores.reliability is not None and scores.reliability_flip is not None:
        row["confidence"] = {
            name: metrics.reliability_curve(bins.astype(np.float64).sum(0))
            for name, bins in (
                ("plain", scores.reliability),
                ("flip", scores.reliability_flip),
            )
        }
    if scores.auroc_patch is not None and scores.auroc_asymmetric is not None:
        row["auroc"] = {
            "patch": _summary(scores.auroc_patch, scores.auroc_defined),
            "asymmetric": _summary(scores.auroc_asymmetric, scores.auroc_defined),
        }
    if scores.keypoint_depth is not None and scores.true_keypoint_depth is not None:
        row["keypoint_depth"] = metrics.keypoint_depth_correlation(
            scores.keypoint_depth, scores.true_keypoint_depth
        )
    if scores.moments is not None:
        total = {k: v.astype(np.float64).sum(0) for k, v in scores.moments.items()}
        row["shape"] = {k: float(v) for k, v in watch.statistics(total).items()}
    return row


def _summary(values: AnyArray, counts: AnyArray | None = None) -> dict:
    if counts is None:
        counts = np.ones(values.shape, bool)
    summary = metrics.mean_std(jnp.asarray(values), jnp.asarray(counts))
    return {
        "mean": float(summary.mean),
        "std": float(summary.std),
        "n": int(summary.count),
    }
