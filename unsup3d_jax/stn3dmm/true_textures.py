"""What the flattened faces of open faces should be: their true colours in UV space."""

import functools

import numpy as np
from jaxtyping import Float

from unsup3d_jax.data.open_face import model as open_face
from unsup3d_jax.data.open_face import uv_texture
from unsup3d_jax.data.open_face.model import Seeds
from unsup3d_jax.data.open_face.uv_texture import Light, Points
from unsup3d_jax.stn3dmm import grid
from unsup3d_jax.stn3dmm.open_model import head_vertices, open_model


@functools.lru_cache(maxsize=4)
def grid_points(size: int) -> Points:
    """The places on the open face's head of the nodes of a size x size grid.

    Those of `grid.grid_model`, in the open model's layout.
    """
    model = open_model()
    assert model.uv is not None  # it ships with one
    uv = model.uv.astype(np.float64)
    corners, weights = grid.locate(uv, model.faces, grid.nodes_of(size))
    return uv_texture.points_of(
        open_face.load_model(), head_vertices()[corners], weights
    )


def true_textures(
    seeds: Seeds, size: int, *, asymmetry: float, lit: Light | None = None
) -> Float[np.ndarray, "n g g 3"]:
    """The true flattened faces of open faces, whole, whatever a picture shows.

    Args:
        seeds: of n pictures, see `open_face.dataset`.
        size: g.
        asymmetry: as the pictures'.
        lit: None: albedo, the same in every picture of a person who looks the same
            way; else as each of these pictures shows it, shaded by its light.

    Returns:
        Display colours in [0, 1].
    """
    found = uv_texture.colours_of(
        seeds, grid_points(size), asymmetry=asymmetry, lit=lit
    )
    return found.reshape(-1, size, size, 3)
