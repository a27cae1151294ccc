"""Analytic antialiasing of outlines: gradients for colour across visibility edges.

Where the visible face changes between two neighbouring pixels and an outline of the
nearer face crosses the line between their centres, the nearer pixel's colour covers as
much of the other's half of that line as the outline reaches beyond the middle, or the
other's as much of the nearer's. The idea is that of Laine et al., Modular Primitives
for High-Performance Differentiable Rendering, ACM TOG 2020. An outline is used between
pixels side by side if it is steeper than 45 degrees, else between pixels one above the
other: summed over a row or column, the blend then gives the area under it exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .batching import flatten_lead
from .coverage import SampleGrid
from .options import make_grid
from .sums import gather_rows
from .types import Fragments


def antialias(
    colour: jax.Array,
    fragments: Fragments,
    vertices: jax.Array,
    faces: np.ndarray,
    *,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> jax.Array:
    """Smooths the outlines of a drawn image, and makes them differentiable.

    An outline is an edge of the visible face that has no face on its other side, or
    one that faces the other way on the screen, or more than one. Inner edges, creases
    included, are left alone: what changes there is shading, not visibility.

    Gradients: with respect to `colour` exact; with respect to the vertices' x and y
    exact for the blend, through the place where an outline crosses the line between
    two pixel centres; none to z. What is not seen: an outline that comes between no
    two pixel centres (thinner than a pixel), and corners within the pixel.

    Args:
        colour: (..., H, W, C) float, one value a pixel, the background's included.
        fragments: from `rasterize` of the same vertices, faces and pixel_offset.
        vertices: (..., V, 3), as for `rasterize`.
        faces: (F, 3) integers, concrete: their neighbours are found by numpy.

    Returns:
        (..., H, W, C).

    Raises:
        ValueError: naming the argument of a wrong shape or dtype, or traced faces.
    """
    colour = jnp.asarray(colour)
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_concrete_faces(faces, vertices.shape[-2])
    index = mesh_lib.check_index(fragments.face_index)
    if colour.ndim < 3 or colour.shape[:-1] != index.shape:
        raise ValueError(
            f"colour must be (..., H, W, C) with fragments {index.shape}, got "
            f"{colour.shape}."
        )
    if vertices.shape[:-2] != index.shape[:-2]:
        raise ValueError(
            f"leading axes of vertices {vertices.shape} and of fragments {index.shape} "
            "differ."
        )
    if len(faces) == 0 or colour.size == 0:
        return colour
    grid = make_grid(index.shape[-2:], 1, pixel_offset)
    neighbours = edge_neighbours(faces)
    return _antialias(
        colour, index, fragments.depth, vertices, faces, neighbours, grid=grid
    )


@functools.partial(jax.jit, static_argnames="grid")
def _antialias(colour, index, depth, vertices, faces, neighbours, *, grid: SampleGrid):
    flat = flatten_lead(vertices, 2)[..., :2]
    index = flatten_lead(index, 2)
    depth = flatten_lead(jax.lax.stop_gradient(depth), 2)
    image = flatten_lead(colour, 3)
    outline = _outlines(jax.lax.stop_gradient(flat), faces, neighbours)
    positions = grid.positions(flat.dtype)
    flat_edges, steep = jnp.less, jnp.less_equal  # one of them takes 45 degrees
    sideways = _blend(image, index, depth, flat, faces, outline, positions, steep)
    # Down the columns: the same with x and y exchanged.
    swap = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    downwards = _blend(
        swap(image),
        swap(index),
        swap(depth),
        flat[..., ::-1],
        faces,
        outline,
        positions[::-1],
        flat_edges,
    )
    return (image + sideways + swap(downwards)).reshape(colour.shape)


def edge_neighbours(faces: np.ndarray) -> np.ndarray:
    """The face on the other side of each edge.

    Args:
        faces: (F, 3) integers.

    Returns:
        (F, 3) int32: for the edges from corner k to corner k + 1; -1 where there is no
        other face, or more than one.
    """
    count = len(faces)
    ends = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    ends = np.sort(ends, axis=1)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ordered = ends[order]
    first = np.ones(len(ordered), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.cumsum(first) - 1
    pairs = np.flatnonzero(first)[np.bincount(group) == 2]
    out = np.full(3 * count, -1, np.int32)
    out[order[pairs]] = order[pairs + 1] // 3
    out[order[pairs + 1]] = order[pairs] // 3
    return out.reshape(count, 3)


def _outlines(xy, faces, neighbours):
    """(B, F, 3) bool: which edges bound what is seen of their face."""
    corners = xy[:, faces]
    a, b, c = corners[:, :, 0], corners[:, :, 1], corners[:, :, 2]
    side = jnp.sign(
        (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]
    )
    turned = side[:, :, None] != side[:, jnp.maximum(neighbours, 0)]
    return (neighbours < 0)[None] | turned


def _blend(image, index, depth, xy, faces, outline, positions, steeper):
    """What pixels gain from their left and right neighbours, (B, H, W, C)."""
    batch, height, width, _ = image.shape
    x, y = positions
    left, right = index[:, :, :-1], index[:, :, 1:]
    changes = left != right
    # The nearer of the two; -1, at infinity, is never it unless both are.
    of_left = depth[:, :, :-1] <= depth[:, :, 1:]
    face = jnp.where(of_left, left, right)
    changes &= face >= 0
    face = jnp.where(changes, face, 0)
    ids = faces[face].reshape(batch, -1)
    corners = gather_rows(xy, ids).reshape(*face.shape, 3, 2)
    corners = jnp.where(changes[..., None, None], corners, 0.0)
    open_edge = jnp.take_along_axis(outline, face.reshape(batch, -1, 1), axis=1)
    open_edge = open_edge.reshape(*face.shape, 3)
    start, stop = corners, jnp.roll(corners, -1, axis=-2)
    line = y[:, None, None]
    run, rise = stop[..., 0] - start[..., 0], stop[..., 1] - start[..., 1]
    # Half open, so that of two edges that meet on the line one counts.
    meets = (start[..., 1] <= line) != (stop[..., 1] <= line)
    meets &= open_edge & changes[..., None] & steeper(jnp.abs(run), jnp.abs(rise))
    rise = jnp.where(meets, rise, 1.0)
    cross = start[..., 0] + (line - start[..., 1]) * run / rise
    reach = cross - x[:-1, None]  # 0 at the left pixel, 1 at the right one
    meets &= (reach >= 0.0) & (reach <= 1.0)
    # A face leaves the line once; were there two, the first one counts.
    pick = meets & (jnp.cumsum(meets, axis=-1) == 1)
    found = jnp.any(pick, axis=-1)
    reach = jnp.sum(jnp.where(pick, reach, 0.0), axis=-1)
    excess = jnp.where(found, reach - 0.5, 0.0)[..., None]
    # The edge lies beyond the middle: the left colour covers some of the right pixel.
    step = image[:, :, :-1] - image[:, :, 1:]
    to_right = jnp.maximum(excess, 0.0) * step
    to_left = jnp.minimum(excess, 0.0) * step
    return jnp.pad(to_right, ((0, 0), (0, 0), (1, 0), (0, 0))) + jnp.pad(
        to_left, ((0, 0), (0, 0), (0, 1), (0, 0))
    )
