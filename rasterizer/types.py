"""What the stages of the rasterizer hand to one another."""

from typing import NamedTuple

import jax


class Fragments(NamedTuple):
    """The visible face at each sample, and where on that face the sample lies.

    Attributes:
        face_index: (..., H, W) int32; -1 where nothing is drawn.
        barycentrics: (..., H, W, 3) perspective-correct weights of the face's three
            vertices, in [0, 1], summing to one; all 0 where nothing is drawn.
        depth: (..., H, W) camera depth, in the units of the vertices' z; inf where
            nothing is drawn.
    """

    face_index: jax.Array
    barycentrics: jax.Array
    depth: jax.Array


class DepthImage(NamedTuple):
    """A rendered depth map, and where it is trustworthy.

    Attributes:
        depth: (..., H, W) camera depth, in the units of the vertices' z; the mean over
            the samples of a pixel, uncovered samples counting as `background`.
        covered: (..., H, W) bool; True where every sample of the pixel lies on a face.
    """

    depth: jax.Array
    covered: jax.Array
