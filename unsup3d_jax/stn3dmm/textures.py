"""Flattened faces as textures: several averaged, one completed, drawn from any side.

A flattened face is what Bas et al., ICCVW 2017, sample at the vertices of a posed
model: a picture in the model's UV space, row 0 at the forehead, whose mirror image is
its columns reversed. Of one photo, half of it may be hidden.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

import unsup3d_jax.rasterizer as rasterizer
from unsup3d_jax.formation.sampling import sample_bilinear
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.stn3dmm import layers
from unsup3d_jax.stn3dmm.layers import Camera, Theta
from unsup3d_jax.stn3dmm.morphable import GridModel
from unsup3d_jax.stn3dmm.visibility import depth_of

# Where a texel of a completed texture comes from.
SEEN, MIRRORED, GUESSED = 0, 1, 2
# Of a side: over which seen texels give way to mirrored ones; how far from what is
# hidden a texel must lie to be free of background; and how far light is the same.
_SEAM, _FRINGE, _LIGHT = 0.03, 0.015, 0.04
_MOST_GAIN = 2.0  # of the light of one half over that of the other
_SAMPLES = 2  # a side and pixel, of what is drawn


class Completed(NamedTuple):
    """A texture without holes.

    Attributes:
        texture: [0, 1].
        source: of each texel: SEEN in the photo, or sampled there in a hole narrower
            than 3 % of a side, such as a nostril; MIRRORED, taken from the other half
            of the face; GUESSED, seen in neither half and copied from the nearest
            texel that was.
    """

    texture: Float[np.ndarray, "g g 3"]
    source: Int[np.ndarray, "g g"]


class MeanFlattened:
    """The mean of flattened faces that come one by one; holds two sums.

    Attributes:
        count: faces so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._total, self._weight = np.zeros((1, 1, 3)), np.zeros((1, 1))

    def add(self, face: Float[AnyArray, "g g 3"], seen: Float[AnyArray, "g g"]) -> None:
        """Another flattened face and its visibility in [0, 1], the weight."""
        seen = np.asarray(seen, np.float64)
        self._total = self._total + np.asarray(face, np.float64) * seen[..., None]
        self._weight = self._weight + seen
        self.count += 1

    def result(self) -> tuple[Float[np.ndarray, "g g 3"], Float[np.ndarray, "g g"]]:
        """As `mean_flattened`.

        Raises:
            ValueError: if there was none.
        """
        if not self.count:
            raise ValueError("a mean needs at least one flattened face.")
        mean = self._total / np.where(self._weight > 0.0, self._weight, 1.0)[..., None]
        return mean.astype(np.float32), self._weight.astype(np.float32)


def mean_flattened(
    faces: Iterable[tuple[Float[AnyArray, "g g 3"], Float[AnyArray, "g g"]]],
) -> tuple[Float[np.ndarray, "g g 3"], Float[np.ndarray, "g g"]]:
    """The mean of several flattened faces, each texel over the photos that show it.

    Args:
        faces: flattened face and its visibility in [0, 1], the weight; of one person,
            or of many. One at a time is held in memory.

    Returns:
        The mean, 0 where no photo shows the face; and the sum of the weights.

    Raises:
        ValueError: if there is none.
    """
    mean = MeanFlattened()
    for face, seen in faces:
        mean.add(face, seen)
    return mean.result()


def completed(
    flattened: Float[AnyArray, "g g 3"], visibility: Float[AnyArray, "g g"]
) -> Completed:
    """Fills what one photo does not show from the other half of the face.

    Faces are nearly symmetric, light is not: what is taken from the other half is made
    as bright as it would have to be where both halves are seen nearest to it, and over
    a narrow seam both are blended. Texels beside hidden ones, which show some of what
    lies behind the face, are not used.

    Args:
        flattened: [0, 1].
        visibility: in [0, 1]; above 1/2 counts as seen.
    """
    face = np.asarray(flattened, np.float32)
    size = len(face)
    hidden = _holes(np.asarray(visibility) <= 0.5)
    # Without a hole nothing is near one.
    beside = _distance_to(hidden) <= _FRINGE * size
    seen = ~(hidden | beside) if hidden.any() else ~hidden
    other = seen[:, ::-1]
    known = seen | other
    source = np.where(seen, SEEN, np.where(other, MIRRORED, GUESSED))
    if not known.any():
        return Completed(np.zeros_like(face), source)
    mirrored = face[:, ::-1]
    own = seen.astype(np.float32)
    if (source == MIRRORED).any():
        mirrored = mirrored * _gain(face, mirrored, seen & other)
        # The less of a seen texel, the nearer it lies to a mirrored one.
        away = _distance_to(source == MIRRORED)
        own *= np.where(other, np.minimum(away / max(1.0, _SEAM * size), 1.0), 1.0)
    own = own[..., None].astype(np.float32)
    filled = own * face + (1.0 - own) * mirrored
    return Completed(np.clip(filled[_nearest_of(known)], 0.0, 1.0), source)


def _distance_to(places: Bool[np.ndarray, "g g"]) -> Float[np.ndarray, "g g"]:
    """Of every texel to the nearest of some, of which there is one; texels."""
    found: Any = ndimage.distance_transform_edt(~places)
    return found


def _nearest_of(places: Bool[np.ndarray, "g g"]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the nearest of some texels, for every texel."""
    found: Any = ndimage.distance_transform_edt(
        ~places, return_distances=False, return_indices=True
    )
    rows, columns = found
    return rows, columns


def _holes(hidden: Bool[np.ndarray, "g g"]) -> Bool[np.ndarray, "g g"]:
    """Without what is narrower than two fringes: its colours are those around it."""
    width = max(1, round(2.0 * _FRINGE * len(hidden)))
    wide = np.pad(hidden, width, mode="edge")  # holes may go on beyond the edge
    opened = ndimage.binary_opening(wide, np.ones((width, width)))
    return np.asarray(opened)[width:-width, width:-width]


def _gain(
    face: Float[np.ndarray, "g g 3"],
    mirrored: Float[np.ndarray, "g g 3"],
    both: Bool[np.ndarray, "g g"],
) -> Float[np.ndarray, "g g 1"]:
    """How much brighter a place is than its mirror image, smooth; 1 if nobody knows.

    Args:
        both: where that is known; elsewhere the nearest such place counts.
    """
    if not both.any():
        return np.ones((*both.shape, 1), np.float32)
    width = _LIGHT * len(face)

    def smooth(values: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(values, width))

    share = smooth(both.astype(np.float64))
    ours, theirs = (
        smooth(colours.mean(-1) * both) / np.maximum(share, 1e-6)
        for colours in (face, mirrored)
    )
    ratio = np.clip(ours / np.maximum(theirs, 1e-3), 1.0 / _MOST_GAIN, _MOST_GAIN)
    return smooth(ratio[_nearest_of(both)])[..., None].astype(np.float32)


def photo_texture(
    image: Float[AnyArray, "h w 3"], pixels: Float[AnyArray, "n 2"], *, scale: int
) -> Float[Array, "t t 3"]:
    """A flattened face with `scale` times as many texels a side as the grid has.

    Between vertices the places in the photo are interpolated, as the surface is. Texel
    (i, j) has its centre at ((j + 1/2) / t, (i + 1/2) / t), and vertex (i, j) of the
    grid at ((j + 1/2) / g, (i + 1/2) / g), as `texture_coordinates` says.

    Args:
        image: the photo, of any resolution.
        pixels: of the g * g vertices, in pixels of this image.
        scale: t = scale * g; static.
    """
    g = round(pixels.shape[0] ** 0.5)
    place = (jnp.arange(scale * g) + 0.5) / scale - 0.5
    place = jnp.clip(place, 0.0, g - 1.0)
    at = jnp.stack(jnp.meshgrid(place, place), axis=-1)[None]
    where = sample_bilinear(jnp.reshape(jnp.asarray(pixels), (1, g, g, 2)), at)
    return sample_bilinear(jnp.asarray(image)[None], where)[0]


def texture_coordinates(grid: int) -> Float[np.ndarray, "n 2"]:
    """(u right, v up) of a grid's vertices in its flattened picture: texel centres."""
    centre = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    u, v = np.meshgrid(centre, 1.0 - centre)
    return np.stack([u, v], axis=-1).reshape(-1, 2)


@functools.partial(jax.jit, static_argnames=("camera", "size"))
def view_of(
    model: GridModel,
    theta: Theta,
    camera: Camera,
    texture: Float[AnyArray, "t t c"],
    *,
    size: int,
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """Draws a textured face posed by theta.

    Only front sides are drawn, 2 x 2 samples a pixel.

    Args:
        texture: any channels; see `photo_texture`.
        size: pixels a side; static.

    Returns:
        The picture, 0 where there is no face and mixed with it at the outline; and the
        share of each pixel that the face covers.
    """
    faces = rasterizer.grid_faces(model.size, model.size)
    posed = layers.posed(model, theta, camera, image_size=size)
    # Samples at 1/4 and 3/4 of a pixel are the pixels of an image of twice the size.
    screen = _SAMPLES * posed.pixels + (_SAMPLES - 1) / 2.0
    depth = depth_of(posed, theta, camera)
    vertices = jnp.concatenate([screen, depth[:, None]], axis=-1)
    fine = (_SAMPLES * size, _SAMPLES * size)
    fragments = rasterizer.rasterize(vertices, faces, fine, cull="back")
    corners = jnp.asarray(texture_coordinates(model.size))
    up = rasterizer.interpolate(corners, faces, fragments)
    uv = jnp.array([0.0, 1.0]) + jnp.array([1.0, -1.0]) * up  # v down
    drawn = (fragments.face_index >= 0).astype(jnp.float32)
    colour = rasterizer.sample_texture(jnp.asarray(texture), uv) * drawn[..., None]

    def pooled(samples: Array) -> Array:
        cells = samples.reshape(size, _SAMPLES, size, _SAMPLES, *samples.shape[2:])
        return cells.mean((1, 3))

    return pooled(colour), pooled(drawn)


def frontal(theta: Theta) -> Theta:
    """The same face, as large, turned to the viewer and centred."""
    return dataclasses.replace(
        theta,
        rotation=jnp.zeros_like(theta.rotation),
        translation=jnp.zeros_like(theta.translation),
    )
