"""The exact work list: one item for each (primitive, sample of its box) pair.

A primitive is a triangle, or a grid cell of two triangles. The boxes give a count of
candidate samples each, a prefix sum lays all pairs out in one flat list, and a chunk of
that list at a time is tested in a while loop that runs until the list is done: static
shapes, no capacity to overflow, every face drawn whatever its size.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rasterizer import coverage
from rasterizer.coverage import SampleGrid

_INT32_MAX = 2**31 - 1


class Primitives(NamedTuple):
    """The corners of all primitives of a batch, flattened, batch-major.

    Attributes:
        x, y: one (N,) int32 for each corner, snapped.
        inverse_depth: one (N,) float32 for each corner; 0 marks a bad vertex.
    """

    x: tuple[jax.Array, ...]
    y: tuple[jax.Array, ...]
    inverse_depth: tuple[jax.Array, ...]


class Boxes(NamedTuple):
    """The samples within each primitive's bounds, clipped to the image; all (N,) int32.

    Attributes:
        column, row: first sample.
        width: columns; at least 1, so that it can divide.
        count: samples; 0 for a primitive that cannot be drawn.
    """

    column: jax.Array
    row: jax.Array
    width: jax.Array
    count: jax.Array


def snap_vertices(
    vertices: jax.Array, grid: SampleGrid, near: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Snapped x, y and float32 inverse depth, 0 where a vertex cannot be drawn."""
    x, y, z = vertices[..., 0], vertices[..., 1], vertices[..., 2]
    limit = 2.0**29 / (grid.supersample * 2**grid.bits)  # int32 must not overflow
    ok = jnp.isfinite(x) & jnp.isfinite(y) & jnp.isfinite(z) & (z > near)
    ok &= (jnp.abs(x) < limit) & (jnp.abs(y) < limit)
    inverse = 1.0 / jnp.where(ok, z, 1.0).astype(jnp.float32)
    ok &= jnp.isfinite(inverse) & (inverse > 0.0)
    (shift_x, shift_y), (centre_x, centre_y) = grid.shift, grid.centre
    xi = coverage.snap(jnp.where(ok, x, 0.0), shift_x, centre_x, grid)
    yi = coverage.snap(jnp.where(ok, y, 0.0), shift_y, centre_y, grid)
    half = coverage.MAX_SPAN // 2
    ok &= (jnp.abs(xi) <= half) & (jnp.abs(yi) <= half)
    return jnp.where(ok, xi, 0), jnp.where(ok, yi, 0), jnp.where(ok, inverse, 0.0)


def bound(
    primitives: Primitives, triangles: tuple[tuple[int, int, int], ...], grid: SampleGrid
) -> Boxes:
    """Sample boxes of the drawable triangles of each primitive."""
    drawable = [
        (primitives.inverse_depth[a] > 0)
        & (primitives.inverse_depth[b] > 0)
        & (primitives.inverse_depth[c] > 0)
        for a, b, c in triangles
    ]
    used = []
    for k in range(len(primitives.x)):
        mine = [d for d, t in zip(drawable, triangles, strict=True) if k in t]
        used.append(mine[0] if len(mine) == 1 else mine[0] | mine[1])

    def limits(values, centre, size):
        low = high = None
        for value, use in zip(values, used, strict=True):
            first = jnp.where(use, value, _INT32_MAX)
            last = jnp.where(use, value, -_INT32_MAX)
            low = first if low is None else jnp.minimum(low, first)
            high = last if high is None else jnp.maximum(high, last)
        # ceil and floor to whole samples; the huge sentinels of an undrawable
        # primitive give an empty range.
        first = -((-low) >> grid.bits) + centre
        last = (high >> grid.bits) + centre
        first = jnp.clip(first, 0, size)
        return first, jnp.maximum(jnp.clip(last, -1, size - 1) - first + 1, 0)

    column, width = limits(primitives.x, grid.centre[0], grid.columns)
    row, height = limits(primitives.y, grid.centre[1], grid.rows)
    return Boxes(column, row, jnp.maximum(width, 1), width * height)


def visible_faces(
    primitives: Primitives,
    triangles: tuple[tuple[int, int, int], ...],
    *,
    batch: int,
    grid: SampleGrid,
) -> jax.Array:
    """The nearest face at each sample: (batch, rows * columns) int32, -1 where empty.

    Face ids count within a mesh: triangle t of primitive p has id t * P + p, with P the
    primitives of one mesh.
    """
    n = primitives.x[0].shape[0]
    samples = grid.samples
    if n == 0 or batch * samples == 0:
        return jnp.full((batch, samples), -1, jnp.int32)
    per_mesh = n // batch
    boxes = bound(primitives, triangles, grid)
    boxes, primitives = jax.lax.optimization_barrier((boxes, primitives))

    # The list of one block must not overflow int32, whatever the boxes.
    block = min(n, max(1, _INT32_MAX // 2 // samples))
    blocks = math.ceil(n / block)
    chunk = max(1024, 128 * math.ceil(batch * samples * 0.5 / 128))

    state = (
        jnp.zeros(batch * samples, jnp.int32),
        jnp.full(batch * samples, _INT32_MAX, jnp.int32),
    )

    def draw_block(first, state):
        # The last block is moved back to end with the list; skip what is drawn already.
        first_safe = jnp.minimum(first, n - block)
        member = first_safe + jnp.arange(block, dtype=jnp.int32)
        count = jax.lax.dynamic_slice(boxes.count, (first_safe,), (block,))
        count = jnp.where(member >= first, count, 0)
        end = jnp.cumsum(count)
        start = end - count
        start, end = jax.lax.optimization_barrier((start, end))
        total = end[-1]

        def draw_chunk(carry):
            origin, near_buffer, face_buffer = carry
            # Items find their primitive: scatter the start marks, running maximum.
            inside = (start < origin + chunk) & (end > origin) & (count > 0)
            slot = jnp.where(inside, jnp.maximum(start - origin, 0), chunk)
            marks = jnp.zeros(chunk, jnp.int32).at[slot].max(
                jnp.arange(block, dtype=jnp.int32), mode="drop"
            )
            local = jax.lax.cummax(marks)
            local = jax.lax.optimization_barrier(local)
            item = origin + jnp.arange(chunk, dtype=jnp.int32)
            live = item < total
            p = local + first_safe
            k = item - start[local]
            width = boxes.width[p]
            row = k // width
            column = boxes.column[p] + (k - row * width)
            row = boxes.row[p] + row
            mesh = p // per_mesh
            sample = mesh * samples + row * grid.columns + column
            px = (column - grid.centre[0]) << grid.bits
            py = (row - grid.centre[1]) << grid.bits
            xs = [v[p] for v in primitives.x]
            ys = [v[p] for v in primitives.y]
            inverse = [v[p] for v in primitives.inverse_depth]

            best = jnp.zeros(chunk, jnp.int32)
            face = jnp.zeros(chunk, jnp.int32)
            within = p - mesh * per_mesh
            for t, corners in enumerate(triangles):
                a, b, c = corners
                edges = [
                    coverage.edge(xs[i], ys[i], xs[j], ys[j], px, py)
                    for i, j in ((b, c), (c, a), (a, b))
                ]
                near = coverage.nearness(edges, [inverse[i] for i in corners])
                face = jnp.where(near > best, t * per_mesh + within, face)
                best = jnp.maximum(best, near)
            hit = live & (best > 0)
            where = jnp.where(hit, sample, batch * samples)
            where, best, face = jax.lax.optimization_barrier((where, best, face))
            updated = near_buffer.at[where].max(best, mode="drop")
            face_buffer = jnp.where(updated > near_buffer, _INT32_MAX, face_buffer)
            wins = hit & (updated[jnp.where(hit, sample, 0)] == best)
            where = jnp.where(wins, sample, batch * samples)
            face_buffer = face_buffer.at[where].min(face, mode="drop")
            return origin + chunk, updated, face_buffer

        _, near_buffer, face_buffer = jax.lax.while_loop(
            lambda carry: carry[0] < total, draw_chunk, (jnp.int32(0), *state)
        )
        return near_buffer, face_buffer

    if blocks == 1:
        state = draw_block(jnp.int32(0), state)
    else:
        state = jax.lax.fori_loop(
            0, blocks, lambda i, s: draw_block((i * block).astype(jnp.int32), s), state
        )
    face = jnp.where(state[0] > 0, state[1], -1)
    return face.reshape(batch, samples)
