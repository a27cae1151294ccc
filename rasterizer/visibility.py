"""Face indices of batches: the integer half of the rasterizer, without gradient.

A while loop under `jax.vmap` runs every member to the length of the longest and selects
at each step; here vmap instead folds the mapped axis into the batch.
"""

from functools import partial

import jax
import jax.numpy as jnp

from rasterizer import worklist
from rasterizer.coverage import SampleGrid
from rasterizer.worklist import Boxes, Primitives

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
        primitives, boxes = mesh_primitives(vertices, faces, grid=grid, near=near)
        return worklist.visible_faces(
            primitives, boxes, worklist.MESH, batch=vertices.shape[0], grid=grid
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
def grid_visibility(
    vertices: jax.Array, *, grid: SampleGrid, near: float
) -> tuple[jax.Array, Boxes]:
    """`mesh_visibility` of `grid_faces`, a cell of two triangles at a time.

    Args:
        vertices: (B, h, w, 3), h and w at least 2.

    Returns:
        (B, rows * columns) int32, -1 where empty; and the boxes of the cells, each
        (B, cells), for `grid_face_sums`.
    """

    @jax.custom_batching.custom_vmap
    def visible(vertices):
        batch = vertices.shape[0]
        primitives, boxes = grid_primitives(vertices, grid=grid, near=near)
        index = worklist.visible_faces(
            primitives, boxes, worklist.CELL, batch=batch, grid=grid
        )
        return index, Boxes(*(v.reshape(batch, -1) for v in boxes))

    @visible.def_vmap
    def _(axis_size, in_batched, vertices):
        del in_batched
        out = visible(vertices.reshape(-1, *vertices.shape[2:]))
        return jax.tree.map(
            lambda v: v.reshape(axis_size, -1, v.shape[-1]), out
        ), jax.tree.map(lambda _: True, out)

    return visible(vertices)


@partial(jax.jit, static_argnames=("grid",))
def grid_face_sums(
    boxes: Boxes, face_index: jax.Array, values: jax.Array, *, grid: SampleGrid
) -> jax.Array:
    """Sums of values over the samples that each face of a grid won, in a fixed order.

    Args:
        boxes: each (B, cells), from `grid_visibility`.
        face_index: (B, samples), likewise.
        values: (B, C, samples).

    Returns:
        (B, 2, C, cells): of both triangles of each cell.
    """

    @jax.custom_batching.custom_vmap
    def sums(boxes, face_index, values):
        batch, channels, _ = values.shape
        totals = worklist.sum_by_face(
            Boxes(*(v.reshape(-1) for v in boxes)),
            face_index,
            tuple(values[:, c] for c in range(channels)),
            triangle_count=2,
            batch=batch,
            grid=grid,
        )
        return jnp.moveaxis(totals.reshape(2, channels, batch, -1), 2, 0)

    @sums.def_vmap
    def _(axis_size, in_batched, boxes, face_index, values):
        args = jax.tree.map(
            lambda v, batched: v if batched else jnp.broadcast_to(v, (axis_size, *v.shape)),
            (boxes, face_index, values),
            tuple(in_batched),
        )
        out = sums(*jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), args))
        return out.reshape(axis_size, -1, *out.shape[1:]), True

    return sums(boxes, face_index, values)


def grid_primitives(
    vertices: jax.Array, *, grid: SampleGrid, near: float
) -> tuple[Primitives, Boxes]:
    """The cells of (B, h, w, 3) vertices: corners TL, BL, TR, BR; and their boxes."""

    def corners(snapped):
        return Primitives(
            *(
                tuple(
                    v[:, i : v.shape[1] - 1 + i, j : v.shape[2] - 1 + j].reshape(-1)
                    for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))
                )
                for v in snapped
            )
        )

    return _in_stages(vertices, corners, worklist.CELL, grid, near)


def mesh_primitives(
    vertices: jax.Array, faces: jax.Array, *, grid: SampleGrid, near: float
) -> tuple[Primitives, Boxes]:
    """The triangles of (B, V, 3) vertices and (1 or B, F, 3) faces; and their boxes."""
    batch, count = vertices.shape[:2]
    faces = jnp.broadcast_to(faces, (batch, *faces.shape[1:]))
    if count == 0:
        faces = faces[:, :0]
    known = jnp.all((faces >= 0) & (faces < count), axis=-1).reshape(-1)
    flat = jnp.clip(faces, 0, max(count - 1, 0))
    flat = flat + (jnp.arange(batch, dtype=jnp.int32) * count)[:, None, None]

    def corners(snapped):
        x, y, inverse = (
            tuple(v.reshape(-1)[flat[..., k].reshape(-1)] for k in range(3))
            for v in snapped
        )
        return Primitives(x, y, tuple(jnp.where(known, v, 0.0) for v in inverse))

    return _in_stages(vertices, corners, worklist.MESH, grid, near)


def _in_stages(vertices, corners, triangles, grid: SampleGrid, near: float):
    snapped = worklist.apart(
        jnp.any(vertices[..., 2] > near),
        lambda v: worklist.snap_vertices(v, grid, near),
        vertices,
    )
    drawable = jnp.any(snapped[2] > 0)
    primitives = worklist.apart(drawable, corners, snapped)
    boxes = worklist.apart(
        drawable, lambda p: worklist.bound(p, triangles, grid), primitives
    )
    # Zeros from a stage that was skipped must not divide.
    return primitives, boxes._replace(width=jnp.maximum(boxes.width, 1))
