"""Meshes to fragments."""

import dataclasses
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .backends import choose
from .batching import alike, flatten_lead
from .coverage import Rules, SampleGrid
from .engines import Engine
from .options import Drawing, FragmentOptions, make_drawing, make_grid
from .sums import gather_rows
from .types import Fragments
from .visibility import mesh_visibility
from .worklist import MAX_DEPTH, MIN_DEPTH


def rasterize(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    size: tuple[int, int],
    **options: Unpack[FragmentOptions],
) -> Fragments:
    """The nearest face at each pixel centre; an exact z-buffer.

    Edges are inclusive. Depths that agree to one part in a million are a tie, which the
    smallest face index wins. Face indices come from integer arithmetic on vertices
    snapped to 1/256 pixel (coarser for images above 1360 samples a side), alike on
    every machine and under every compiler.

    A face draws nothing when a vertex is NaN or infinite, has z <= near, z >= far or z
    outside [1e-15, 1e15], or lies more than 522,240 pixels from the image's centre;
    when its snapped area is 0; or when a traced face index is out of range. A face with
    a vertex more than 2040 pixels from the centre (at 1/256) is snapped to a coarser
    grid, up to whole pixels, and may then part from its neighbours by as much.

    Gradients reach vertices through `barycentrics` and `depth`, exactly for the visible
    face; where it changes, at silhouettes and occlusions, they are zero.

    Args:
        vertices: (..., V, 3) float32 or float64: x, y in pixels, centres on integers,
            x right and y down; z camera depth > 0.
        faces: (F, 3) integers, shared by the batch.
        size: (height, width) of the image, pixels.
        **options: `near`, `far`, `cull`, `pixel_offset`, `backend` and `parallel`: see
            `FragmentOptions`.

    Returns:
        Fragments with leading axes (..., height, width).

    Raises:
        TypeError: for an unknown option.
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    drawing = make_drawing("rasterize", size, options, FragmentOptions)
    return _rasterize(vertices, faces, drawing)


@partial(jax.jit, static_argnames="drawing")
def _rasterize(vertices, faces, drawing: Drawing) -> Fragments:
    vertices, faces = alike(vertices, faces)
    grid, parallel = drawing.grid, drawing.parallel
    lead = vertices.shape[:-2]
    flat = jax.lax.stop_gradient(flatten_lead(vertices, 2))
    if drawing.parallel:
        flat, drawing = as_perspective(flat, drawing)
    find = choose(
        drawing.workers,
        by_loops=partial(index_by_loops, drawing=drawing),
        by_engine=partial(index_by_engine, drawing=drawing),
    )
    index = find(flat, faces)
    index = index.reshape(*lead, grid.rows, grid.columns)
    where = barycentrics_of(vertices, faces, index, grid, parallel=parallel)
    return Fragments(index, *where)


def as_perspective(vertices, drawing: Drawing):
    """Vertices of a parallel view with z such that 1/z is linear in it, of the same
    order; and the drawing of them.

    1/z becomes 2 - z / (largest z), from 1 to 2, so that depths that agree to about a
    millionth of the largest are a tie.

    Args:
        vertices: (B, V, 3), without gradient.
    """
    rules, z = drawing.rules, vertices[..., 2]
    usable = (z > rules.near) & (z < rules.far) & (z >= MIN_DEPTH) & (z <= MAX_DEPTH)
    z = jnp.where(usable, z, 0.0)
    farthest = jnp.max(z, axis=-1, keepdims=True, initial=MIN_DEPTH)
    z = jnp.where(usable, 1.0 / (2.0 - z / farthest), -1.0)
    drawing = dataclasses.replace(drawing, rules=Rules(facing=rules.facing))
    return jnp.concatenate([vertices[..., :2], z[..., None]], axis=-1), drawing


def index_by_engine(vertices, faces, drawing: Drawing, engine: Engine):
    """(B, V, 3) and (F, 3) to the face at each sample, (B, samples)."""
    shared = jnp.broadcast_to(faces, (vertices.shape[0], *faces.shape))
    grid, rules = drawing.grid, drawing.rules
    return mesh_visibility(vertices, shared, grid=grid, rules=rules, engine=engine)[0]


def index_by_loops(vertices, faces, drawing: Drawing):
    """The same, by `native`."""
    from . import native  # needs Numba

    return native.face_index(vertices, faces[None], drawing)


def barycentrics_at(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    face_index: jax.Array,
    *,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
    parallel: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Where pixels lie on given faces; differentiable with respect to vertices.

    Args:
        vertices: (..., V, 3) as for `rasterize`.
        faces: (F, 3).
        face_index: (..., H, W) integers; -1 for none.
        pixel_offset, parallel: as for `rasterize`.

    Returns:
        Perspective-correct barycentrics (..., H, W, 3), and depth (..., H, W). A pixel
        outside its face (the snapped face may reach 1/256 px farther) gets the clipped
        and renormalised weights.

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    face_index = mesh_lib.check_index(face_index)
    grid = make_grid(face_index.shape[-2:], 1, pixel_offset)
    return barycentrics_of(vertices, faces, face_index, grid, parallel=parallel)


def barycentrics_of(vertices, faces, face_index, grid: SampleGrid, *, parallel: bool):
    """`barycentrics_at`, unchecked."""
    height, width = grid.height, grid.width
    lead = face_index.shape[:-2]
    if faces.shape[0] == 0 or vertices.shape[-2] == 0:
        return (
            jnp.zeros((*face_index.shape, 3), vertices.dtype),
            jnp.full(face_index.shape, jnp.inf, vertices.dtype),
        )
    vertices = jnp.broadcast_to(vertices, (*lead, *vertices.shape[-2:]))
    drawn = face_index >= 0
    corner_ids = faces[jnp.where(drawn, face_index, 0)]
    corners = gather_rows(
        flatten_lead(vertices, 2),
        flatten_lead(corner_ids, 3).reshape(-1, height * width * 3),
    )
    corners = corners.reshape(*face_index.shape, 3, 3)
    # A face that is not drawn may hold NaN; keep it out of the arithmetic.
    corners = jnp.where(drawn[..., None, None], corners, 1.0)
    x, y = grid.positions(vertices.dtype)
    weights = screen_weights(
        [corners[..., k, 0] - x for k in range(3)],
        [corners[..., k, 1] - y[:, None] for k in range(3)],
        grid,
    )
    if parallel:
        weights = jnp.stack(weights, axis=-1)
        depth = jnp.sum(weights * corners[..., 2], axis=-1)
        depth = jnp.where(drawn, depth, jnp.inf)
        return jnp.where(drawn[..., None], weights, 0.0), depth
    over_z = jnp.stack(weights, axis=-1) / corners[..., 2]
    inverse = jnp.sum(over_z, axis=-1)
    depth = jnp.where(drawn, 1.0 / inverse, jnp.inf)
    barycentrics = jnp.where(drawn[..., None], over_z / inverse[..., None], 0.0)
    return barycentrics, depth


def screen_weights(xs, ys, grid: SampleGrid) -> tuple[jax.Array, ...]:
    """Screen-space barycentric weights of the origin in triangles.

    Args:
        xs, ys: three arrays each, the corners relative to the sample, pixels. Relative
            coordinates keep float32 exact enough.

    Returns:
        Three weights, clipped to [0, 1] and renormalised; 1/3 each for a triangle too
        thin to divide by its area (it is drawn only where snapping thickened it).
    """
    (xa, xb, xc), (ya, yb, yc) = xs, ys
    edges = (xb * yc - yb * xc, xc * ya - yc * xa, xa * yb - ya * xb)
    area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
    thick = jnp.abs(area) > grid.smallest_area
    area = jnp.where(thick, area, 1.0)
    raw = [jnp.where(thick, e / area, 1.0 / 3.0) for e in edges]
    a, b, c = (jnp.clip(w, 0.0, 1.0) for w in raw)
    total = a + b + c
    return a / total, b / total, c / total
