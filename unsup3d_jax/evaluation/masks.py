"""Which pixels are scored, and means over them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unsup3d_jax.formation.types import AnyArray, Batch


def erode(mask: Bool[AnyArray, "h w"]) -> Bool[Array, "h w"]:
    """Keeps the pixels whose 3 x 3 neighbourhood lies in the mask.

    Outside the image counts as outside the mask, so border pixels never stay
    (the authors' code: 3 x 3 average with zero padding > 0.99).
    """
    h, w = mask.shape
    padded = jnp.pad(mask, 1)
    kept = jnp.asarray(mask)
    for dv in range(3):
        for du in range(3):
            kept = kept & padded[dv : dv + h, du : du + w]
    return kept


def scored_mask(
    depth: Float[AnyArray, "h w"],
    true_depth: Float[AnyArray, "h w"],
    mask: Bool[AnyArray, "h w"],
    true_mask: Bool[AnyArray, "h w"],
) -> Bool[Array, "h w"]:
    """Pixels that count: both masks, each eroded by one pixel.

    A depth that is not a finite positive number is outside its mask: it lowers
    the coverage instead of turning the score into NaN.
    """
    return erode(mask & has_depth(depth)) & erode(true_mask & has_depth(true_depth))


def has_depth(depth: Float[AnyArray, "*n"]) -> Bool[Array, "*n"]:
    """Where a depth is a finite positive number."""
    depth = jnp.asarray(depth)
    return jnp.isfinite(depth) & (depth > 0.0)


def object_mask(batch: Batch) -> Bool[AnyArray, "b h w"]:
    """The data set's mask, or else what is nearer than the background.

    The authors' rule for the latter takes the farthest depth of the whole
    batch as background.

    Args:
        batch: with true depth.
    """
    if batch.mask is not None:
        return batch.mask
    return batch.depth < jnp.max(batch.depth)  # pyright: ignore


def masked_mean(
    values: Float[AnyArray, "h w"], mask: Bool[AnyArray, "h w"]
) -> Float[Array, ""]:
    """Mean over the mask, 0 where the mask is empty; ignores NaN outside it."""
    count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)
