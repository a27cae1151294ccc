"""Texture lookup at fragments, with or without a pyramid of smaller textures.

A lookup that looks at four texels skips most of a texture that is seen from afar.
Williams, Pyramidal Parametrics, SIGGRAPH 1983: keep means over ever larger areas, look
up where texels are about as large as the pixel, and mix the two nearest sizes. With the
slopes of uv along x and y on the screen, in texels of the full texture,

    p_x = (W du/dx, H dv/dx),    p_y = (W du/dy, H dv/dy),

the footprint of a pixel is about as long as the longer of the two, and

    level = log2 max(|p_x|, |p_y|)                  clamped to what there is.

A surface seen at a slant has a long, narrow footprint. With `taps` = n > 1 the lookup
is the mean of n of them, spread evenly along the longer slope p, of a level that may be
smaller (after the extension EXT_texture_filter_anisotropic of OpenGL, but with smooth
rules): with lengths l >= s of the two,

    r = max(s, l / n),    level = log2 r,
    taps at uv + ((k + 1/2) / n - 1/2) (1 - r / l) p,    k = 0 to n - 1.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .batching import flatten_lead
from .sums import gather_rows


def mip_pyramid(texture: jax.Array) -> tuple[jax.Array, ...]:
    """A texture and ever smaller copies of it, each the mean of the one before.

    A side of n texels becomes one of max(1, n // 2). Every texel is the mean over its
    own area, exactly, for odd sides too; so all levels have the same mean.

    Args:
        texture: (..., Ht, Wt, C) float.

    Returns:
        (..., Ht, Wt, C), (..., Ht // 2, Wt // 2, C) and so on to (..., 1, 1, C).

    Raises:
        ValueError: for another shape or dtype.
    """
    levels = [_check_texture(jnp.asarray(texture))]
    while max(levels[-1].shape[-3:-1]) > 1:
        levels.append(_halve(_halve(levels[-1], -3), -2))
    return tuple(levels)


def _halve(values, axis: int):
    """Means over areas twice as long along an axis, or 2 + 1 / m for 2 m + 1 values."""
    count = values.shape[axis]
    if count == 1:
        return values
    half = count // 2
    first, second, third = (
        jax.lax.slice_in_dim(values, k, k + 2 * half - 1, 2, axis=axis)
        for k in (0, 1, count % 2 + 1)
    )
    if count % 2 == 0:
        return 0.5 * (first + second)
    # Area i reaches from i (2 m + 1) / m to (i + 1) (2 m + 1) / m.
    i = np.arange(half).reshape(-1, *(1,) * (-axis - 1))
    a, b, c = (jnp.asarray(v / count, values.dtype) for v in (half - i, half, i + 1))
    return a * first + b * second + c * third


def _check_texture(texture) -> jax.Array:
    if texture.ndim < 3 or not jnp.issubdtype(texture.dtype, jnp.floating):
        raise ValueError(
            "texture must be floats (..., Ht, Wt, C), got "
            f"{texture.dtype} {texture.shape}."
        )
    if 0 in texture.shape[-3:-1]:
        raise ValueError(f"texture must hold a texel, got {texture.shape}.")
    return texture


def sample_texture(
    texture: jax.Array | Sequence[jax.Array],
    uv: jax.Array,
    *,
    filter: str = "linear",
    wrap: str = "clamp",
    slopes: jax.Array | None = None,
    taps: int = 1,
) -> jax.Array:
    """Values of a texture at (u, v).

    u runs right from 0 to 1 across the texture, v down; the centre of texel (i, j), row
    and column, is at u = (j + 1/2) / width, v = (i + 1/2) / height.

    Gradients: exact with respect to the texture, and summed in a fixed order. With
    respect to uv: that of the bilinear patch, one-sided where two patches meet, 0
    outside a clamped texture; 0 with the nearest texel. With slopes also exact with
    respect to every level and to the slopes; one-sided where the level is clamped or
    the longer slope changes.

    Args:
        texture: (..., Ht, Wt, C) float; the leading axes broadcast with those of uv. Or
            a pyramid of them, as `mip_pyramid` makes, to look up with slopes.
        uv: (..., H, W, 2) float. A NaN or infinity counts as 0 and gets no gradient.
        filter: "linear" blends the four texels around, "nearest" takes the closest.
        wrap: beyond [0, 1], "clamp" repeats the outermost texels, "repeat" the texture.
        slopes: (..., H, W, 2, 2) how u and v change a pixel, the last axis along x and
            y, as of `slopes_at`. With them the texture's pyramid is looked up, and two
            levels are mixed; "nearest" takes the closest texel of either. NaN or
            infinity counts as 0.
        taps: lookups along a long footprint, whose mean is taken; at least 1; static.

    Returns:
        (..., H, W, C).

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or word.
    """
    several = isinstance(texture, (tuple, list))
    levels = [
        _check_texture(jnp.asarray(t)) for t in (texture if several else [texture])
    ]
    if not levels:
        raise ValueError("a pyramid needs a texture, got none.")
    if several and slopes is None:
        raise ValueError("a pyramid of textures is looked up with slopes, got none.")
    uv = jnp.asarray(uv)
    if uv.ndim < 3 or uv.shape[-1] != 2 or not jnp.issubdtype(uv.dtype, jnp.floating):
        raise ValueError(
            f"uv must be floats (..., H, W, 2), got {uv.dtype} {uv.shape}."
        )
    if filter not in ("linear", "nearest"):
        raise ValueError(f'filter must be "linear" or "nearest", got {filter!r}.')
    if wrap not in ("clamp", "repeat"):
        raise ValueError(f'wrap must be "clamp" or "repeat", got {wrap!r}.')
    if int(taps) != taps or taps < 1:
        raise ValueError(f"taps must be an integer >= 1, got {taps!r}.")
    shapes = [t.shape[:-3] for t in levels] + [uv.shape[:-3]]
    if slopes is None:
        if taps != 1:
            raise ValueError(f"several taps need slopes, got {taps=}.")
    else:
        slopes = jnp.asarray(slopes)
        if slopes.shape[-4:] != (*uv.shape[-3:], 2):
            raise ValueError(
                f"slopes must be (..., H, W, 2, 2) with uv {uv.shape}, got "
                f"{slopes.shape}."
            )
        shapes.append(slopes.shape[:-4])
        if not several:
            levels = mip_pyramid(levels[0])
        if len({(t.shape[-1], t.dtype) for t in levels}) > 1:
            raise ValueError("the textures of a pyramid differ in channels or dtype.")
    try:
        lead = jnp.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ValueError(
            f"leading axes of texture {levels[0].shape} and uv {uv.shape} do not "
            "broadcast."
        ) from error
    if slopes is None:
        return _sample(levels[0], uv, lead, filter, wrap)
    return _sample_pyramid(tuple(levels), uv, slopes, lead, filter, wrap, int(taps))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _sample(texture, uv, lead, filter, wrap):
    texture = jnp.broadcast_to(texture, (*lead, *texture.shape[-3:]))
    uv = jnp.broadcast_to(uv, (*lead, *uv.shape[-3:]))
    height, width, channels = texture.shape[-3:]
    texels = flatten_lead(texture, 3)
    texels = texels.reshape(texels.shape[0], height * width, channels)
    found = _look_up(texels, _spots(uv), height, width, 0, filter, wrap)
    return found.reshape(*uv.shape[:-1], channels)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _sample_pyramid(levels, uv, slopes, lead, filter, wrap, taps: int):
    heights, widths = np.array([t.shape[-3:-1] for t in levels], np.int32).T
    channels = levels[0].shape[-1]
    # All texels of all levels in one table, so that a pixel reads from two levels only.
    tables = [jnp.broadcast_to(t, (*lead, *t.shape[-3:])) for t in levels]
    batch = flatten_lead(tables[0], 3).shape[0]
    tables = [
        t.reshape(batch, h * w, channels)
        for t, h, w in zip(tables, heights, widths, strict=True)
    ]
    texels = jnp.concatenate(tables, axis=1)
    starts = np.concatenate([[0], np.cumsum(heights * widths)[:-1]]).astype(np.int32)
    uv = jnp.broadcast_to(uv, (*lead, *uv.shape[-3:]))
    slopes = jnp.broadcast_to(slopes, (*lead, *slopes.shape[-4:]))
    slopes = slopes.reshape(batch, uv.shape[-3] * uv.shape[-2], 2, 2).astype(uv.dtype)
    # A million textures a pixel: squares of that are still numbers.
    slopes = jnp.clip(jnp.where(jnp.isfinite(slopes), slopes, 0.0), -1e6, 1e6)
    spots = _spots(uv)
    level, spread = _footprint(slopes, heights[0], widths[0], taps)
    level = jnp.clip(level, 0.0, len(levels) - 1)
    low = jnp.clip(jnp.floor(jax.lax.stop_gradient(level)), 0, max(len(levels) - 2, 0))
    share = (level - low)[..., None].astype(texels.dtype)

    def at(number, spots):
        height, width, start = (
            jnp.asarray(v)[number] for v in (heights, widths, starts)
        )
        return _look_up(texels, spots, height, width, start, filter, wrap)

    first = low.astype(jnp.int32)
    second = jnp.minimum(first + 1, len(levels) - 1)

    found = jnp.zeros((), texels.dtype)
    for place in ((np.arange(taps) + 0.5) / taps - 0.5).astype(uv.dtype):
        here = spots + place * spread
        found += at(first, here) * (1 - share) + at(second, here) * share
    return (found / taps).reshape(*uv.shape[:-1], channels)


def _footprint(slopes, height, width, taps: int):
    """The level, and where taps from -1/2 to 1/2 lie from the middle, in u and v.

    Args:
        slopes: (B, N, 2, 2) finite.
    """
    size = jnp.asarray([width, height], slopes.dtype)[:, None]
    along_x, along_y = (jnp.sum((slopes * size) ** 2, axis=-2)[..., k] for k in (0, 1))
    # Half a texel at least, which is level -1: below 0 it no longer matters.
    longer = jnp.maximum(jnp.maximum(along_x, along_y), 0.25)
    if taps == 1:
        return 0.5 * jnp.log2(longer), jnp.zeros_like(slopes[..., 0])
    shorter = jnp.minimum(along_x, along_y)
    reach = jnp.maximum(jnp.maximum(shorter, longer / taps**2), 0.25)
    rest = 1.0 - jnp.sqrt(jnp.minimum(reach / longer, 1.0))
    way = jnp.where((along_x >= along_y)[..., None], slopes[..., 0], slopes[..., 1])
    return 0.5 * jnp.log2(reach), rest[..., None] * way


def _spots(uv):
    """(..., H, W, 2) to (B, H W, 2), finite."""
    flat = flatten_lead(uv, 3)
    flat = flat.reshape(flat.shape[0], uv.shape[-3] * uv.shape[-2], 2)
    return jnp.where(jnp.isfinite(flat), flat, 0.0)


def _look_up(texels, spots, height, width, start, filter, wrap):
    """Texels (B, T, C) at (u, v) (B, N, 2) of textures that begin at `start` in T.

    Args:
        height, width, start: of the texture, numbers or (B, N) int32.
    """

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
        return gather_rows(texels, start + row * width + column)
    x, y = x[..., None].astype(texels.dtype), y[..., None].astype(texels.dtype)
    corners = [
        gather_rows(texels, start + row * width + column)
        for row in (top, bottom)
        for column in (left, right)
    ]
    upper = corners[0] * (1 - x) + corners[1] * x
    lower = corners[2] * (1 - x) + corners[3] * x
    return upper * (1 - y) + lower * y
