"""Rows that need no method: one depth map for all images, as in Table 2."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.evaluation import scores, summary
from unsup3d_jax.evaluation.masks import object_mask
from unsup3d_jax.evaluation.scores import ImageScores, Limits
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import AnyArray, Batch, Truth

BASELINES = {
    "constant": "a plane at constant depth facing the camera",
    "average": (
        "average of the true depth maps of the evaluated split in image space, at "
        "each pixel over the images whose mask holds it"
    ),
    "average_background": (
        "the same with the background averaged in, the literal reading of the "
        "paper's Table 2; bends towards the background at the rim of the object"
    ),
}

# A pixel of the average depth needs the object in this share of the images;
# rarer pixels are continued smoothly from the others.
_AVERAGE_SUPPORT = 0.02


def baseline_row(
    name: str,
    dataset: Dataset,
    scene: Scene,
    limits: Limits,
    *,
    shared: Bool[AnyArray, "n h w"] | None = None,
) -> dict:
    """Scores one of `BASELINES`.

    Args:
        dataset: of `data.load.load_split`, with true depth.
        scene: camera; its centre is the depth of the constant one.
        shared: see `scores.collect`.

    Returns:
        As of `summary.row_of`, and "description".

    Raises:
        ValueError: if the name is none of them or the data set is empty.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline {name!r} is none of {', '.join(BASELINES)}.")
    if name == "constant":
        depth = jnp.full((1, 1), scene.centre_depth)
    else:
        depth = average_depth(dataset, limits, on_object=name == "average")
    score = functools.partial(_score_map, depth, fov_deg=scene.fov_deg)
    found = scores.collect(name, score, dataset, limits, shared=shared)
    row = summary.row_of(name, found)
    row["description"] = BASELINES[name]
    return row


def average_depth(
    dataset: Dataset, limits: Limits, *, on_object: bool
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
    for batch, _, real in scores.batches(dataset, limits):
        depth = np.asarray(batch.depth, np.float64)[:real]
        mask = np.asarray(object_mask(batch))[:real]
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


def _score_map(
    depth: Float[AnyArray, "#h #w"],
    batch: Batch,
    truth: Truth,
    shared: Bool[AnyArray, "b h w"] | None,
    *,
    fov_deg: float,
) -> ImageScores:
    """Scores one depth map, valid everywhere, against every image of a batch."""
    depths = jnp.broadcast_to(depth, batch.image.shape[:3])
    everywhere = jnp.ones(depths.shape, bool)
    return scores.score_depth(depths, everywhere, batch, truth, shared, fov_deg=fov_deg)
