"""Vertex attributes at fragments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .batching import flatten_lead
from .sums import gather_rows
from .types import Fragments


def interpolate(
    attributes: jax.Array, faces: jax.Array | np.ndarray, fragments: Fragments
) -> jax.Array:
    """Perspective-correct values of per-vertex attributes at each fragment.

    The gradient with respect to `attributes` is exact; that with respect to vertex
    positions flows through `fragments.barycentrics` and is exact for the visible face.

    Args:
        attributes: (..., V, C) float; the leading axes broadcast with those of the
            fragments.
        faces: (F, 3) integers, as given to `rasterize`.
        fragments: from `rasterize`, leading axes (..., H, W).

    Returns:
        (..., H, W, C); 0 where nothing is drawn.

    Raises:
        ValueError: naming the argument of a wrong shape or dtype.
    """
    attributes = jnp.asarray(attributes)
    if attributes.ndim < 2 or not jnp.issubdtype(attributes.dtype, jnp.floating):
        raise ValueError(
            "attributes must be floats (..., V, C), got "
            f"{attributes.dtype} {attributes.shape}."
        )
    faces = mesh_lib.check_faces(faces, attributes.shape[-2])
    index, barycentrics = fragments.face_index, fragments.barycentrics
    index = mesh_lib.check_index(index)
    if barycentrics.shape != (*index.shape, 3):
        raise ValueError(
            "fragments must hold face_index (..., H, W) and barycentrics "
            f"(..., H, W, 3), got {index.shape} and {barycentrics.shape}."
        )
    try:
        lead = jnp.broadcast_shapes(attributes.shape[:-2], index.shape[:-2])
    except ValueError as error:
        raise ValueError(
            f"leading axes of attributes {attributes.shape} and of fragments "
            f"{index.shape} do not broadcast."
        ) from error
    channels = attributes.shape[-1]
    pixels = index.shape[-2:]
    if faces.shape[0] == 0 or attributes.shape[-2] == 0:
        return jnp.zeros((*lead, *pixels, channels), attributes.dtype)
    return _interpolate(attributes, faces, index, barycentrics, lead)


@partial(jax.jit, static_argnums=4)
def _interpolate(attributes, faces, index, barycentrics, lead):
    channels = attributes.shape[-1]
    pixels = index.shape[-2:]
    attributes = jnp.broadcast_to(attributes, (*lead, *attributes.shape[-2:]))
    index = jnp.broadcast_to(index, (*lead, *pixels))
    barycentrics = jnp.broadcast_to(barycentrics, (*index.shape, 3))
    drawn = index >= 0
    corner_ids = faces[jnp.where(drawn, index, 0)]
    corners = gather_rows(
        flatten_lead(attributes, 2),
        flatten_lead(corner_ids, 3).reshape(-1, 3 * pixels[0] * pixels[1]),
    )
    corners = corners.reshape(*index.shape, 3, channels)
    # Vertex 0 may hold NaN where nothing is drawn, and 0 * NaN is NaN.
    corners = jnp.where(drawn[..., None, None], corners, 0.0)
    return jnp.sum(barycentrics[..., None] * corners, axis=-2)
