"""Flattened faces of one person in several poses: do they show the same thing?

`evaluation.report.RULES` says how it is measured, under "views".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.evaluation.summary import spread
from unsup3d_jax.stn3dmm.evaluate import Judge
from unsup3d_jax.stn3dmm.flattening import flatten


def score_views(
    theta: Float[np.ndarray, "n v p"], dataset: Dataset, judge: Judge
) -> dict[str, Any]:
    """How alike the flattened faces of a person are, and their mean to the truth.

    Args:
        theta: of the pictures of n people in v views.
        dataset: image (n, v, s, s, 3), mask (n, v, s, s), truth (n, v, 6 + 94).

    Returns:
        "people", "views", and spreads over people of "variance", "single", "mean" and
        "best" (the best single view), and "mean_wins", the share of the single views
        that the mean is nearer to the truth than.

    Raises:
        ValueError: if nothing is known of the truth.
    """
    if judge.true_grid is None or "truth" not in dataset.arrays:
        raise ValueError("the views of a person need a data set with true theta.")
    found = []
    for i in range(len(dataset)):
        person = {
            name: jnp.asarray(dataset.arrays[name][i])
            for name in ("image", "mask", "truth")
        }
        found.append(jax.device_get(_person(jnp.asarray(theta[i]), person, judge)))
    values = {name: np.stack([x[name] for x in found]) for name in found[0]}
    wins = values.pop("wins")
    return {
        "people": len(dataset),
        "views": theta.shape[1],
        "mean_wins": float(wins.mean()),
        **{name: spread(x) for name, x in values.items()},
    }


@jax.jit
def _person(
    theta: Float[Array, "v p"], known: dict[str, Array], judge: Judge
) -> dict[str, Array]:
    images = known["image"].astype(jnp.float32) / 255.0
    flat, mask = _flatten(theta, images, judge, true=False)
    true_flat, true_mask = _flatten(known["truth"], images, judge, true=True)
    half = len(theta) // 2
    target, is_known = mean_of(true_flat[half:], true_mask[half:])
    mean, in_mean = mean_of(flat[:half], mask[:half])

    def error(texture: Array, counts: Array) -> Array:
        difference = jnp.mean(jnp.abs(texture - target), axis=-1)
        return jnp.sum(difference * counts) / jnp.maximum(jnp.sum(counts), 1.0)

    # Over the same texels: those of the view.
    counts = mask[:half] * in_mean * is_known
    single = jax.vmap(error)(flat[:half], counts)
    of_mean = jax.vmap(error, in_axes=(None, 0))(mean, counts)
    pixels = known["mask"].astype(jnp.float32)
    return {
        "variance": variance(flat, mask) / variance(images, pixels),
        "single": jnp.mean(single),
        "best": jnp.min(single),
        "mean": jnp.mean(of_mean),
        "wins": of_mean < single,
    }


def _flatten(
    theta: Array, images: Array, judge: Judge, *, true: bool
) -> tuple[Array, Array]:
    """Flattened faces (v, g, g, 3), and 1 where a texel is seen, inside the image."""
    model = judge.true_grid if true else judge.grid
    camera = judge.true_camera if true else judge.camera
    assert model is not None
    mode = "zbuffer" if true else judge.mode
    found = flatten(model, theta, images, camera, mode=mode)
    return found.faces, found.mask


def mean_of(
    flat: Float[Array, "v h w c"], mask: Float[Array, "v h w"]
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """The mean of the views in which a texel is seen, and 1 where there is one."""
    weight = jnp.sum(mask, axis=0)
    total = jnp.sum(flat * mask[..., None], axis=0)
    return total / jnp.maximum(weight, 1.0)[..., None], jnp.minimum(weight, 1.0)


def variance(
    values: Float[Array, "v h w c"], mask: Float[Array, "v h w"]
) -> Float[Array, ""]:
    """Over views, where two or more count; mean over places and channels."""
    count = jnp.sum(mask, axis=0)
    mean, _ = mean_of(values, mask)
    square = jnp.sum(jnp.square(values - mean) * mask[..., None], axis=0)
    several = (count >= 2).astype(values.dtype)
    each = jnp.mean(square, axis=-1) / jnp.maximum(count - 1.0, 1.0)
    return jnp.sum(each * several) / jnp.maximum(jnp.sum(several), 1.0)
