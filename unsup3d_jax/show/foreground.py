"""Which part of a depth map is the object: the rest is not drawn as a surface.

A depth map has a depth everywhere, also where the photo shows background. There the
surface runs out to the border, as an apron; in corners that no photo explains it
rises in spikes.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float
from scipy import ndimage

from unsup3d_jax.formation.types import AnyArray, Leaf

# A share of the object's height above the border: what is lower is background.
_LOW = 0.1
# Of all pixels: with less than this left, the rule has found nothing to go by.
_LEAST_SHARE = 0.1

_WINDOW = [(v, u) for v in range(3) for u in range(3)]  # a pixel is number 4
_ITSELF = 4


@struct.dataclass
class Part:
    """The part of a depth map that is drawn as a surface.

    Its outline runs between the pixels: those just outside of it are drawn where it
    passes, by weights of the pixels around them.

    Attributes:
        weights: of each pixel's 3 x 3 neighbours, row by row; they sum to 1.
        cells: the squares between four pixels that are drawn.
    """

    weights: Float[Leaf, "9 h w"]
    cells: Bool[Leaf, "h-1 w-1"]

    def vertices(self) -> Bool[np.ndarray, "h w"]:
        """Pixels that are a corner of what is drawn."""
        cells = np.pad(np.asarray(self.cells), 1)
        return cells[:-1, :-1] | cells[:-1, 1:] | cells[1:, :-1] | cells[1:, 1:]

    def place(self, maps: Float[AnyArray, "h w c"]) -> Float[AnyArray, "h w c"]:
        """Maps at the places where the pixels are drawn.

        By numpy where all is numpy's: for one photo that is quicker.
        """
        h, w, _ = maps.shape
        around = ((1, 1), (1, 1), (0, 0))
        if isinstance(maps, np.ndarray) and isinstance(self.weights, np.ndarray):
            padded = np.pad(maps.astype(np.float32, copy=False), around)
        else:
            padded = jnp.pad(jnp.asarray(maps), around)
        parts = [
            self.weights[k][..., None] * padded[v : v + h, u : u + w]
            for k, (v, u) in enumerate(_WINDOW)
        ]
        return sum(parts[1:], start=parts[0])


def whole(depth: Float[AnyArray, "h w"], *, border_columns: int) -> Part:
    """All but the clamped border."""
    h, w = depth.shape
    cells = np.zeros((h - 1, w - 1), bool)
    cells[:, border_columns : w - 1 - border_columns] = True
    weights = np.zeros((9, h, w), np.float32)
    weights[_ITSELF] = 1.0
    return _on_host(weights, cells)


def object_part(
    depth: Float[AnyArray, "h w"],
    *,
    border_columns: int,
    border_depth: float,
) -> Part:
    """The part that belongs to the object.

    There is no mask to go by, only what the model says itself. Training ties the outer
    columns to the border's depth, and what is no object ends up as a plane as far.
    Background is what hangs together with the outline of the map by pixels that stand
    out from that plane by less than a tenth of what the object does. Of what remains
    the largest piece is the object, without what hangs on to it by a thread of less
    than three pixels. A deep place inside of it stays: a mouth does not reach the
    outline.

    Args:
        depth: canonical, scene units.
        border_columns: at each side, clamped and never part of the object.
        border_depth: depth of the border, scene units.

    Returns:
        All but the border, if there is none, to which no background is tied then, or
        if the rule leaves next to nothing.
    """
    depth = np.asarray(depth, np.float64)
    inside = whole(depth, border_columns=border_columns).vertices()
    inside[[0, -1]] = False  # without a normal of their own, they would shine
    # Positive on the object. Not of the highest pixel, which may be a spike.
    height = border_depth - depth
    level = height - _LOW * np.quantile(height[inside], 0.95)
    found = _largest_piece(~inside | (level < 0.0))
    if border_columns == 0 or found.sum() < _LEAST_SHARE * inside.sum():
        return whole(depth, border_columns=border_columns)
    return _part(found, level)


def _largest_piece(candidates: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest of what is left when the candidates at the outline are taken away."""
    outline = np.ones_like(candidates)
    outline[1:-1, 1:-1] = False
    background = np.asarray(
        ndimage.binary_propagation(outline & candidates, mask=candidates), bool
    )
    # Beyond the picture's edge the object goes on: it is thin nowhere there.
    rest = np.pad(~background, 1, mode="edge")
    opened = np.asarray(ndimage.binary_opening(rest, np.ones((3, 3))), bool)
    # A round outline has places of two pixels; it gets them back.
    rest = (rest & ndimage.binary_dilation(opened))[1:-1, 1:-1]
    labels: Any = ndimage.label(rest)
    pieces, count = labels
    if count == 0:
        return rest
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def _part(found: Bool[np.ndarray, "h w"], level: Float[np.ndarray, "h w"]) -> Part:
    """What is drawn of an object whose pixels are found.

    Pixels beside it are drawn where the level is 0, on the way to each neighbour that
    is the object's; of several the mean. Without this the edge would be a staircase,
    whose steps are long where it is steep.
    """
    h, w = found.shape
    on, levels = np.pad(found, 1), np.pad(level, 1)
    weights, count = np.zeros((9, h, w)), np.zeros((h, w))
    for k, (v, u) in enumerate(_WINDOW):
        rise = levels[v : v + h, u : u + w] - level
        crosses = ~found & on[v : v + h, u : u + w] & (level < 0) & (rise > -level)
        weights[k] = np.where(crosses, -level / np.where(crosses, rise, 1.0), 0.0)
        count += crosses
    weights /= np.maximum(count, 1.0)
    weights[_ITSELF] = 1.0 - weights.sum(0)
    # What is no object for another reason than its level ends at the object's pixels.
    placed = found | (count > 0)
    cells = np.logical_or.reduce(_corners(found))
    cells &= np.logical_and.reduce(_corners(placed))
    return _on_host(weights.astype(np.float32), cells)


def _on_host(weights: Any, cells: Any) -> Part:
    """A part of numpy's, for `Part.place`; type checkers know fields of JAX's alone."""
    return Part(weights, cells)


def _corners(pixels: Bool[np.ndarray, "h w"]) -> list[np.ndarray]:
    """Of the square to the right of and below each pixel."""
    return [pixels[:-1, :-1], pixels[:-1, 1:], pixels[1:, :-1], pixels[1:, 1:]]
