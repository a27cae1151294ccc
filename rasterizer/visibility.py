"""Face indices of batches: the integer half of the rasterizer, without gradient.

A while loop under `jax.vmap` runs every member to the length of the longest and selects
at each step; here vmap instead folds the mapped axis into the batch.
"""

from functools import partial

import jax
import jax.numpy as jnp

from rasterizer import worklist
from rasterizer.coverage import SampleGrid
from rasterizer.worklist import Primitives

_MESH = ((0, 1, 2),)
_CELL = ((0, 1, 2), (2, 1, 3))  # of corners TL, BL, TR, BR


@partial(jax.jit, static_argnames=("grid", "near"))
def mesh_visibility(
    vertices: jax.Array, faces: jax.Array, *, grid: SampleGrid, near: float
) -> jax.Array:
    """Nearest face at each sample.

    Args:
        vertices: (B, V, 3).
        faces: (1, F, 3) for all of the batch, or (B, F, 3); a face with an index out of
            range draws nothing.

    Returns:
        (B, rows * columns) int32, -1 where empty.
    """

    @jax.custom_batching.custom_vmap
    def visible(vertices, faces):
        batch, count = vertices.shape[:2]
        known = jnp.all((faces >= 0) & (faces < count), axis=-1)
        faces = jnp.broadcast_to(faces, (batch, *faces.shape[1:]))
        if count == 0:
            faces = faces[:, :0]
            known = known[:, :0]
        snapped = worklist.snap_vertices(vertices, grid, near)
        flat = jnp.clip(faces, 0, max(count - 1, 0))
        flat = flat + (jnp.arange(batch, dtype=jnp.int32) * count)[:, None, None]
        x, y, inverse = (
            tuple(v.reshape(-1)[flat[..., k].reshape(-1)] for k in range(3))
            for v in snapped
        )
        known = jnp.broadcast_to(known, faces.shape[:2]).reshape(-1)
        inverse = tuple(jnp.where(known, v, 0.0) for v in inverse)
        return worklist.visible_faces(
            Primitives(x, y, inverse), _MESH, batch=batch, grid=grid
        )

    @visible.def_vmap
    def _(axis_size, in_batched, vertices, faces):
        vertices_batched, faces_batched = in_batched
        if not vertices_batched:
            vertices = jnp.broadcast_to(vertices, (axis_size, *vertices.shape))
        batch = vertices.shape[1]
        if faces_batched:
            faces = jnp.broadcast_to(faces, (axis_size, batch, *faces.shape[2:]))
            faces = faces.reshape(axis_size * batch, *faces.shape[2:])
        elif faces.shape[0] != 1:
            faces = jnp.tile(faces, (axis_size, 1, 1))
        out = visible(vertices.reshape(axis_size * batch, *vertices.shape[2:]), faces)
        return out.reshape(axis_size, batch, -1), True

    return visible(vertices, faces)


@partial(jax.jit, static_argnames=("grid", "near"))
def grid_visibility(vertices: jax.Array, *, grid: SampleGrid, near: float) -> jax.Array:
    """`mesh_visibility` of `grid_faces`, a cell of two triangles at a time.

    Args:
        vertices: (B, h, w, 3), h and w at least 2.

    Returns:
        (B, rows * columns) int32, -1 where empty.
    """

    @jax.custom_batching.custom_vmap
    def visible(vertices):
        batch = vertices.shape[0]
        x, y, inverse = (
            tuple(
                v[:, i : v.shape[1] - 1 + i, j : v.shape[2] - 1 + j].reshape(-1)
                for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))
            )
            for v in worklist.snap_vertices(vertices, grid, near)
        )
        return worklist.visible_faces(
            Primitives(x, y, inverse), _CELL, batch=batch, grid=grid
        )

    @visible.def_vmap
    def _(axis_size, in_batched, vertices):
        del in_batched
        out = visible(vertices.reshape(-1, *vertices.shape[2:]))
        return out.reshape(axis_size, -1, out.shape[-1]), True

    return visible(vertices)
