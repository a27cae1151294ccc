"""Bilinear sampling of images at pixel coordinates."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sample_bilinear(
    images: Float[Array, "b h w c"], coordinates: Float[Array, "b m n 2"]
) -> Float[Array, "b m n c"]:
    """Samples each image at its own grid of positions, zero outside.

    Integers are pixel centres ("align corners" of other libraries); a
    neighbour outside the image counts as zero. Differentiable in both
    arguments; at integer positions the derivative with respect to the
    position is that of the cell to the right and below.

    Args:
        images: any range.
        coordinates: (u, v) in pixels of `images`.

    Returns:
        Sampled values. Positions that are not finite sample zero.

    Raises:
        ValueError: if the batch sizes differ.
    """
    b, h, w, c = images.shape
    if coordinates.shape[0] != b or coordinates.shape[-1] != 2:
        raise ValueError(
            f"need coordinates of shape ({b}, m, n, 2), got {coordinates.shape}."
        )
    # Two pixels beyond the border every weight is zero; clipping there keeps
    # the integer conversion defined for any float.
    u = jnp.nan_to_num(coordinates[..., 0], nan=-2.0)
    v = jnp.nan_to_num(coordinates[..., 1], nan=-2.0)
    u = jnp.clip(u, -2.0, w + 1.0)
    v = jnp.clip(v, -2.0, h + 1.0)
    u0, v0 = jnp.floor(u), jnp.floor(v)
    fu, fv = u - u0, v - v0
    u0, v0 = u0.astype(jnp.int32), v0.astype(jnp.int32)

    # One flat gather of rows: several times faster on CPU than a batched one.
    flat = jnp.asarray(images).reshape(b * h * w, c)
    base = (jnp.arange(b, dtype=jnp.int32) * (h * w)).reshape(b, 1, 1)
    total = jnp.zeros((*u.shape, c), images.dtype)
    for dv, weight_v in ((0, 1.0 - fv), (1, fv)):
        for du, weight_u in ((0, 1.0 - fu), (1, fu)):
            uu, vv = u0 + du, v0 + dv
            inside = (uu >= 0) & (uu < w) & (vv >= 0) & (vv < h)
            index = base + jnp.clip(vv, 0, h - 1) * w + jnp.clip(uu, 0, w - 1)
            value = flat.at[index].get(mode="promise_in_bounds")
            weight = jnp.where(inside, weight_u * weight_v, 0.0)
            total = total + value * weight[..., None]
    return total
