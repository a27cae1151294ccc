"""Pictures -> flattened faces and masks at a given theta: pose, mask and sample.

What training, scores, panels and outputs have in common, batch by batch.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.stn3dmm import layers
from unsup3d_jax.stn3dmm import visibility as sight
from unsup3d_jax.stn3dmm.layers import Camera, Posed
from unsup3d_jax.stn3dmm.types import GridModel

# What `visibility.MODES` have not: everything counts as seen.
NO_MASK = "none"
MODES = (*sight.MODES, NO_MASK)


@struct.dataclass
class Flattened:
    """Faces flattened, and what is seen of them.

    Attributes:
        posed: see there.
        faces: (b, g, g, c) not masked; 0 outside the image.
        seen: (b, g, g) how far each texel is seen, wherever the image ends; in [0, 1].
        inside: (b, g, g) whether it lies in the image.
    """

    posed: Posed
    faces: Float[Leaf, "*b g g c"]
    seen: Float[Leaf, "*b g g"]
    inside: Bool[Leaf, "*b g g"]

    @property
    def mask(self) -> Float[Array, "*b g g"]:
        """How far each texel counts: seen, and inside the image."""
        return self.seen * self.inside


def flatten(
    model: GridModel,
    vectors: Float[AnyArray, "b p"],
    images: Float[AnyArray, "b h w c"],
    camera: Camera,
    *,
    mode: str,
) -> Flattened:
    """Samples each image where its theta says that the face lies.

    Args:
        model: with the coefficients of theta.
        vectors: of theta, see `layers.split`.
        images: square, any range.
        camera: static.
        mode: one of MODES; static.

    Raises:
        ValueError: if the images are not square, or the mode is none of MODES.
    """
    size, grid = images.shape[1], model.size
    if images.shape[2] != size:
        raise ValueError(f"need square images, got {images.shape[1:3]}.")

    def one(vector: Array) -> tuple[Posed, Array, Array]:
        theta = layers.split(vector)
        posed = layers.posed(model, theta, camera, image_size=size)
        if mode == NO_MASK:
            seen = jnp.ones((grid, grid), posed.pixels.dtype)
        else:
            seen = sight.visibility(
                posed, theta, camera, mode=mode, grid=grid, image_size=size
            )
        return posed, seen, sight.inside(posed.pixels, grid, size)

    posed, seen, inside = jax.vmap(one)(jnp.asarray(vectors))
    faces = layers.flatten_image(images, posed.pixels, grid)
    return Flattened(posed, faces, seen, inside)
