"""Face indices of batches: the integer half of the rasterizer, without gradient."""

from functools import partial

import jax
import jax.numpy as jnp

from rasterizer import worklist
from rasterizer.batching import fold_vmap
from rasterizer.coverage import SampleGrid
from rasterizer.worklist import Boxes, Primitives


@partial(jax.jit, static_argnames=("grid", "near"))
def mesh_visibility(
    vertices: jax.Array, faces: jax.Array, *, grid: SampleGrid, near: float
) -> jax.Array:
    """Nearest face at each sample.

    Args:
        vertices: (B, V, 3).
        faces: (B, F, 3); a face with an index out of range draws nothing.

    Returns:
        (B, rows * columns) int32, -1 where empty.
    """

    @fold_vmap
    def visible(vertices, faces):
        primitives, boxes = mesh_primitives(vertices, faces, grid=grid, near=near)
        return worklist.visible_faces(
            primitives, boxes, worklist.MESH, batch=vertices.shape[0], grid=grid
        )

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

    @fold_vmap
    def visible(vertices):
        batch, h, w, _ = vertices.shape
        primitives, boxes = grid_primitives(vertices, grid=grid, near=near)
        index = worklist.visible_faces(
            primitives, boxes, worklist.CELL, batch=batch, grid=grid
        )
        return index, Boxes(*(v.reshape(batch, (h - 1) * (w - 1)) for v in boxes))

    return visible(vertices)


@partial(jax.jit, static_argnames=("grid",))
def grid_face_sums(
    boxes: Boxes,
    face_index: jax.Array,
    values: tuple[jax.Array, ...],
    *,
    grid: SampleGrid,
) -> list[list[jax.Array]]:
    """Sums of values over the samples that each face of a grid won, in a fixed order.

    Args:
        boxes: each (B, cells), from `grid_visibility`.
        face_index: (B, samples), likewise.
        values: each (B, samples).

    Returns:
        For each of the two triangles of a cell, one (B, cells) array for each value.
    """

    @fold_vmap
    def sums(boxes, face_index, values):
        totals = worklist.sum_by_face(
            Boxes(*(v.reshape(-1) for v in boxes)),
            face_index,
            values,
            triangle_count=2,
            batch=face_index.shape[0],
            grid=grid,
        )
        return [[v.reshape(boxes.count.shape) for v in t] for t in totals]

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
    vertices: jax.Array,
    faces: jax.Array,
    *,
    grid: SampleGrid,
    near: float,
    margin: int = 0,
) -> tuple[Primitives, Boxes]:
    """The triangles of (B, V, 3) vertices and (B, F, 3) faces; and their boxes,
    wider by `margin` samples on every side."""
    batch, count = vertices.shape[:2]
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

    return _in_stages(vertices, corners, worklist.MESH, grid, near, margin)


def _in_stages(vertices, corners, triangles, grid: SampleGrid, near, margin=0):
    snapped = worklist.apart(
        jnp.any(vertices[..., 2] > near),
        lambda v: worklist.snap_vertices(v, grid, near),
        vertices,
    )
    drawable = jnp.any(snapped[2] > 0)
    primitives = worklist.apart(drawable, corners, snapped)
    boxes = worklist.apart(
        drawable, lambda p: worklist.bound(p, triangles, grid, margin), primitives
    )
    # Zeros from a stage that was skipped must not divide.
    return primitives, boxes._replace(width=jnp.maximum(boxes.width, 1))
