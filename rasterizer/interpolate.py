"""Vertex attributes at fragments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .batching import flatten_lead
from .coverage import SampleGrid
from .options import make_grid
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


def slopes_at(
    attributes: jax.Array,
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    fragments: Fragments,
    *,
    parallel: bool = False,
) -> jax.Array:
    """How fast interpolated attributes change along x and y of the screen.

    Within a face a / z and 1 / z are linear on the screen, in perspective, and so with
    the face's plane of each the derivative of their quotient is exact:

        grad a = z (grad(a / z) - a grad(1 / z)).

    With the uv of vertices it is what `sample_texture` takes as `slopes`. It does not
    know of outlines: beside one it is that of the visible face.

    Args:
        attributes: (..., V, C) float; the leading axes are those of the vertices.
        vertices: (..., V, 3), as for `rasterize`.
        faces: (F, 3) integers.
        fragments: from `rasterize` of these, (..., H, W); not `unclip`'s, whose faces
            have vertices without a place on the screen.
        parallel: as for `rasterize`.

    Returns:
        (..., H, W, C, 2): change a pixel along x and along y; 0 where nothing is drawn,
        and for a face too thin to have a slope. The gradient is exact.

    Raises:
        ValueError: naming the argument of a wrong shape or dtype.
    """
    vertices = mesh_lib.check_vertices(vertices)
    attributes = jnp.asarray(attributes)
    if attributes.ndim < 2 or attributes.shape[-2] != vertices.shape[-2]:
        raise ValueError(
            f"attributes must be (..., V, C) with vertices {vertices.shape}, got "
            f"{attributes.shape}."
        )
    index = mesh_lib.check_index(fragments.face_index)
    lead = index.shape[:-2]
    places = jnp.broadcast_to(vertices, (*lead, *vertices.shape[-2:]))
    attributes = jnp.broadcast_to(attributes, (*lead, *attributes.shape[-2:]))
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    if 0 in (faces.shape[0], attributes.shape[-2]):
        return jnp.zeros((*index.shape, attributes.shape[-1], 2), attributes.dtype)
    grid = make_grid(index.shape[-2:], 1, (0.0, 0.0))
    places = jnp.concatenate([places, attributes], axis=-1)
    return _slopes(places, faces, index, fragments.barycentrics, grid, parallel)


@partial(jax.jit, static_argnums=(4, 5))
def _slopes(places, faces, index, barycentrics, grid: SampleGrid, parallel: bool):
    drawn = index >= 0
    corners = _corners_at(places, faces, index)
    values = [corners[..., k, 3:] for k in range(3)]
    here = jnp.sum(barycentrics[..., None] * corners[..., 3:], axis=-2)
    harmless = jnp.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]], places.dtype)
    corners = jnp.where(drawn[..., None, None], corners[..., :3], harmless)
    a, b, c = (corners[..., k, :] for k in range(3))
    scales = [jnp.ones_like(q[..., 2:]) for q in (a, b, c)]
    depth = jnp.ones_like(barycentrics[..., 0])
    if not parallel:
        scales = [1.0 / q[..., 2:] for q in (a, b, c)]
        depth = jnp.sum(barycentrics * corners[..., 2], axis=-1)
    x1, y1 = (b - a)[..., 0], (b - a)[..., 1]
    x2, y2 = (c - a)[..., 0], (c - a)[..., 1]
    area = x1 * y2 - y1 * x2
    thick = drawn & (jnp.abs(area) > grid.smallest_area)
    area = jnp.where(thick, area, 1.0)[..., None]
    x1, y1, x2, y2 = (v[..., None] for v in (x1, y1, x2, y2))

    def gradient(planes):
        rise1, rise2 = planes[1] - planes[0], planes[2] - planes[0]
        along_x = (rise1 * y2 - rise2 * y1) / area
        along_y = (rise2 * x1 - rise1 * x2) / area
        return jnp.stack([along_x, along_y], axis=-1)

    slope = gradient([v * s for v, s in zip(values, scales, strict=True)])
    if not parallel:
        slope = slope - here[..., None] * gradient(scales)
        slope = slope * depth[..., None, None]
    return jnp.where(thick[..., None, None], slope, 0.0)


@partial(jax.jit, static_argnums=4)
def _interpolate(attributes, faces, index, barycentrics, lead):
    pixels = index.shape[-2:]
    attributes = jnp.broadcast_to(attributes, (*lead, *attributes.shape[-2:]))
    index = jnp.broadcast_to(index, (*lead, *pixels))
    barycentrics = jnp.broadcast_to(barycentrics, (*index.shape, 3))
    corners = _corners_at(attributes, faces, index)
    return jnp.sum(barycentrics[..., None] * corners, axis=-2)


def _corners_at(attributes, faces, index):
    """(..., V, C) at the corners of each pixel's face, (..., H, W, 3, C); or 0."""
    channels = attributes.shape[-1]
    pixels = index.shape[-2:]
    drawn = index >= 0
    corner_ids = faces[jnp.where(drawn, index, 0)]
    corners = gather_rows(
        flatten_lead(attributes, 2),
        flatten_lead(corner_ids, 3).reshape(-1, 3 * pixels[0] * pixels[1]),
    )
    corners = corners.reshape(*index.shape, 3, channels)
    # Vertex 0 may hold NaN where nothing is drawn, and 0 * NaN is NaN.
    return jnp.where(drawn[..., None, None], corners, 0.0)
