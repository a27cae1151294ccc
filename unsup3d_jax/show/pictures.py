"""Arrays to colours, here and nowhere else; pictures in rows with names above them.

All but the warp of `turned_views` is numpy and PIL on the host.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from unsup3d_jax.data.tiles import BACKGROUND, GAP, grid_of_images, to_bytes
from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import AnyArray

_CELL = 96  # pixels: smaller maps are enlarged by a whole factor to at least this
_HEADER = 18  # of one line of names
_LINE = 14  # of each more
_STRIP = 8  # of the colours of a scale
_INK = 225
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def grey_picture(values: Float[AnyArray, "*b h w"]) -> Float[np.ndarray, "*b h w 3"]:
    """One channel thrice; nothing is scaled."""
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1)


def depth_picture(
    depth: Float[AnyArray, "*b h w"], *, near: float, far: float
) -> Float[np.ndarray, "*b h w 3"]:
    """Grey, near = bright: 1 at `near`, 0 at `far`, on a fixed scale."""
    return grey_picture(np.clip((far - np.asarray(depth)) / (far - near), 0.0, 1.0))


def normal_picture(
    normal: Float[AnyArray, "*b h w 3"],
) -> Float[np.ndarray, "*b h w 3"]:
    """The usual colours of a normal map: facing the viewer is light blue.

    Those show the outward normal with x right, y up, z to the viewer. Ours
    points into the object with y down and z away: x changes sign, y and z twice.
    """
    return np.asarray(normal) * np.array([-0.5, 0.5, 0.5]) + 0.5


def confidence_picture(
    conf_sigma: Float[AnyArray, "*b h w"],
) -> Float[np.ndarray, "*b h w 3"]:
    """1 / (1 + sigma): bright where the model trusts its reconstruction."""
    return grey_picture(1.0 / (1.0 + np.asarray(conf_sigma)))


def masked_picture(
    image: Float[AnyArray, "*b h w 3"], valid: AnyArray
) -> Float[np.ndarray, "*b h w 3"]:
    """The image where it is valid, black elsewhere."""
    return np.where(np.asarray(valid)[..., None], np.asarray(image), 0.0)


def turned_views(
    image: Float[Array, "b h w 3"],
    depth: Float[Array, "b h w"],
    scene: reprojection.Scene,
    *,
    yaws_deg: Sequence[float],
) -> tuple[Float[Array, "t b h w 3"], Array]:
    """The canonical object turned about the vertical axis.

    Args:
        image: canonical, [0, 1].
        depth: canonical, scene units.
        scene: camera.
        yaws_deg: +: the near side moves to the left of the picture.

    Returns:
        Images, and (t, b, h, w) where the object covers the pixel.
    """
    turns, b = len(yaws_deg), depth.shape[0]
    yaw = jnp.repeat(jnp.radians(jnp.asarray(yaws_deg, depth.dtype)), b)
    view = jnp.zeros((turns * b, 6), depth.dtype).at[:, 1].set(yaw)
    warped = reprojection.reproject(
        jnp.tile(image, (turns, 1, 1, 1)), jnp.tile(depth, (turns, 1, 1)), view, scene
    )
    shape = (turns, *depth.shape)
    return warped.image.reshape(*shape, 3), warped.valid.reshape(shape)


def labelled_rows(
    columns: Mapping[str, Float[AnyArray, "b h w 3"]],
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws columns of equally large pictures in [0, 1] under their names.

    Names that are wider than a column are broken between words.
    """
    cells = np.stack([to_bytes(c) for c in columns.values()], axis=1)
    rows, count, height, width = cells.shape[:4]
    scale = max(1, -(-_CELL // width))
    sheet = grid_of_images(
        cells.reshape(rows * count, height, width, 3), columns=count, scale=scale
    )
    font = ImageFont.load_default(size=12)
    names = [_broken(name, font, scale * width) for name in columns]
    lines = max(name.count("\n") for name in names)
    size = (sheet.shape[1], _HEADER + lines * _LINE)
    header = Image.new("RGB", size, (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(header)
    step = scale * width + GAP
    for i, name in enumerate(names):
        middle = (GAP + i * step + scale * width / 2, size[1] / 2)
        draw.multiline_text(
            middle, name, (_INK,) * 3, font, anchor="mm", spacing=2, align="center"
        )
    return np.concatenate([np.asarray(header), sheet])


def scale_bar(
    colours: Float[np.ndarray, "w 3"], words: tuple[str, str, str]
) -> UInt8[np.ndarray, "H w 3"]:
    """A strip of colours with its meaning below, to put under a picture as wide.

    Args:
        colours: from the scale's start to its end, [0, 1].
        words: for the start, the end, and what is measured, between them; broken into
            lines where they are too long.
    """
    width = len(colours)
    font = ImageFont.load_default(size=12)
    start, end, middle = words
    room = width - round(font.getlength(start) + font.getlength(end)) - 4 * GAP
    middle = _broken(middle, font, room)
    height = _HEADER + middle.count("\n") * _LINE
    below = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(below)
    for x, anchor, text in (
        (GAP, "la", start),
        (width - GAP, "ra", end),
        (width / 2, "ma", middle),
    ):
        draw.multiline_text(
            (x, GAP), text, (_INK,) * 3, font, anchor=anchor, spacing=2, align="center"
        )
    strip = np.repeat(to_bytes(colours)[None], _STRIP, axis=0)
    return np.concatenate([strip, np.asarray(below)])


def _broken(text: str, font: _Font, width: int) -> str:
    """The text in lines of at most `width` pixels, as far as words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else ""
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
