"""Vertex normals of a triangle mesh."""

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .batching import flatten_lead
from .sums import gather_rows, sum_rows


def vertex_normals(points: jax.Array, faces: jax.Array | np.ndarray) -> jax.Array:
    """Unit normals: the faces around a vertex, weighted by their areas.

    A normal is along cross(b - a, c - a) of faces (a, b, c): towards the viewer, in a
    frame of x right, y down, z forward, where the corners look counter-clockwise.

    The gradient is exact, and zero where the normal has no direction.

    Args:
        points: (..., V, 3) float positions in space, not on the screen.
        faces: (F, 3) integers, shared by the batch.

    Returns:
        (..., V, 3) of length 1; 0 for a vertex without faces, or whose faces cancel out
        or are degenerate. A NaN or infinite point gives 0 to its neighbours' sums.

    Raises:
        ValueError: naming the argument of a wrong shape or dtype.
    """
    points = mesh_lib.check_vertices(points)
    faces = mesh_lib.check_faces(faces, points.shape[-2])
    if faces.shape[0] == 0 or points.size == 0:
        return jnp.zeros_like(points)
    return _vertex_normals(points, faces)


@jax.jit
def _vertex_normals(points, faces):
    count = points.shape[-2]
    flat = flatten_lead(points, 2)
    # Half-way guards keep 0 * NaN out of the gradient.
    finite = jnp.all(jnp.isfinite(flat), axis=-1, keepdims=True)
    flat = jnp.where(finite, flat, 0.0)
    known = jnp.all((faces >= 0) & (faces < count), axis=-1)
    ids = jnp.clip(faces, 0, count - 1)
    ids = jnp.broadcast_to(ids.reshape(-1), (len(flat), ids.size))
    corners = gather_rows(flat, ids).reshape(len(flat), -1, 3, 3)
    whole = known & gather_rows(finite.astype(flat.dtype), ids).reshape(
        len(flat), -1, 3
    ).all(axis=-1)
    a, b, c = corners[:, :, 0], corners[:, :, 1], corners[:, :, 2]
    area = jnp.where(whole[..., None], jnp.cross(b - a, c - a), 0.0)
    rows = jnp.repeat(area, 3, axis=1)
    total = sum_rows(rows, ids, count)
    # Scaled by the largest entry, whose square neither overflows nor vanishes.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(total), axis=-1, keepdims=True))
    some = scale > jnp.finfo(total.dtype).tiny
    total = jnp.where(some, total, 1.0) / jnp.where(some, scale, 1.0)
    unit = total * jax.lax.rsqrt(jnp.sum(total * total, axis=-1, keepdims=True))
    return jnp.where(some, unit, 0.0).reshape(points.shape)
