"""Points found in an image, against the true ones."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unsup3d_jax.formation.types import AnyArray


def box_size(
    points: Float[AnyArray, "k 2"], counts: Bool[AnyArray, " k"]
) -> Float[Array, ""]:
    """Root of the area of the box around the points that count, pixels.

    0 where fewer than two of them count. The usual yardstick of faces at any yaw, where
    the distance of the eyes is not.
    """
    low = jnp.min(jnp.where(counts[:, None], points, jnp.inf), axis=0)
    high = jnp.max(jnp.where(counts[:, None], points, -jnp.inf), axis=0)
    area = jnp.prod(jnp.maximum(high - low, 0.0))
    return jnp.where(jnp.sum(counts) < 2, 0.0, jnp.sqrt(area))


def mean_error(
    points: Float[AnyArray, "k 2"],
    true_points: Float[AnyArray, "k 2"],
    counts: Bool[AnyArray, " k"],
    size: Float[AnyArray, ""],
) -> Float[Array, ""]:
    """Normalised mean error (NME): mean distance of the points that count, / size.

    NaN where none counts, or `size` is 0: nothing is known of such an image.

    Args:
        points, true_points: pixels; those that do not count may be NaN.
        size: of the face, pixels, such as `box_size`.
    """
    difference = jnp.where(counts[:, None], points - true_points, 0.0)
    distance = jnp.linalg.norm(difference, axis=-1)
    count = jnp.sum(counts)
    known = (count > 0) & (size > 0)
    mean = jnp.sum(distance) / jnp.maximum(count, 1)
    return jnp.where(known, mean / jnp.where(known, size, 1.0), jnp.nan)
