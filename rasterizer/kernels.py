"""The work of the work list as kernels for CUDA, by Pallas and its Triton compiler.

A program has 32 primitives, one to each lane of a warp, and walks the samples of their
boxes. First each lane walks its own, as far as that keeps enough of them busy. Then
what is left over, of the larger ones, is taken one box after the other, 32 samples at a
time. Boxes of more samples than `HUGE` wait for kernels in which many programs share
them.

Forward there are two walks: nearness goes into an atomic maximum; then whoever equals
the maximum at a sample puts its index into an atomic minimum. Both are integers in
truth, so that the order of programs shows nowhere. Backward a walk adds up what a
primitive's triangles have won, each in one place and in a fixed order.

Atomic extrema of arrays exist for floats alone in Pallas before JAX 0.12, where they
are made of those of the bits. So the buffers are float32 that hold the bits of
integers, none of them negative.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas
from jax.experimental.pallas import triton

from rasterizer import worklist
from rasterizer.batching import like, result_like
from rasterizer.coverage import Arithmetic, SampleGrid
from rasterizer.worklist import SIDE_BITS, Boxes, Layout, Primitives

LANES = 32  # of a program: one warp, since primitives that differ wait for one another
_OWN_STEPS = (0, 2, 4, 8, 16, 32, 64)
HUGE = 4096  # samples of a box, above which programs share it
_TEAM = 1024  # samples that a program takes at a time of a huge box
_TEAM_WARPS = 4
_TEAMS = 256  # programs that share huge boxes
_NO_PRIMITIVE = 2**31 - 1


class _Box(NamedTuple):
    """Boxes of a walk, as it finds them in memory; arrays of lanes, or scalars.

    Attributes:
        column, row: first sample.
        width: columns; at least 1.
        count: samples, of those that this walk is to visit.
        wide: whether it needs wide arithmetic.
    """

    column: Any
    row: Any
    width: Any
    count: Any
    wide: Any


class _Shape(NamedTuple):
    """What a kernel knows about a batch.

    Attributes:
        batch: of meshes.
        primitives: of one mesh.
        samples, columns: of one image.
    """

    batch: int
    primitives: int
    samples: int
    columns: int

    @property
    def blocks(self) -> int:
        """Programs that a mesh takes."""
        return math.ceil(self.primitives / LANES)

    @property
    def has_huge(self) -> bool:
        return self.samples > HUGE


def visible_faces(
    primitives: Primitives,
    boxes: Boxes,
    layout: Layout,
    *,
    batch: int,
    grid: SampleGrid,
    facing: int = 0,
    interpret: bool,
) -> jax.Array:
    """`worklist.visible_faces`.

    Args:
        interpret: evaluates the kernels by XLA, wherever: slow, for tests.
    """
    n = boxes.count.size
    if n == 0 or batch * grid.samples == 0:
        return jnp.full((batch, grid.samples), -1, jnp.int32)
    shape = _Shape(batch, n // batch, grid.samples, grid.columns)
    planes, which = _distinct([*primitives.x, *primitives.y, *primitives.inverse_depth])
    arguments = [*_pack(boxes), *planes]
    corners = partial(_load_corners, which=which, layout=layout)
    test = partial(_test, layout=layout, grid=grid, facing=facing, interpret=interpret)

    def buffer(fill):
        bits = jnp.full(batch * grid.samples, fill, jnp.int32)
        return like(_as_float(bits), arguments)

    def compete(planes, buffers, item, state):
        del planes
        _atomic(buffers[0], "max", item.sample, item.key, item.key > 0, interpret)
        return state

    def claim(planes, buffers, item, state):
        best = _load(planes[-1], item.sample, item.key > 0)
        won = (item.key > 0) & (_as_int(best) == item.key)
        _atomic(buffers[0], "min", item.sample, item.primitive, won, interpret)
        return state

    run = partial(_draw, shape=shape, corners=corners, test=test, interpret=interpret)
    near = run("nearness", compete, arguments, buffer(0))
    primitive = run("winners", claim, [*arguments, near], buffer(_NO_PRIMITIVE))
    near, primitive = _as_int(near), _as_int(primitive)
    # The lowest bit of the key says that triangle 0 won.
    face = jnp.where(near & 1 == 1, primitive, primitive + shape.primitives)
    return jnp.where(near > 0, face, -1).reshape(batch, grid.samples)


def face_sums(
    boxes: Boxes,
    face_index: jax.Array,
    values: tuple[jax.Array, ...],
    *,
    triangle_count: int,
    grid: SampleGrid,
    interpret: bool,
) -> list[list[jax.Array]]:
    """`sums.sum_by_face`, in an order that depends on the boxes of 32 primitives.

    Args:
        interpret: as for `visible_faces`.
    """
    batch, count = boxes.count.shape
    shape = _Shape(batch, count, grid.samples, grid.columns)
    flat = [v.reshape(-1) for v in values]
    k = len(flat)
    if 0 in (batch, count, grid.samples):
        totals = [jnp.zeros((batch, count), v.dtype) for v in flat]
        return [totals for _ in range(triangle_count)]

    def add(planes, item, totals):
        face = _load(planes[0], item.sample, item.live, other=-1)
        out = list(totals)
        for t in range(triangle_count):
            mine = face == item.primitive + t * count
            for j in range(k):
                term = _load(planes[1 + j], item.sample, mine)
                out[t * k + j] += term
        return out

    arguments = [
        *_pack(Boxes(*(v.reshape(-1) for v in boxes))),
        *(face_index.reshape(-1), *flat),
    ]
    dtypes = [v.dtype for v in flat] * triangle_count
    totals = _sum(add, arguments, dtypes, shape, interpret)
    totals = [v.reshape(batch, count) for v in totals]
    return [totals[t * k : (t + 1) * k] for t in range(triangle_count)]


def sum_rows(
    values: jax.Array, ids: jax.Array, count: int, *, interpret: bool
) -> jax.Array:
    """`sums.sum_rows`, without gradient; one lane adds up all rows of a target.

    Args:
        interpret: as for `visible_faces`.
    """
    batch, rows, channels = values.shape
    targets = batch * count
    if 0 in (targets, rows, channels):
        return jnp.zeros((batch, count, channels), values.dtype)
    target = ids + (jnp.arange(batch, dtype=jnp.int32) * count)[:, None]
    position = jnp.arange(batch * rows, dtype=jnp.int32)
    target, order = jax.lax.sort((target.reshape(-1), position), num_keys=1)
    # Unrolled, since a loop would wait for the host.
    ends = jnp.searchsorted(
        *(target, jnp.arange(targets, dtype=jnp.int32)),
        side="right",
        method="scan_unrolled",
    ).astype(jnp.int32)

    def kernel(ends, order, values, out):
        lane = pallas.program_id(0) * LANES + jnp.arange(LANES, dtype=jnp.int32)
        exists = lane < targets
        stop = _load(ends, lane, exists)
        begin = _load(ends, lane - 1, exists & (lane > 0))

        def add(k, totals):
            live = begin + k < stop
            row = _load(order, begin + k, live)
            return [
                total + _load(values, row * channels + c, live)
                for c, total in enumerate(totals)
            ]

        start = [jnp.zeros(LANES, values.dtype) for _ in range(channels)]
        for c, total in enumerate(_repeat(jnp.max(stop - begin), add, start)):
            _store(out, lane * channels + c, total, exists)

    given = [ends, order, values.reshape(-1)]
    (out,) = pallas.pallas_call(
        kernel,
        [result_like((targets * channels,), values.dtype, given)],
        grid=(math.ceil(targets / LANES),),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="rasterizer_rows",
    )(*given)
    return out.reshape(batch, count, channels)


# --- calls ------------------------------------------------------------------------


def _draw(
    name: str,
    visit: Callable,
    arguments: Sequence[jax.Array],
    buffer: jax.Array,
    *,
    shape: _Shape,
    corners: Callable,
    test: Callable,
    interpret: bool,
) -> jax.Array:
    """`buffer`, after `visit` has seen all items that cover their sample."""
    count = len(arguments)

    def look(planes, buffers, box, corner, item, state):
        key = test(corner, item.column, item.row, box.wide)
        item = item._replace(key=jnp.where(item.live, key, 0))
        return visit(planes, buffers, item, state)

    def small(*refs):
        (place, extent, counts, *planes), out = refs[:count], refs[count + 1 :]
        at = _Place(shape)
        box = _load_box((place, extent, counts), at.primitive, at.exists)
        box = box._replace(count=_unless_huge(box.count, shape), wide=jnp.max(box.wide))

        def own(state, column, row, live):
            item = _item(at.mesh, at.within, column, row, live, shape)
            return look(planes, out, box, corner, item, state)

        corner = corners(planes, at.primitive, box.count > 0)
        done = _own_steps(box.count)
        _walk_own(box, done, own, ())

        def shared(state, one, primitive, within, item_at, live):
            column, row = _locate(one, item_at)
            item = _item(at.mesh, within, column, row, live, shape)
            return look(planes, out, one, corners(planes, primitive), item, state)

        _walk_shared((place, extent, counts), at, box.count, done, shared, ())

    def huge(*refs):
        (place, extent, counts, *planes), most = refs[:count], refs[count]
        out = refs[count + 2 :]
        team = pallas.program_id(0)

        def visit_one(rank, one, primitive):
            del rank
            corner = corners(planes, primitive)
            mesh = _quotient(primitive, shape.primitives)
            within = primitive - mesh * shape.primitives

            def items(k, state):
                first = (k * _TEAMS + team) * _TEAM
                at = first + jnp.arange(_TEAM, dtype=jnp.int32)
                live = at < one.count
                column, row = _locate(one, jnp.where(live, at, 0))
                item = _item(mesh, within, column, row, live, shape)
                return look(planes, out, one, corner, item, state)

            left = one.count - team * _TEAM
            steps = _quotient(jnp.maximum(left, 0) + _TEAMS * _TEAM - 1, _TEAMS * _TEAM)
            _repeat(steps, items, ())

        _scan_huge((place, extent, counts), most[0], shape, visit_one)

    call = partial(_call, shape=shape, interpret=interpret)
    (buffer,) = call(small, f"rasterizer_{name}", arguments, [buffer])
    if shape.has_huge:
        most = jnp.max(arguments[2]).reshape(1)
        given = [*arguments, most]
        (buffer,) = call(huge, f"rasterizer_{name}_huge", given, [buffer], team=True)
    return buffer


def _sum(add, arguments, dtypes, shape: _Shape, interpret: bool) -> list[jax.Array]:
    """What `add` makes of the items of each primitive; one array for each dtype."""
    count, n = len(arguments), shape.batch * shape.primitives

    def start(lanes):
        return [jnp.zeros(lanes, dtype) for dtype in dtypes]

    def small(*refs):
        (place, extent, counts, *planes), out = refs[:count], refs[count:]
        at = _Place(shape)
        box = _load_box((place, extent, counts), at.primitive, at.exists)
        box = box._replace(count=_unless_huge(box.count, shape), wide=jnp.max(box.wide))

        def own(totals, column, row, live):
            item = _item(at.mesh, at.within, column, row, live, shape)
            return add(planes, item, totals)

        done = _own_steps(box.count)
        totals = _walk_own(box, done, own, start(LANES))

        def shared(totals, one, primitive, within, item_at, live):
            del primitive
            column, row = _locate(one, item_at)
            return add(planes, _item(at.mesh, within, column, row, live, shape), totals)

        totals = _walk_shared(
            (place, extent, counts), at, box.count, done, shared, totals, start(LANES)
        )
        for ref, total in zip(out, totals, strict=True):
            _store(ref, at.primitive, total, at.exists)

    def huge(*refs):
        (place, extent, counts, *planes), most = refs[:count], refs[count]
        out = refs[count + 1 + len(dtypes) :]
        team = pallas.program_id(0)

        def visit_one(rank, one, primitive):
            mesh = _quotient(primitive, shape.primitives)
            within = primitive - mesh * shape.primitives

            def items(k, totals):
                at = k * _TEAM + jnp.arange(_TEAM, dtype=jnp.int32)
                live = at < one.count
                column, row = _locate(one, jnp.where(live, at, 0))
                item = _item(mesh, within, column, row, live, shape)
                return add(planes, item, totals)

            # One program does it all, so that the order is fixed.
            mine = rank & (_TEAMS - 1) == team
            steps = jnp.where(mine, _quotient(one.count + _TEAM - 1, _TEAM), 0)
            totals = _repeat(steps, items, start(_TEAM))
            lane = jnp.arange(_TEAM, dtype=jnp.int32)
            first = jnp.broadcast_to(mine, lane.shape) & (lane == 0)
            where = jnp.where(lane == 0, primitive, n + lane)
            for ref, total in zip(out, totals, strict=True):
                total = jnp.broadcast_to(jnp.sum(total), lane.shape)
                _store(ref, where, total, first)

        _scan_huge((place, extent, counts), most[0], shape, visit_one)

    call = partial(_call, shape=shape, interpret=interpret)
    kinds = [result_like((n,), dtype, arguments) for dtype in dtypes]
    totals = call(small, "rasterizer_sums", arguments, [], kinds)
    if shape.has_huge:
        given = [*arguments, jnp.max(arguments[2]).reshape(1)]
        totals = call(huge, "rasterizer_sums_huge", given, totals, team=True)
    return totals


def _call(
    kernel: Callable,
    name: str,
    arguments: Sequence[jax.Array],
    changed: Sequence[jax.Array],
    fresh: Sequence[jax.ShapeDtypeStruct] = (),
    *,
    shape: _Shape,
    interpret: bool,
    team: bool = False,
) -> list[jax.Array]:
    """Runs a kernel, which gets references to the arguments, to what is to be changed,
    and to the results: the changed ones, for they are changed in place, and fresh ones.
    """
    kinds = [result_like(v.shape, v.dtype, v, *arguments) for v in changed]
    start = len(arguments)
    out = pallas.pallas_call(
        kernel,
        [*kinds, *fresh],
        grid=(_TEAMS if team else shape.batch * shape.blocks,),
        input_output_aliases={start + k: k for k in range(len(changed))},
        compiler_params=triton.CompilerParams(
            num_warps=_TEAM_WARPS if team else 1, num_stages=1
        ),
        interpret=interpret,
        name=name,
    )(*arguments, *changed)
    return list(out)


# --- walks ------------------------------------------------------------------------


class _Item(NamedTuple):
    """Samples of boxes; all arrays of lanes but where a number serves all of them.

    Attributes:
        primitive: within its mesh.
        column, row: of the sample.
        sample: into the flattened samples of the batch.
        live: bool.
        key: nearness of the primitive there, 0 where it does not cover the sample.
    """

    primitive: Any
    column: Any
    row: Any
    sample: Any
    live: Any
    key: Any = None


class _Place:
    """Which primitives a program has.

    Attributes:
        mesh: scalar; the batch member.
        first: scalar; the first primitive, of all in the batch.
        within: lanes; primitives, within the mesh.
        primitive: lanes; primitives, of all in the batch.
        exists: lanes, bool.
    """

    def __init__(self, shape: _Shape):
        program = pallas.program_id(0)
        self.mesh = _quotient(program, shape.blocks)
        block = program - self.mesh * shape.blocks
        lane = jnp.arange(LANES, dtype=jnp.int32)
        self.start = block * LANES
        self.first = self.mesh * shape.primitives + self.start
        self.within = self.start + lane
        self.primitive = self.first + lane
        self.exists = self.within < shape.primitives


def _item(mesh, primitive, column, row, live, shape: _Shape) -> _Item:
    sample = mesh * shape.samples + row * shape.columns + column
    primitive = jnp.broadcast_to(primitive, live.shape)
    return _Item(primitive, column, row, jnp.where(live, sample, 0), live)


def _own_steps(counts):
    """How many samples each lane walks of its own box, before lanes share the rest.

    Of some numbers the one that takes the fewest steps. Triton's compiler crashes on
    while loops within one another, so that no loop here ends by what happens in it.
    """
    most = jnp.max(counts)
    best, lowest = most, most
    for steps in _OWN_STEPS:
        rest = jnp.maximum(counts - steps, 0)
        shared = (rest > 0).astype(jnp.int32) + _quotient(rest + LANES - 1, LANES)
        cost = steps + jnp.sum(shared, dtype=jnp.int32)
        better = cost < lowest
        best, lowest = jnp.where(better, steps, best), jnp.where(better, cost, lowest)
    return best


def _walk_own(box: _Box, steps, visit: Callable, state):
    """Each lane walks so many samples of its own box."""

    def advance(step, carry):
        column, row, state = carry
        state = visit(state, column, row, box.count > step)
        column = column + 1
        wrap = column >= box.column + box.width
        column, row = jnp.where(wrap, box.column, column), row + wrap.astype(jnp.int32)
        return column, row, state

    return _repeat(steps, advance, (box.column, box.row, state))[2]


def _walk_shared(boxes, at: _Place, counts, done, visit, state, start=None):
    """All lanes walk what is left of one box, then of the next.

    Args:
        boxes: references.
        counts: lanes; of the samples in boxes.
        done: how many of those have been visited.
        state: of lanes, which belong to their own primitives. What the lanes make of a
            box, from `start`, is added up and joins that of the box's own lane.
    """
    lane = jnp.arange(LANES, dtype=jnp.int32)

    def take_one(_, carry):
        chosen, state = carry
        chosen = _next(counts > done, chosen)
        primitive = at.first + chosen
        one = _load_box(boxes, primitive)

        def items(k, state):
            item = done + k * LANES + lane
            live = item < one.count
            within = at.start + chosen
            item = jnp.where(live, item, 0)
            return visit(state, one, primitive, within, item, live)

        steps = _quotient(one.count - done + LANES - 1, LANES)
        if start is None:
            return chosen, _repeat(steps, items, state)
        own = lane == chosen
        totals = _repeat(steps, items, start)
        return chosen, [
            jnp.where(own, old + jnp.sum(new), old)
            for old, new in zip(state, totals, strict=True)
        ]

    left = jnp.sum(counts > done, dtype=jnp.int32)
    return _repeat(left, take_one, (np.int32(-1), state))[1]


def _scan_huge(boxes, most, shape: _Shape, visit: Callable):
    """`visit(rank, box, primitive)` for all huge boxes, one after the other."""
    counts = boxes[2]
    n = shape.batch * shape.primitives
    lane = jnp.arange(_TEAM, dtype=jnp.int32)

    def chunk(k, rank):
        here = k * _TEAM + lane
        huge = _load(counts, here, here < n) > HUGE

        def take_one(_, carry):
            chosen, rank = carry
            chosen = _next(huge, chosen)
            primitive = k * _TEAM + chosen
            visit(rank, _load_box(boxes, primitive), primitive)
            return chosen, rank + 1

        found = jnp.sum(huge, dtype=jnp.int32)
        return _repeat(found, take_one, (np.int32(-1), rank))[1]

    chunks = (most > HUGE).astype(jnp.int32) * math.ceil(n / _TEAM)
    _repeat(chunks, chunk, np.int32(0))


def _next(marked, after):
    """The first lane that is marked, beyond another."""
    lane = jnp.arange(marked.size, dtype=jnp.int32)
    return jnp.min(jnp.where(marked & (lane > after), lane, marked.size))


def _repeat(times, body: Callable, state):
    """`body(k, state)` for k from 0."""
    return jax.lax.fori_loop(np.int32(0), times, body, state)


# --- items ------------------------------------------------------------------------


def _pack(boxes: Boxes) -> list[jax.Array]:
    """Place, extent and count of boxes."""
    place = boxes.row << SIDE_BITS | boxes.column
    extent = boxes.large.astype(jnp.int32) << (SIDE_BITS + 1) | boxes.width
    return [place, extent, boxes.count]


def _load_box(boxes, primitive, exists=None) -> _Box:
    """From references to what `_pack` gives; of one primitive, or those of lanes."""
    place, extent, count = (_load(ref, primitive, exists) for ref in boxes)
    side = (1 << SIDE_BITS) - 1
    width = jnp.maximum(extent & (2 << SIDE_BITS) - 1, 1)
    # A first column may lie one past the last, in a box without samples.
    return _Box(place & side, place >> SIDE_BITS, width, count, extent >> SIDE_BITS + 1)


def _unless_huge(count, shape: _Shape):
    return jnp.where(count > HUGE, 0, count) if shape.has_huge else count


def _locate(box: _Box, item):
    """Column and row of samples of a box, by their number."""
    row = _quotient(item, box.width)
    return box.column + item - row * box.width, box.row + row


def _load_corners(planes, primitive, exists=None, *, which, layout: Layout):
    """x, y and inverse depth of the corners, three lists."""
    corners = len(layout.offsets)
    values = [
        _load(planes[which[k]], primitive + layout.offsets[k % corners], exists)
        for k in range(3 * corners)
    ]
    return [values[k * corners : (k + 1) * corners] for k in range(3)]


def _test(corners, column, row, wide, *, layout, grid, facing, interpret):
    """`worklist.nearest_of`; `wide`, a scalar, says which half is needed."""
    arithmetic = _INTERPRETED if interpret else _COMPILED
    column, row = column - grid.centre[0], row - grid.centre[1]
    test = partial(
        worklist.nearest_of,
        *(*corners, column, row, layout, grid, facing),
        arithmetic=arithmetic,
    )
    return jax.lax.cond(
        wide > 0,
        partial(test, wide=True),
        partial(test, wide=False),
    )


def _quotient(a, b):
    """a // b of int32, neither negative."""
    a, b = jnp.broadcast_arrays(a, jnp.asarray(b, jnp.int32))
    return jax.lax.div(a, b)


def _distinct(arrays) -> tuple[list[jax.Array], list[int]]:
    """The arrays without repetition, and where each of them is found."""
    seen: dict[int, int] = {}
    which = [seen.setdefault(id(v), len(seen)) for v in arrays]
    distinct = {k: v for k, v in zip(which, arrays, strict=True)}
    return list(distinct.values()), which


# --- memory and arithmetic --------------------------------------------------------


def _load(ref, index, live=None, other=0):
    """Numbers at an index, or at those of lanes; `other` where a lane is not live."""
    if live is None:
        return triton.load(ref.at[index])
    fill = jnp.full(live.shape, other, ref.dtype)
    return triton.load(ref.at[index], mask=live, other=fill)


def _store(ref, index, value, live):
    triton.store(ref.at[index], value, mask=live)


def _atomic(ref, kind: str, index, value, live, interpret: bool) -> None:
    """Extrema of bits; the programs of an interpreted kernel follow one another."""
    if interpret:
        index = jnp.where(live, index, ref.size)
        at = _as_int(ref[...]).at[index]
        update = at.max if kind == "max" else at.min
        ref[...] = _as_float(update(value, mode="drop"))
    else:
        update = triton.atomic_max if kind == "max" else triton.atomic_min
        update(ref, (index,), _as_float(value), mask=live)


def _as_int(value):
    return jax.lax.bitcast_convert_type(value, jnp.int32)


def _as_float(value):
    return jax.lax.bitcast_convert_type(value, jnp.float32)


def _divide(a, b):
    """a / b, rounded once: Triton's own division is not."""
    a, b = jnp.broadcast_arrays(a, b)
    kind = jax.ShapeDtypeStruct(a.shape, a.dtype)
    (quotient,) = triton.elementwise_inline_asm(
        "div.rn.f32 $0, $1, $2;",
        args=[a, b],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[kind],
    )
    return quotient


def _round_mantissa(value, bits: int):
    """`jax.lax.reduce_precision(value, 8, bits)`, which Triton has not."""
    drop = 23 - bits
    word = _as_int(value)
    word = word + ((1 << (drop - 1)) - 1) + ((word >> drop) & 1)
    return _as_float(word & -(1 << drop))


_COMPILED = Arithmetic(_divide, _round_mantissa)
_INTERPRETED = Arithmetic(jnp.divide, _round_mantissa)
