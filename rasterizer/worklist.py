"""The exact work list: one item for each (primitive, sample of its box) pair.

A primitive is a triangle, or a grid cell of two triangles. The boxes give a count of
candidate samples each, a prefix sum lays all pairs out in one flat list, and a chunk of
that list at a time is worked on in a while loop that runs until the list is done:
static shapes, no capacity to overflow, every face drawn whatever its size.

XLA's CPU compiler recomputes a cheap producer in each of its consumers, straight
through `optimization_barrier`, which costs several times the work itself here. `apart`
keeps a stage's results from being recomputed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import coverage
from .batching import like
from .coverage import Arithmetic, Rules, SampleGrid

_INT32_MAX = 2**31 - 1
_LIST_LIMIT = 2**30  # items of one list, however large the boxes
_CHUNK = 2**16  # XLA's CPU compiler uses threads above half of it; caches hold this
_RADIX = 8  # passes over a chunk that a running maximum is spared, against their cost
SIDE_BITS = 15  # an image has at most 2**15 samples a side

# So that z**2 and 1 / z**2, which gradients take, are ordinary float32 numbers.
MIN_DEPTH, MAX_DEPTH = 1e-15, 1e15


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a primitive is made of; static.

    Attributes:
        triangles: of its corners.
        offsets: corner k of primitive p lies at p + offsets[k] in the k-th planes. They
            are longer than the list of primitives by the largest offset.
    """

    triangles: tuple[tuple[int, int, int], ...]
    offsets: tuple[int, ...]


MESH = Layout(((0, 1, 2),), (0, 0, 0))


def cell_layout(width: int) -> Layout:
    """Cells of a row-major grid of vertices, each named by its top left vertex, so that
    one plane serves all corners: TL, BL, TR, BR."""
    return Layout(((0, 1, 2), (2, 1, 3)), (0, width, 1, width + 1))


class Primitives(NamedTuple):
    """The corners of all primitives of a batch, flattened, batch-major; see `Layout`.

    Attributes:
        x, y: one int32 plane for each corner, snapped.
        inverse_depth: one float32 plane for each corner; 0 marks a bad vertex.
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
        wide: bool (); a primitive of the chunk needs wide arithmetic.
    """

    primitive: jax.Array
    mesh: jax.Array
    row: jax.Array
    column: jax.Array
    sample: jax.Array
    step: jax.Array
    live: jax.Array
    wide: jax.Array


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
        lambda *_: jax.tree.map(
            lambda s: like(jnp.zeros(s.shape, s.dtype), s, worthwhile), shapes
        ),
        *args,
    )


def snap_vertices(
    vertices: jax.Array, grid: SampleGrid, rules: Rules
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Snapped x, y and float32 inverse depth, 0 where a vertex cannot be drawn."""
    x, y, z = vertices[..., 0], vertices[..., 1], vertices[..., 2]
    limit = 2.0**29 / (grid.supersample * 2**grid.bits)  # int32 must not overflow
    ok = (z > rules.near) & (z < rules.far) & (z >= MIN_DEPTH) & (z <= MAX_DEPTH)
    ok &= (jnp.abs(x) < limit) & (jnp.abs(y) < limit)
    depth = jnp.where(ok, z, 1.0).astype(jnp.float32)
    inverse = coverage.divide(jnp.ones_like(depth), depth)
    (shift_x, shift_y), (centre_x, centre_y) = grid.shift, grid.centre
    xi = coverage.snap(jnp.where(ok, x, 0.0), shift_x, centre_x, grid)
    yi = coverage.snap(jnp.where(ok, y, 0.0), shift_y, centre_y, grid)
    reach = (coverage.MAX_SPAN // 2) << grid.bits
    ok &= (jnp.abs(xi) <= reach) & (jnp.abs(yi) <= reach)
    return jnp.where(ok, xi, 0), jnp.where(ok, yi, 0), jnp.where(ok, inverse, 0.0)


def bound(
    primitives: Primitives,
    layout: Layout,
    exists: jax.Array | None,
    grid: SampleGrid,
    margin: int = 0,
) -> Boxes:
    """Sample boxes of the drawable triangles of each primitive.

    Args:
        margin: by which all are wider on every side, units of 2**-bits samples.
        exists: (N,) bool; False for a primitive that is none; None if all are.
    """
    n = primitives.x[0].size - max(layout.offsets)
    primitives = Primitives(
        *(
            tuple(v[k : k + n] for v, k in zip(q, layout.offsets, strict=True))
            for q in primitives
        )
    )
    triangles = layout.triangles
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
    if exists is not None:
        any_used &= exists

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
        first = -((margin - low) >> grid.bits) + centre - extra
        last = ((high + margin) >> grid.bits) + centre + extra
        first = jnp.clip(first, 0, size)
        return first, jnp.maximum(jnp.clip(last, -1, size - 1) - first + 1, 0)

    low_x, high_x = extent(primitives.x)
    low_y, high_y = extent(primitives.y)
    span = jnp.maximum(high_x - low_x, high_y - low_y)
    large = any_used & (span > coverage.SMALL_SPAN)
    # A face snapped to a coarser grid may reach a sample beyond its box.
    extra = large.astype(jnp.int32)
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
):
    """Runs `work(items, ranges, state) -> state` on all items, a chunk at a time.

    A chunk's runs start anew: the first item of one may continue a primitive's run.
    """
    state = like(state, boxes)
    n = boxes.count.shape[0]
    chunk = min(max(batch * grid.samples, 1024), _CHUNK)
    per_mesh = n // batch
    # The list of one block must not overflow int32, whatever the boxes.
    block = min(n, max(1, _LIST_LIMIT // grid.samples))

    # Gathers are what an item costs: one number instead of two.
    place = boxes.row << SIDE_BITS | boxes.column
    extent = boxes.large.astype(jnp.int32) << (SIDE_BITS + 1) | boxes.width

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
            width = take(extent, p)
            wide = jnp.any(width >= 2 << SIDE_BITS)
            width = width & (2 << SIDE_BITS) - 1
            corner = take(place, p)
            row = _divide(k, width, grid)
            column = (corner & (1 << SIDE_BITS) - 1) + (k - row * width)
            row = (corner >> SIDE_BITS) + row
            mesh = p // per_mesh
            sample = mesh * grid.samples + row * grid.columns + column
            items = Items(p, mesh, row, column, sample, k, live, wide)
            ranges = Ranges(base, begin, stop, longest)
            return origin + chunk, work(items, ranges, state)

        _, state = jax.lax.while_loop(
            lambda carry: carry[0] < total,
            run_chunk,
            (like(jnp.int32(0), total), state),
        )
        return state

    blocks = math.ceil(n / block)
    if blocks == 1:
        return run_block(jnp.int32(0), state)
    return jax.lax.fori_loop(
        0, blocks, lambda i, s: run_block((i * block).astype(jnp.int32), s), state
    )


def running(x, longest, combine):
    """Multiplies the backward reach of each item of each array by _RADIX until it spans
    the longest run. A loop, not `associative_scan`, which takes seconds to compile.

    Args:
        combine: (here, back, distance) -> here with what lies `distance` items back.
    """
    size = x[0].size

    def grow(carry):
        reach, x = carry
        padded = [jnp.concatenate([jnp.zeros_like(v), v]) for v in x]
        for k in range(1, _RADIX):
            start = jnp.maximum(size - k * reach, 0)
            back = [jax.lax.dynamic_slice(v, (start,), (size,)) for v in padded]
            x = [combine(v, b, k * reach) for v, b in zip(x, back, strict=True)]
        return _RADIX * reach, x

    start = like((jnp.int32(1), x), longest)
    return jax.lax.while_loop(lambda carry: carry[0] < longest, grow, start)[1]


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
    layout: Layout,
    *,
    batch: int,
    grid: SampleGrid,
    facing: int = 0,
) -> jax.Array:
    """The nearest face at each sample: (batch, rows * columns) int32, -1 where empty.

    Face ids count within a mesh: triangle t of primitive p has id t * P + p, with P the
    primitives of one mesh.
    """
    n = boxes.count.size
    samples = batch * grid.samples
    if n == 0 or samples == 0:
        return jnp.full((batch, grid.samples), -1, jnp.int32)
    test = key_of_items(primitives, layout, grid, facing)
    near, primitive = nearest_items(boxes, test, batch=batch, grid=grid)
    # The lowest bit of the key says that triangle 0 won.
    face = jnp.where(near & 1 == 1, primitive, primitive + n // batch)
    return jnp.where(near > 0, face, -1).reshape(batch, grid.samples)


def key_of_items(
    primitives: Primitives, layout: Layout, grid: SampleGrid, facing: int
) -> Callable:
    """A function from items to `nearest_of` of their primitives and samples."""
    offsets = _pack_offsets(primitives, layout)

    def test(items: Items):
        # Wide arithmetic gives the same numbers wherever the narrow one is exact.
        return jax.lax.cond(
            items.wide,
            lambda i: _test(primitives, offsets, i, layout, grid, facing, wide=True),
            lambda i: _test(primitives, offsets, i, layout, grid, facing, wide=False),
            items,
        )

    return test


def nearest_items(
    boxes: Boxes, test: Callable, *, batch: int, grid: SampleGrid, shown=None
) -> tuple[jax.Array, jax.Array]:
    """The largest key at each sample, and the smallest primitive that has it there.

    Args:
        boxes: of N > 0 primitives.
        test: from items to int32 keys; 0 or less where a primitive is not to be seen.
        shown: the same two of a layer that was found before, to find the next one: what
            has a smaller key, or the same and a larger primitive; None for the first.

    Returns:
        Both (batch * samples,) int32; key 0 and the largest int32 where nothing is.
    """
    samples = batch * grid.samples
    per_mesh = boxes.count.size // batch

    def draw(items, ranges, state):
        del ranges
        near_buffer, primitive_buffer = state
        key = test(items)
        within = items.primitive - items.mesh * per_mesh
        if shown is not None:
            here = jnp.minimum(items.sample, samples - 1)
            last_key, last = take(shown[0], here), take(shown[1], here)
            after = (key < last_key) | ((key == last_key) & (within > last))
            key = jnp.where(after, key, 0)
        where = jnp.where(items.live & (key > 0), items.sample, samples)
        updated = near_buffer.at[where].max(key, mode="drop")
        primitive_buffer = jnp.where(
            updated > near_buffer, _INT32_MAX, primitive_buffer
        )
        best = take(updated, jnp.minimum(where, samples - 1))
        where = jnp.where(best == key, where, samples)
        primitive_buffer = primitive_buffer.at[where].min(within, mode="drop")
        return updated, primitive_buffer

    return for_each_chunk(
        boxes,
        (jnp.zeros(samples, jnp.int32), jnp.full(samples, _INT32_MAX, jnp.int32)),
        draw,
        batch=batch,
        grid=grid,
    )


def _pack_offsets(primitives: Primitives, layout: Layout) -> list[jax.Array]:
    """Corners 1, 2, ... relative to corner 0, x and y in one int32; for primitives that
    are not `large`, whose spans fit 16 bits."""
    n = primitives.x[0].size - max(layout.offsets)

    def relative(planes, k):
        first = layout.offsets[0]
        at = layout.offsets[k]
        return planes[k][at : at + n] - planes[0][first : first + n]

    return [
        relative(primitives.x, k) << 16 | relative(primitives.y, k) & 0xFFFF
        for k in range(1, len(layout.offsets))
    ]


def _test(
    primitives, offsets, items: Items, layout: Layout, grid, facing: int, *, wide: bool
):
    """The nearest triangle's nearness, with the lowest bit set for triangle 0, so that
    it wins a tie; 0 where none covers the sample.

    One output: with two, XLA would compute everything twice.
    """

    def gather(planes):
        return [
            take(v, items.primitive + k)
            for v, k in zip(planes, layout.offsets, strict=True)
        ]

    column, row = items.column - grid.centre[0], items.row - grid.centre[1]
    inverse = gather(primitives.inverse_depth)
    origin = 0, 0
    if wide:
        xs, ys = gather(primitives.x), gather(primitives.y)
    else:
        first = items.primitive + layout.offsets[0]
        packed = [take(v, items.primitive) for v in offsets]
        xs = [0, *(v >> 16 for v in packed)]
        ys = [0, *(v << 16 >> 16 for v in packed)]
        origin = take(primitives.x[0], first), take(primitives.y[0], first)
    return nearest_of(
        *(xs, ys, inverse, column, row, layout, grid, facing),
        wide=wide,
        origin=origin,
        arithmetic=coverage.XLA,
    )


def nearest_of(
    xs,
    ys,
    inverse,
    column,
    row,
    layout: Layout,
    grid: SampleGrid,
    facing: int,
    *,
    wide: bool,
    origin=(0, 0),
    arithmetic: Arithmetic,
):
    """`coverage.nearness` of a primitive's nearest triangle; 0 where none covers.

    The lowest bit is set for triangle 0, so that it wins a tie.

    Args:
        xs, ys, inverse: of its corners; snapped, and inverse depth.
        column, row: of the sample, from the middle one.
        origin: x and y that xs and ys are relative to; (0, 0) if wide.
    """

    def nearness(corners):
        x, y = [xs[i] for i in corners], [ys[i] for i in corners]
        if wide:
            shift = coarsening(x + y, arithmetic.step)
            half = (1 << shift) >> 1
            x, y = ([(v + half) >> shift for v in q] for q in (x, y))
            unit = 1 << (grid.bits - shift)
            sample = column * unit, row * unit
            edge, combine = coverage.wide_edge, coverage.wide_nearness
        else:
            unit = 1 << grid.bits
            sample = column * unit - origin[0], row * unit - origin[1]
            edge, combine = coverage.edge, coverage.nearness
        edges = [
            edge(x[i], y[i], x[j], y[j], *sample) for i, j in ((1, 2), (2, 0), (0, 1))
        ]
        return combine(edges, [inverse[i] for i in corners], facing, arithmetic)

    best = nearness(layout.triangles[0])
    best = jnp.where(best > 0, best | 1, 0)
    for corners in layout.triangles[1:]:
        best = jnp.maximum(best, nearness(corners))
    return best


def coarsening(coordinates, step: Callable = lambda value: value) -> jax.Array:
    """By how many bits the snapped coordinates of a face must be rounded to keep to
    +-MAX_SPAN / 2; 0 for nearly all.

    Args:
        step: done to what is computed on the way. JAX 0.11.2 for CUDA 13 computes 0
            whatever the coordinates (on an H200) if all of it is one kernel, and the
            right number if each operation is one.
    """
    reach = step(jnp.abs(coordinates[0]))
    for value in coordinates[1:]:
        reach = step(jnp.maximum(reach, step(jnp.abs(value))))
    shift = jnp.zeros_like(reach)
    for s in range(coverage.MAX_SUBPIXEL_BITS):
        beyond = step(reach > (coverage.MAX_SPAN // 2) << s)
        shift = step(shift + beyond.astype(jnp.int32))
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
