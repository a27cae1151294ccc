"""What every image of a data set scores: batches in, arrays over the images out.

A method says what one batch scores, image by image, so that nothing depends on the
batch size; `summary.row_of` makes a table row of it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from unsup3d_jax.data.batches import eval_batches
from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.evaluation import keypoints, masks
from unsup3d_jax.evaluation.depth import DepthScores, depth_scores
from unsup3d_jax.formation.types import AnyArray, Batch, Truth

# More of what a data set may know, for `Truth`; the same names.
_TRUTH_FIELDS = ("albedo", "perturb", "keypoints")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many images are scored, and how many of them at a time.

    Attributes:
        batch_size: changes speed only.
        max_images: use only the first N images; 0: all.
    """

    batch_size: int
    max_images: int


def limits_of(config: ConfigDict) -> Limits:
    """What section eval of a full configuration asks for."""
    return Limits(config.eval.batch_size, config.eval.max_images)


@struct.dataclass
class ImageScores:
    """Everything measured on each image; fields the truth is missing for are None.

    Attributes:
        depth: errors of the reconstructed depth.
        depth_shared: the same over pixels that another row is scored on, too.
        usable: where the reconstruction has a depth that can be scored.
        view, true_view: (6,) radians and scene units.
        recon_l1, recon_l1_flip: mean absolute colour error over valid pixels, [0, 1].
        valid_share: share of the image that the reconstruction covers.
        losses: the training objective's terms on this image alone.
        moments: whatever a method's `statistics` are made of, of this image alone;
            summed over images by `summary.row_of`.
        albedo: error up to scale; on images with scored pixels.
        light_deg, light_share: see `appearance.light_errors`.
        reliability, reliability_flip: see `confidence.reliability_bins`.
        auroc_patch, auroc_asymmetric: of the mirrored reconstruction's sigma;
            `auroc_defined` where both kinds of pixel occur in both.
        keypoint_depth, true_keypoint_depth: (k,) scene units.
    """

    depth: DepthScores | None = None
    depth_shared: DepthScores | None = None
    usable: Bool[AnyArray, "*b h w"] | None = None
    view: Float[AnyArray, "*b 6"] | None = None
    true_view: Float[AnyArray, "*b 6"] | None = None
    recon_l1: Float[AnyArray, "*b"] | None = None
    recon_l1_flip: Float[AnyArray, "*b"] | None = None
    valid_share: Float[AnyArray, "*b"] | None = None
    losses: dict[str, Float[AnyArray, "*b"]] | None = None
    moments: dict[str, Float[AnyArray, "..."]] | None = None
    albedo: Float[AnyArray, "*b"] | None = None
    light_deg: Float[AnyArray, "*b"] | None = None
    light_share: Float[AnyArray, "*b"] | None = None
    reliability: Float[AnyArray, "*b bins 3"] | None = None
    reliability_flip: Float[AnyArray, "*b bins 3"] | None = None
    auroc_patch: Float[AnyArray, "*b"] | None = None
    auroc_asymmetric: Float[AnyArray, "*b"] | None = None
    auroc_defined: Bool[AnyArray, "*b"] | None = None
    keypoint_depth: Float[AnyArray, "*b k"] | None = None
    true_keypoint_depth: Float[AnyArray, "*b k"] | None = None


def collect(
    name: str,
    score: Callable[[Batch, Truth, AnyArray | None], ImageScores],
    dataset: Dataset,
    limits: Limits,
    *,
    shared: Bool[AnyArray, "n h w"] | None = None,
) -> ImageScores:
    """Runs `score` over a data set.

    Args:
        name: of what is scored, for the error.
        score: of one batch, which may be padded: image by image; and what belongs to
            it of `shared`.
        dataset: of `data.load.load_split`.
        shared: `ImageScores.usable` of another row, for `score_depth`.

    Returns:
        numpy arrays over the images that count.

    Raises:
        ValueError: if the data set is empty.
    """
    parts, first = [], 0
    for batch, truth, real in batches(dataset, limits):
        part = None
        if shared is not None:
            # Padded as `eval_batches` pads; what comes of that is cut off below.
            rows = np.arange(first, first + limits.batch_size)
            part = np.asarray(shared)[np.minimum(rows, len(shared) - 1)]
        scores = jax.device_get(score(batch, truth, part))
        first += real
        parts.append(jax.tree.map(lambda a, n=real: a[:n], scores))
    if not parts:
        raise ValueError(f"cannot evaluate {name!r}: the data set has no images.")
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def batches(dataset: Dataset, limits: Limits) -> Iterator[tuple[Batch, Truth, int]]:
    """Batches of static shape and how many of each one's images count."""
    size = limits.batch_size
    left = limits.max_images if limits.max_images > 0 else len(dataset)
    first = 0
    for batch, real in eval_batches(dataset, size):
        if left <= 0:
            return
        yield batch, _truth(dataset, first, real, size), min(real, left)
        left -= real
        first += real


def _truth(dataset: Dataset, first: int, real: int, batch_size: int) -> Truth:
    """What the data set knows beyond a Batch; padded as `eval_batches` pads."""
    fields = [name for name in _TRUTH_FIELDS if name in dataset.arrays]
    if not fields:  # also all streamed sets
        return Truth()
    rows = np.minimum(np.arange(first, first + batch_size), first + real - 1)
    arrays = dataset.take(rows, fields)
    if "albedo" in arrays:
        arrays["albedo"] = arrays["albedo"].astype(np.float32) / 255.0
    return Truth(**jax.device_put(arrays))


def has_depth(dataset: Dataset) -> bool:
    """Whether a data set knows true depth."""
    for batch, _ in eval_batches(dataset, 1):
        return batch.depth is not None
    return False


def score_depth(
    depth: Float[AnyArray, "b h w"],
    valid: Bool[AnyArray, "b h w"],
    batch: Batch,
    truth: Truth,
    shared: Bool[AnyArray, "b h w"] | None = None,
    *,
    fov_deg: float,
) -> ImageScores:
    """What reconstructed depth scores, as far as the truth is known.

    Args:
        depth: in the input's view, scene units.
        valid: where the reconstruction covers the pixel.
        shared: `usable` of another reconstruction of these images; None: of none.
        fov_deg: horizontal field of view; static.

    Returns:
        Fields `depth`, `depth_shared`, `usable`, `keypoint_depth` and
        `true_keypoint_depth`.
    """
    scores = ImageScores()
    if truth.keypoints is not None:
        places, true_depth = truth.keypoints[..., :2], truth.keypoints[..., 2]
        scores = dataclasses.replace(
            scores,
            keypoint_depth=_depths_at(depth, valid, places),
            true_keypoint_depth=true_depth,
        )
    if batch.depth is None:
        return scores
    score = functools.partial(_depth_scores, depth, batch, fov_deg=fov_deg)
    return dataclasses.replace(
        scores,
        depth=score(valid),
        depth_shared=None if shared is None else score(valid & shared),
        usable=_usable(depth, valid),
    )


@jax.jit
def _usable(
    depth: Float[AnyArray, "b h w"], valid: Bool[AnyArray, "b h w"]
) -> Bool[Array, "b h w"]:
    return jnp.asarray(valid) & masks.has_depth(depth)


_depths_at = jax.jit(jax.vmap(keypoints.depth_at))


@functools.partial(jax.jit, static_argnames="fov_deg")
def _depth_scores(
    depth: Float[AnyArray, "b h w"],
    batch: Batch,
    valid: Bool[AnyArray, "b h w"],
    *,
    fov_deg: float,
) -> DepthScores:
    score = functools.partial(depth_scores, fov_deg=fov_deg)
    true_depth = jnp.asarray(batch.depth)  # callers have checked that there is one
    return jax.vmap(score)(depth, true_depth, valid, masks.object_mask(batch))
