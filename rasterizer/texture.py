"""Texture lookup at fragments."""

from functools import partial

import jax
import jax.numpy as jnp

from .batching import flatten_lead
from .sums import gather_rows


def sample_texture(
    texture: jax.Array,
    uv: jax.Array,
    *,
    filter: str = "linear",
    wrap: str = "clamp",
) -> jax.Array:
    """Values of a texture at (u, v).

    u runs right from 0 to 1 across the texture, v down; the centre of texel (i, j), row
    and column, is at u = (j + 1/2) / width, v = (i + 1/2) / height.

    Gradients: exact with respect to the texture, and summed in a fixed order. With
    respect to uv: that of the bilinear patch, one-sided where two patches meet, 0
    outside a clamped texture; 0 with the nearest texel.

    Args:
        texture: (..., Ht, Wt, C) float; the leading axes broadcast with those of uv.
        uv: (..., H, W, 2) float. A NaN or infinity counts as 0 and gets no gradient.
        filter: "linear" blends the four texels around, "nearest" takes the closest.
        wrap: beyond [0, 1], "clamp" repeats the outermost texels, "repeat" the texture.

    Returns:
        (..., H, W, C).

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or word.
    """
    texture, uv = jnp.asarray(texture), jnp.asarray(uv)
    if texture.ndim < 3 or not jnp.issubdtype(texture.dtype, jnp.floating):
        raise ValueError(
            "texture must be floats (..., Ht, Wt, C), got "
            f"{texture.dtype} {texture.shape}."
        )
    if 0 in texture.shape[-3:-1]:
        raise ValueError(f"texture must hold a texel, got {texture.shape}.")
    if uv.ndim < 3 or uv.shape[-1] != 2 or not jnp.issubdtype(uv.dtype, jnp.floating):
        raise ValueError(
            f"uv must be floats (..., H, W, 2), got {uv.dtype} {uv.shape}."
        )
    if filter not in ("linear", "nearest"):
        raise ValueError(f'filter must be "linear" or "nearest", got {filter!r}.')
    if wrap not in ("clamp", "repeat"):
        raise ValueError(f'wrap must be "clamp" or "repeat", got {wrap!r}.')
    try:
        lead = jnp.broadcast_shapes(texture.shape[:-3], uv.shape[:-3])
    except ValueError as error:
        raise ValueError(
            f"leading axes of texture {texture.shape} and uv {uv.shape} do not "
            "broadcast."
        ) from error
    return _sample(texture, uv, lead, filter, wrap)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _sample(texture, uv, lead, filter, wrap):
    texture = jnp.broadcast_to(texture, (*lead, *texture.shape[-3:]))
    uv = jnp.broadcast_to(uv, (*lead, *uv.shape[-3:]))
    height, width, channels = texture.shape[-3:]
    pixels = uv.shape[-3:-1]
    batch = flatten_lead(texture, 3).shape[0]
    texels = texture.reshape(batch, height * width, channels)
    spots = uv.reshape(batch, pixels[0] * pixels[1], 2)
    spots = jnp.where(jnp.isfinite(spots), spots, 0.0)

    def along(coordinate, size):
        """The two texels around, and how far towards the second one."""
        if wrap == "repeat":
            coordinate = coordinate - jnp.floor(coordinate)
        else:
            coordinate = jnp.clip(coordinate, 0.0, 1.0)
        place = coordinate * size - 0.5
        low = jnp.floor(jax.lax.stop_gradient(place))
        first = low.astype(jnp.int32)
        ends = first, first + 1
        if wrap == "repeat":
            return *(jnp.mod(i, size) for i in ends), place - low
        return *(jnp.clip(i, 0, size - 1) for i in ends), place - low

    left, right, x = along(spots[..., 0], width)
    top, bottom, y = along(spots[..., 1], height)
    if filter == "nearest":
        column, row = jnp.where(x < 0.5, left, right), jnp.where(y < 0.5, top, bottom)
        found = gather_rows(texels, row * width + column)
    else:
        x, y = x[..., None].astype(texels.dtype), y[..., None].astype(texels.dtype)
        corners = [
            gather_rows(texels, row * width + column)
            for row in (top, bottom)
            for column in (left, right)
        ]
        upper = corners[0] * (1 - x) + corners[1] * x
        lower = corners[2] * (1 - x) + corners[3] * x
        found = upper * (1 - y) + lower * y
    return found.reshape(*lead, *pixels, channels)
