"""Pictures of what the model sees: factors, reconstructions, turned views.

Arrays become colours here and nowhere else. The model runs once, jitted; the
rest is numpy and PIL on the host.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import Factors, Reconstruction
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions

TURNS_DEG = (-40, -20, 20, 40)  # with the unturned image in the middle

# Pictures are made on the host, of arrays from either side.
AnyArray = Array | np.ndarray

_CELL = 96  # pixels: smaller maps are enlarged by a whole factor to at least this
_GAP = 2
_HEADER = 18  # of one line of names
_LINE = 14  # of each more
_BACKGROUND = 28  # grey level between the cells
_INK = 225
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_bytes(picture: Float[AnyArray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Colours in [0, 1] to 8 bits, rounded; clipped; NaN is black."""
    finite = np.nan_to_num(np.asarray(picture, np.float32), nan=0.0)
    return np.round(np.clip(finite, 0.0, 1.0) * 255.0).astype(np.uint8)


def _grey_to_rgb(picture: AnyArray) -> np.ndarray:
    return np.repeat(np.asarray(picture)[..., None], 3, axis=-1)


def depth_picture(
    depth: Float[AnyArray, "*b h w"], *, near: float, far: float
) -> Float[np.ndarray, "*b h w 3"]:
    """Grey, near = bright: 1 at `near`, 0 at `far`, on a fixed scale."""
    return _grey_to_rgb(np.clip((far - np.asarray(depth)) / (far - near), 0.0, 1.0))


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
    return _grey_to_rgb(1.0 / (1.0 + np.asarray(conf_sigma)))


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


def panel(
    params: dict,
    images: Float[Array, "b h w 3"],
    options: ModelOptions,
    *,
    view_range: Float[Array, ""] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """One row per image: input, reconstructions, every factor, turned views.

    Args:
        params: of `model.init_params`.
        images: in [0, 1], of the model's size.
        options: static.
        view_range: see `model.decompose`.

    Returns:
        The picture, with a header that names the columns.
    """
    factors, reconstruction, turned = _maps(
        params, jnp.asarray(images), options, view_range
    )
    return _paint(factors, reconstruction, turned, images, options)


def panel_of_factors(
    factors: Factors,
    images: Float[Array, "b h w 3"],
    options: ModelOptions,
) -> UInt8[np.ndarray, "H W 3"]:
    """`panel` for factors that are already known, whatever made them."""
    reconstruction, turned = _maps_of_factors(factors, options)
    return _paint(factors, reconstruction, turned, images, options)


@functools.partial(jax.jit, static_argnames="options")
def _maps(
    params: dict,
    images: Array,
    options: ModelOptions,
    view_range: Array | None,
):
    factors = model.decompose(params, images, options, view_range=view_range)
    return factors, *_maps_of_factors(factors, options)


@functools.partial(jax.jit, static_argnames="options")
def _maps_of_factors(factors: Factors, options: ModelOptions):
    reconstruction = model.reconstruct(factors, options)
    turned = turned_views(
        reconstruction.canonical.image,
        factors.canon_depth,
        options.scene,
        yaws_deg=TURNS_DEG,
    )
    return reconstruction, turned


def _paint(
    factors: Factors,
    reconstruction: Reconstruction,
    turned: tuple[Array, Array],
    images: Array,
    options: ModelOptions,
) -> UInt8[np.ndarray, "H W 3"]:
    factors, reconstruction, turned = jax.device_get((factors, reconstruction, turned))
    scene, canonical = options.scene, reconstruction.canonical
    plain, flip = reconstruction.plain, reconstruction.flip
    columns = {
        "input": np.asarray(images),
        "reconstruction": masked_picture(plain.image, plain.valid),
        "flipped": masked_picture(flip.image, flip.valid),
        "depth": depth_picture(
            factors.canon_depth, near=scene.depth_min, far=scene.depth_max
        ),
        "normal": normal_picture(canonical.normal),
        "albedo": factors.canon_albedo,
        "shading": _grey_to_rgb(canonical.shading),
    }
    if factors.conf_sigma is not None and factors.conf_sigma_flip is not None:
        columns["confidence"] = confidence_picture(factors.conf_sigma)
        columns["conf. flipped"] = confidence_picture(factors.conf_sigma_flip)
    seen = [masked_picture(*pair) for pair in zip(*turned, strict=True)]
    for degrees, picture in zip(TURNS_DEG, seen, strict=True):
        if degrees > 0:
            columns.setdefault("canonical", canonical.image)
        columns[f"yaw {degrees:+d}°"] = picture
    return labelled_rows(columns)


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
    header = Image.new("RGB", size, (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(header)
    step = scale * width + _GAP
    for i, name in enumerate(names):
        middle = (_GAP + i * step + scale * width / 2, size[1] / 2)
        draw.multiline_text(
            middle, name, (_INK,) * 3, font, anchor="mm", spacing=2, align="center"
        )
    return np.concatenate([np.asarray(header), sheet])


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


def grid_of_images(
    images: Sequence[AnyArray] | AnyArray,
    *,
    columns: int | None = None,
    scale: int = 1,
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles pictures of one size, row by row, on a dark ground.

    Args:
        images: each (h, w, 3), uint8, or floats in [0, 1].
        columns: pictures in a row; None: about square.
        scale: whole factor by which pixels are repeated.

    Raises:
        ValueError: if there are no images.
    """
    if len(images) == 0:
        raise ValueError("grid_of_images needs at least one image.")
    tiles = [i if i.dtype == np.uint8 else to_bytes(i) for i in map(np.asarray, images)]
    tiles = [t.repeat(scale, axis=0).repeat(scale, axis=1) for t in tiles]
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    h, w = tiles[0].shape[:2]
    shape = (rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, 3)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top = _GAP + (i // columns) * (h + _GAP)
        left = _GAP + (i % columns) * (w + _GAP)
        sheet[top : top + h, left : left + w] = tile
    return sheet
