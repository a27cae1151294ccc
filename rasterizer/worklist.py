"""The exact work list: one item for each (primitive, sample of its box) pair.

A primitive is a triangle, or a grid cell of two triangles. The boxes give a count of
candidate samples each, a prefix sum lays all pairs out in one flat list, and a chunk of
that list at a time is worked on in a while loop that runs until the list is done:
static shapes, no capacity to overflow, every face drawn whatever its size.

XLA's CPU compiler recomputes a cheap producer in each of its consumers, straight
through `optimization_barrier`, which costs several times the work itself here. `apart`
keeps a stage's results from being recomputed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rasterizer import coverage
from rasterizer.coverage import SampleGrid

_INT32_MAX = 2**31 - 1
_LIST_LIMIT = 2**30  # items of one list, however large the boxes

# So that z**2 and 1 / z**2, which gradients take, are ordinary float32 numbers.
MIN_DEPTH, MAX_DEPTH = 1e-15, 1e15

Triangles = tuple[tuple[int, int, int], ...]
MESH: Triangles = ((0, 1, 2),)
CELL: Triangles = ((0, 1, 2), (2, 1, 3))  # of corners TL, BL, TR, BR


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
    """The samples within each primitive's bounds, clipped to the image; all (N,).

    Attributes:
        column, row: first sample, int32.
        width: columns, int32; at least 1, so that it can divide.
        count: samples, int32; 0 for a primitive that cannot be drawn.
        large: bool; the span needs wide arithmetic.
    """

    column: jax.Array
    row: jax.Array
    width: jax.Array
    count: jax.Array
    large: jax.Array


class Items(NamedTuple):
    """A chunk of the list; all (chunk,).

    Attributes:
        primitive: into the flattened primitives.
        mesh: the batch member.
        row, column: of the sample.
        sample: into the flattened samples of the batch.
        step: int32; how many items of the same primitive precede this one.
        live: bool; False beyond the end of the list.
    """

    primitive: jax.Array
    mesh: jax.Array
    row: jax.Array
    column: jax.Array
    sample: jax.Array
    step: jax.Array
    live: jax.Array


class Ranges(NamedTuple):
    """Which items of a chunk belong to which primitive.

    Attributes:
        base: the first primitive of the block; the others follow.
        begin, stop: (block,) int32; its items, clipped to [0, chunk].
        longest: no primitive has more items than this in the chunk.
    """

    base: jax.Array
    begin: jax.Array
    stop: jax.Array
    longest: jax.Array


def apart(worthwhile: jax.Array, stage: Callable, *args):
    """`stage(*args)` if `worthwhile`, else zeros.

    A conditional, which XLA does not fuse across, unless `worthwhile` is known to the
    compiler.
    """
    shapes = jax.eval_shape(stage, *args)
    return jax.lax.cond(
        worthwhile,
        stage,
        lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        *args,
    )


def snap_vertices(
    vertices: jax.Array, grid: SampleGrid, near: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Snapped x, y and float32 inverse depth, 0 where a vertex cannot be drawn."""
    x, y, z = vertices[..., 0], vertices[..., 1], vertices[..., 2]
    limit = 2.0**29 / (grid.supersample * 2**grid.bits)  # int32 must not overflow
    ok = (z > near) & (z >= MIN_DEPTH) & (z <= MAX_DEPTH)
    ok &= (jnp.abs(x) < limit) & (jnp.abs(y) < limit)
    inverse = 1.0 / jnp.where(ok, z, 1.0).astype(jnp.float32)
    (shift_x, shift_y), (centre_x, centre_y) = grid.shift, grid.centre
    xi = coverage.snap(jnp.where(ok, x, 0.0), shift_x, centre_x, grid)
    yi = coverage.snap(jnp.where(ok, y, 0.0), shift_y, centre_y, grid)
    reach = (coverage.MAX_SPAN // 2) << grid.bits
    ok &= (jnp.abs(xi) <= reach) & (jnp.abs(yi) <= reach)
    return jnp.where(ok, xi, 0), jnp.where(ok, yi, 0), jnp.where(ok, inverse, 0.0)


def bound(
    primitives: Primitives, triangles: Triangles, grid: SampleGrid, margin: int = 0
) -> Boxes:
    """Sample boxes of the drawable triangles of each primitive, widened by `margin`."""
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
    any_used = drawable[0] if len(drawable) == 1 else drawable[0] | drawable[1]

    def extent(values):
        ends = (
            (
                jnp.where(use, value, _INT32_MAX // 2),
                jnp.where(use, value, -_INT32_MAX // 2),
            )
            for value, use in zip(values, used, strict=True)
        )
        low, high = next(ends)
        for first, last in ends:
            low, high = jnp.minimum(low, first), jnp.maximum(high, last)
        return low, high

    def limits(low, high, centre, size, extra):
        first = -((-low) >> grid.bits) + centre - extra
        last = (high >> grid.bits) + centre + extra
        first = jnp.clip(first, 0, size)
        return first, jnp.maximum(jnp.clip(last, -1, size - 1) - first + 1, 0)

    low_x, high_x = extent(primitives.x)
    low_y, high_y = extent(primitives.y)
    span = jnp.maximum(high_x - low_x, high_y - low_y)
    large = any_used & (span > coverage.SMALL_SPAN)
    # A face snapped to a coarser grid may reach a sample beyond its box.
    extra = margin + large.astype(jnp.int32)
    column, width = limits(low_x, high_x, grid.centre[0], grid.columns, extra)
    row, height = limits(low_y, high_y, grid.centre[1], grid.rows, extra)
    count = jnp.where(any_used, width * height, 0)
    return Boxes(column, row, jnp.maximum(width, 1), count, large)


def for_each_chunk(
    boxes: Boxes,
    state,
    work: Callable,
    *,
    batch: int,
    grid: SampleGrid,
    chunk: int,
):
    """Runs `work(items, ranges, state) -> state` on all items, a chunk at a time.

    A chunk's runs start anew: the first item of one may continue a primitive's run.
    """
    n = boxes.count.shape[0]
    per_mesh = n // batch
    # The list of one block must not overflow int32, whatever the boxes.
    block = min(n, max(1, _LIST_LIMIT // grid.samples))

    def run_block(first, state):
        # The last block is moved back to end with the list; skip what is done already.
        base = jnp.minimum(first, n - block)
        mine = jax.lax.dynamic_slice(boxes.count, (base,), (block,))
        mine = jnp.where(base + jnp.arange(block, dtype=jnp.int32) >= first, mine, 0)
        end = jnp.cumsum(mine)
        start = end - mine
        total = end[-1]
        longest = jnp.minimum(jnp.max(mine), chunk)

        def run_chunk(carry):
            origin, state = carry
            begin = jnp.clip(start - origin, 0, chunk)
            stop = jnp.clip(end - origin, 0, chunk)
            # Items find their primitive: scatter the start marks, running maximum.
            slot = jnp.where(stop > begin, begin, chunk)
            marks = jnp.zeros(chunk, jnp.int32)
            marks = marks.at[slot].max(jnp.arange(block, dtype=jnp.int32), mode="drop")
            (local,) = running(
                [marks], longest, lambda here, back, _: jnp.maximum(here, back)
            )
            item = origin + jnp.arange(chunk, dtype=jnp.int32)
            live = item < total
            p = local + base
            k = item - take(start, local)
            k = jnp.where(live, k, 0)
            width = take(boxes.width, p)
            row = _divide(k, width, grid)
            column = take(boxes.column, p) + (k - row * width)
            row = take(boxes.row, p) + row
            mesh = p // per_mesh
            sample = mesh * grid.samples + row * grid.columns + column
            items = Items(p, mesh, row, column, sample, k, live)
            ranges = Ranges(base, begin, stop, longest)
            return origin + chunk, work(items, ranges, state)

        _, state = jax.lax.while_loop(
            lambda carry: carry[0] < total, run_chunk, (jnp.int32(0), state)
        )
        return state

    blocks = math.ceil(n / block)
    if blocks == 1:
        return run_block(jnp.int32(0), state)
    return jax.lax.fori_loop(
        0, blocks, lambda i, s: run_block((i * block).astype(jnp.int32), s), state
    )


def running(x, longest, combine):
    """Doubles the backward reach of each item of each array until it spans the longest
    run. A loop, not `associative_scan`, which takes seconds to compile."""
    size = x[0].size

    def double(carry):
        reach, x = carry
        padded = [jnp.concatenate([jnp.zeros_like(v), v]) for v in x]
        back = [jax.lax.dynamic_slice(v, (size - reach,), (size,)) for v in padded]
        return 2 * reach, [combine(v, b, reach) for v, b in zip(x, back, strict=True)]

    return jax.lax.while_loop(
        lambda carry: carry[0] < longest, double, (jnp.int32(1), x)
    )[1]


def take(values, index):
    return values.at[index].get(mode="promise_in_bounds")


def _divide(k, width, grid):
    """k // width for 0 <= k < samples, width >= 1.

    Integer division does not vectorise; the float quotient of numbers this small, with
    the half that keeps it clear of whole numbers, floors to the same.
    """
    if grid.samples < 2**20:
        return jnp.floor(
            (k.astype(jnp.float32) + 0.5) / width.astype(jnp.float32)
        ).astype(jnp.int32)
    return k // width


def visible_faces(
    primitives: Primitives,
    boxes: Boxes,
    triangles: Triangles,
    *,
    batch: int,
    grid: SampleGrid,
) -> jax.Array:
    """The nearest face at each sample: (batch, rows * columns) int32, -1 where empty.

    Face ids count within a mesh: triangle t of primitive p has id t * P + p, with P the
    primitives of one mesh.
    """
    n = primitives.x[0].shape[0]
    samples = batch * grid.samples
    if n == 0 or samples == 0:
        return jnp.full((batch, grid.samples), -1, jnp.int32)
    per_mesh = n // batch

    def draw(items, ranges, state):
        del ranges
        near_buffer, primitive_buffer = state
        corners = Primitives(
            *(tuple(take(v, items.primitive) for v in q) for q in primitives)
        )
        # Wide arithmetic gives the same numbers wherever the narrow one is exact.
        key = jax.lax.cond(
            jnp.any(take(boxes.large, items.primitive)),
            lambda c, i: _test(c, i, triangles, grid, wide=True),
            lambda c, i: _test(c, i, triangles, grid, wide=False),
            corners,
            items,
        )
        where = jnp.where(items.live & (key > 0), items.sample, samples)
        updated = near_buffer.at[where].max(key, mode="drop")
        primitive_buffer = jnp.where(
            updated > near_buffer, _INT32_MAX, primitive_buffer
        )
        best = take(updated, jnp.minimum(where, samples - 1))
        where = jnp.where(best == key, where, samples)
        within = items.primitive - items.mesh * per_mesh
        primitive_buffer = primitive_buffer.at[where].min(within, mode="drop")
        return updated, primitive_buffer

    near, primitive = for_each_chunk(
        boxes,
        (jnp.zeros(samples, jnp.int32), jnp.full(samples, _INT32_MAX, jnp.int32)),
        draw,
        batch=batch,
        grid=grid,
        chunk=max(1024, math.ceil(samples / 2)),
    )
    # The lowest bit of the key says that triangle 0 won.
    face = jnp.where(near & 1 == 1, primitive, primitive + per_mesh)
    return jnp.where(near > 0, face, -1).reshape(batch, grid.samples)


def _test(corners: Primitives, items: Items, triangles, grid: SampleGrid, *, wide):
    """The nearer triangle's nearness, with the lowest bit set for triangle 0, so that
    it wins a tie; 0 where neither covers the sample.

    One output: with two, XLA would compute everything twice.
    """
    column = items.column - grid.centre[0]
    row = items.row - grid.centre[1]

    def nearness(t, a, b, c):
        xs, ys = [corners.x[i] for i in (a, b, c)], [corners.y[i] for i in (a, b, c)]
        inverse = [corners.inverse_depth[i] for i in (a, b, c)]
        if wide:
            shift = coarsening(xs + ys)
            half = (1 << shift) >> 1
            xs, ys = ([(v + half) >> shift for v in q] for q in (xs, ys))
            unit = 1 << (grid.bits - shift)
        else:
            unit = 1 << grid.bits
        px, py = column * unit, row * unit
        edge = coverage.wide_edge if wide else coverage.edge
        edges = [
            edge(xs[i], ys[i], xs[j], ys[j], px, py)
            for i, j in ((1, 2), (2, 0), (0, 1))
        ]
        near = (coverage.wide_nearness if wide else coverage.nearness)(edges, inverse)
        return jnp.where(near > 0, near | (1 if t == 0 else 0), 0)

    best = nearness(0, *triangles[0])
    for t, corner_ids in enumerate(triangles[1:], start=1):
        best = jnp.maximum(best, nearness(t, *corner_ids))
    return best


def coarsening(coordinates) -> jax.Array:
    """By how many bits the snapped coordinates of a face must be rounded to keep to
    +-MAX_SPAN / 2; 0 for nearly all."""
    reach = jnp.abs(coordinates[0])
    for value in coordinates[1:]:
        reach = jnp.maximum(reach, jnp.abs(value))
    shift = jnp.zeros_like(reach)
    for s in range(coverage.MAX_SUBPIXEL_BITS):
        shift += (reach > (coverage.MAX_SPAN // 2) << s).astype(jnp.int32)
    return shift


def add_runs(terms, items: Items, ranges: Ranges, totals):
    """Adds the sum of each primitive's items to its total, in a fixed order.

    Args:
        terms: arrays (chunk,), 0 where an item does not count.
        totals: as many arrays (N,).
    """
    sums = running(
        terms,
        ranges.longest,
        lambda here, back, reach: jnp.where(items.step >= reach, here + back, here),
    )
    owns = ranges.stop > ranges.begin
    last = jnp.maximum(ranges.stop - 1, 0)
    return [
        jax.lax.dynamic_update_slice(
            total,
            jax.lax.dynamic_slice(total, (ranges.base,), owns.shape)
            + jnp.where(owns, take(new, last), 0.0),
            (ranges.base,),
        )
        for total, new in zip(totals, sums, strict=True)
    ]


def sum_by_face(
    boxes: Boxes,
    face_index: jax.Array,
    values: tuple[jax.Array, ...],
    *,
    triangle_count: int,
    batch: int,
    grid: SampleGrid,
) -> list[list[jax.Array]]:
    """Sums values over the samples that each face won, in a fixed order, by gathers.

    The work list holds the samples of a primitive next to one another, so that a
    segmented running sum ends with the primitive's total.

    Args:
        boxes: of the primitives that were drawn.
        face_index: (batch, samples) int32.
        values: each (batch, samples).

    Returns:
        One list for each triangle of a primitive, of one (N,) array for each value.
    """
    n = boxes.count.shape[0]
    per_mesh = n // batch
    face_index = face_index.reshape(-1)
    values = tuple(v.reshape(-1) for v in values)
    chunk = max(1024, math.ceil(batch * grid.samples / 2))

    def add(items, ranges, totals):
        face = jnp.where(items.live, take(face_index, items.sample), -1)
        within = items.primitive - items.mesh * per_mesh
        terms = [
            jnp.where(face == within + t * per_mesh, take(v, items.sample), 0.0)
            for t in range(triangle_count)
            for v in values
        ]
        return add_runs(terms, items, ranges, totals)

    count = len(values)
    totals = for_each_chunk(
        boxes,
        [jnp.zeros(n, values[0].dtype) for _ in range(triangle_count * count)],
        add,
        batch=batch,
        grid=grid,
        chunk=chunk,
    )
    return [totals[t * count : (t + 1) * count] for t in range(triangle_count)]
