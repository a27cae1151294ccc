"""Pictures of one size side by side: every contact sheet and panel is made here."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from unsup3d_jax.formation.types import AnyArray

GAP = 2  # pixels around each picture
BACKGROUND = 28  # grey level between them


def to_bytes(picture: Float[AnyArray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Colours in [0, 1] to 8 bits, rounded; clipped; NaN is black."""
    finite = np.nan_to_num(np.asarray(picture, np.float32), nan=0.0)
    return np.round(np.clip(finite, 0.0, 1.0) * 255.0).astype(np.uint8)


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
    shape = (rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3)
    sheet = np.full(shape, BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        top = GAP + (i // columns) * (h + GAP)
        left = GAP + (i % columns) * (w + GAP)
        sheet[top : top + h, left : left + w] = tile
    return sheet
