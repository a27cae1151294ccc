"""Face indices of batches: the integer half of the rasterizer, without gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from . import worklist
from .batching import fold_vmap
from .coverage import Rules, SampleGrid
from .engines import Engine
from .worklist import Boxes, Primitives


@partial(jax.jit, static_argnames=("grid", "rules", "engine"))
def mesh_visibility(
    vertices: jax.Array,
    faces: jax.Array,
    *,
    grid: SampleGrid,
    rules: Rules,
    engine: Engine,
) -> tuple[jax.Array, Boxes]:
    """Nearest face at each sample.

    Args:
        vertices: (B, V, 3).
        faces: (B, F, 3); a face with an index out of range draws nothing.

    Returns:
        (B, rows * columns) int32, -1 where empty; and the boxes of the faces, each
        (B, F), for `sums.sum_by_face`.
    """

    @fold_vmap
    def visible(vertices, faces):
        primitives, boxes = mesh_primitives(
            vertices, faces, grid=grid, rules=rules, engine=engine
        )
        index = engine.visible_faces(
            primitives,
            boxes,
            worklist.MESH,
            batch=vertices.shape[0],
            grid=grid,
            facing=rules.facing,
        )
        return index, Boxes(*(v.reshape(faces.shape[:2]) for v in boxes))

    return visible(vertices, faces)


@partial(jax.jit, static_argnames=("grid", "rules", "engine"))
def grid_visibility(
    vertices: jax.Array, *, grid: SampleGrid, rules: Rules, engine: Engine
) -> tuple[jax.Array, Boxes]:
    """`mesh_visibility` of a grid, a cell of two triangles at a time.

    A cell is named by its top left vertex v (row-major); its upper triangle
    (TL, BL, TR) is face v, its lower one (TR, BL, BR) face h * w + v. These indices
    compare as those of `grid_faces` do, and need no division to find the vertices.

    Args:
        vertices: (B, h, w, 3), h and w at least 2.

    Returns:
        (B, rows * columns) int32, -1 where empty; and the boxes of the cells, each
        (B, h * w), for `sums.sum_by_face`.
    """

    @fold_vmap
    def visible(vertices):
        batch, h, w, _ = vertices.shape
        primitives, boxes = grid_primitives(
            vertices, grid=grid, rules=rules, engine=engine
        )
        index = engine.visible_faces(
            primitives,
            boxes,
            worklist.cell_layout(w),
            batch=batch,
            grid=grid,
            facing=rules.facing,
        )
        return index, Boxes(*(v.reshape(batch, h * w) for v in boxes))

    return visible(vertices)


def grid_primitives(
    vertices: jax.Array, *, grid: SampleGrid, rules: Rules, engine: Engine
) -> tuple[Primitives, Boxes]:
    """The cells of (B, h, w, 3) vertices, one for each vertex; and their boxes.

    Those of the last row and column do not exist.
    """
    batch, h, w, _ = vertices.shape
    layout = worklist.cell_layout(w)
    # Zeros behind the last vertex, which is no corner to draw with.
    flat = jnp.pad(vertices.reshape(-1, 3), ((0, max(layout.offsets)), (0, 0)))
    inside = np.zeros((h, w), bool)
    inside[:-1, :-1] = True
    return _in_stages(
        flat,
        lambda snapped: Primitives(*((v,) * 4 for v in snapped)),
        layout,
        jnp.tile(jnp.asarray(inside.reshape(-1)), batch),
        grid,
        rules,
        engine,
    )


def mesh_primitives(
    vertices: jax.Array,
    faces: jax.Array,
    *,
    grid: SampleGrid,
    rules: Rules,
    engine: Engine,
    margin: int = 0,
) -> tuple[Primitives, Boxes]:
    """The triangles of (B, V, 3) vertices and (B, F, 3) faces; and their boxes, wider
    by `margin` units of 2**-bits samples on every side."""
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

    return _in_stages(
        vertices, corners, worklist.MESH, None, grid, rules, engine, margin
    )


def _in_stages(
    vertices, corners, layout, exists, grid: SampleGrid, rules, engine: Engine, margin=0
):
    snapped = engine.apart(
        jnp.any(vertices[..., 2] > rules.near),
        lambda v: worklist.snap_vertices(v, grid, rules),
        vertices,
    )
    drawable = jnp.any(snapped[2] > 0)
    if max(layout.offsets) > 0:
        primitives = corners(snapped)  # the planes themselves
    else:
        primitives = engine.apart(drawable, corners, snapped)
    boxes = engine.apart(
        drawable,
        lambda p: worklist.bound(p, layout, exists, grid, margin),
        primitives,
    )
    # Zeros from a stage that was skipped must not divide.
    return primitives, boxes._replace(width=jnp.maximum(boxes.width, 1))
