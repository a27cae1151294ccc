"""The work of the work list as kernels for CUDA, by Pallas and its Triton compiler.

A program has 32 primitives, one to each lane of a warp, and walks the samples of their
boxes (`walks`). First each lane walks its own, as far as that keeps enough of them
busy. Then what is left over, of the larger ones, is taken one box after the other, 32
samples at a time. Boxes of more samples than `walks.HUGE` wait for kernels in which
many programs share them.

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

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import triton

from . import walks, worklist
from .batching import like, result_like
from .coverage import SampleGrid
from .kernel_memory import (
    COMPILED,
    INTERPRETED,
    as_float,
    as_int,
    atomic,
    load,
    store,
)
from .walks import LANES
from .worklist import Boxes, Layout, Primitives

_TEAM_WARPS = 4
_NO_PRIMITIVE = 2**31 - 1


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
    shape = walks.Shape(batch, n // batch, grid.samples, grid.columns)
    planes, which = _distinct([*primitives.x, *primitives.y, *primitives.inverse_depth])
    arguments = [*walks.pack(boxes), *planes]
    corners = partial(_load_corners, which=which, layout=layout)
    test = partial(_test, layout=layout, grid=grid, facing=facing, interpret=interpret)

    def buffer(fill):
        bits = jnp.full(batch * grid.samples, fill, jnp.int32)
        return like(as_float(bits), arguments)

    def compete(planes, buffers, item, state):
        del planes
        atomic(buffers[0], "max", item.sample, item.key, item.key > 0, interpret)
        return state

    def claim(planes, buffers, item, state):
        best = load(planes[-1], item.sample, item.key > 0)
        won = (item.key > 0) & (as_int(best) == item.key)
        atomic(buffers[0], "min", item.sample, item.primitive, won, interpret)
        return state

    run = partial(_draw, shape=shape, corners=corners, test=test, interpret=interpret)
    near = run("nearness", compete, arguments, buffer(0))
    primitive = run("winners", claim, [*arguments, near], buffer(_NO_PRIMITIVE))
    near, primitive = as_int(near), as_int(primitive)
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
    shape = walks.Shape(batch, count, grid.samples, grid.columns)
    flat = [v.reshape(-1) for v in values]
    k = len(flat)
    if 0 in (batch, count, grid.samples):
        totals = [jnp.zeros((batch, count), v.dtype) for v in flat]
        return [totals for _ in range(triangle_count)]

    def add(planes, item, totals):
        face = load(planes[0], item.sample, item.live, other=-1)
        out = list(totals)
        for t in range(triangle_count):
            mine = face == item.primitive + t * count
            for j in range(k):
                term = load(planes[1 + j], item.sample, mine)
                out[t * k + j] += term
        return out

    arguments = [
        *walks.pack(Boxes(*(v.reshape(-1) for v in boxes))),
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
        stop = load(ends, lane, exists)
        begin = load(ends, lane - 1, exists & (lane > 0))

        def add(k, totals):
            live = begin + k < stop
            row = load(order, begin + k, live)
            return [
                total + load(values, row * channels + c, live)
                for c, total in enumerate(totals)
            ]

        start = [jnp.zeros(LANES, values.dtype) for _ in range(channels)]
        for c, total in enumerate(walks.repeat(jnp.max(stop - begin), add, start)):
            store(out, lane * channels + c, total, exists)

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
    shape: walks.Shape,
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
        at = walks.Place(shape)
        box = walks.load_box((place, extent, counts), at.primitive, at.exists)
        box = box._replace(
            count=walks.unless_huge(box.count, shape), wide=jnp.max(box.wide)
        )

        def own(state, column, row, live):
            item = walks.make_item(at.mesh, at.within, column, row, live, shape)
            return look(planes, out, box, corner, item, state)

        corner = corners(planes, at.primitive, box.count > 0)
        done = walks.own_steps(box.count)
        walks.walk_own(box, done, own, ())

        def shared(state, one, primitive, within, item_at, live):
            column, row = walks.locate(one, item_at)
            item = walks.make_item(at.mesh, within, column, row, live, shape)
            return look(planes, out, one, corners(planes, primitive), item, state)

        walks.walk_shared((place, extent, counts), at, box.count, done, shared, ())

    def huge(*refs):
        (place, extent, counts, *planes), most = refs[:count], refs[count]
        out = refs[count + 2 :]
        team = pallas.program_id(0)

        def visit_one(rank, one, primitive):
            del rank
            corner = corners(planes, primitive)
            mesh = walks.quotient(primitive, shape.primitives)
            within = primitive - mesh * shape.primitives

            def items(k, state):
                first = (k * walks.TEAMS + team) * walks.TEAM
                at = first + jnp.arange(walks.TEAM, dtype=jnp.int32)
                live = at < one.count
                column, row = walks.locate(one, jnp.where(live, at, 0))
                item = walks.make_item(mesh, within, column, row, live, shape)
                return look(planes, out, one, corner, item, state)

            left = one.count - team * walks.TEAM
            steps = walks.quotient(
                jnp.maximum(left, 0) + walks.TEAMS * walks.TEAM - 1,
                walks.TEAMS * walks.TEAM,
            )
            walks.repeat(steps, items, ())

        walks.scan_huge((place, extent, counts), most[0], shape, visit_one)

    call = partial(_call, shape=shape, interpret=interpret)
    (buffer,) = call(small, f"rasterizer_{name}", arguments, [buffer])
    if shape.has_huge:
        most = jnp.max(arguments[2]).reshape(1)
        given = [*arguments, most]
        (buffer,) = call(huge, f"rasterizer_{name}_huge", given, [buffer], team=True)
    return buffer


def _sum(
    add, arguments, dtypes, shape: walks.Shape, interpret: bool
) -> list[jax.Array]:
    """What `add` makes of the items of each primitive; one array for each dtype."""
    count, n = len(arguments), shape.batch * shape.primitives

    def start(lanes):
        return [jnp.zeros(lanes, dtype) for dtype in dtypes]

    def small(*refs):
        (place, extent, counts, *planes), out = refs[:count], refs[count:]
        at = walks.Place(shape)
        box = walks.load_box((place, extent, counts), at.primitive, at.exists)
        box = box._replace(
            count=walks.unless_huge(box.count, shape), wide=jnp.max(box.wide)
        )

        def own(totals, column, row, live):
            item = walks.make_item(at.mesh, at.within, column, row, live, shape)
            return add(planes, item, totals)

        done = walks.own_steps(box.count)
        totals = walks.walk_own(box, done, own, start(LANES))

        def shared(totals, one, primitive, within, item_at, live):
            del primitive
            column, row = walks.locate(one, item_at)
            return add(
                planes,
                walks.make_item(at.mesh, within, column, row, live, shape),
                totals,
            )

        totals = walks.walk_shared(
            (place, extent, counts), at, box.count, done, shared, totals, start(LANES)
        )
        for ref, total in zip(out, totals, strict=True):
            store(ref, at.primitive, total, at.exists)

    def huge(*refs):
        (place, extent, counts, *planes), most = refs[:count], refs[count]
        out = refs[count + 1 + len(dtypes) :]
        team = pallas.program_id(0)

        def visit_one(rank, one, primitive):
            mesh = walks.quotient(primitive, shape.primitives)
            within = primitive - mesh * shape.primitives

            def items(k, totals):
                at = k * walks.TEAM + jnp.arange(walks.TEAM, dtype=jnp.int32)
                live = at < one.count
                column, row = walks.locate(one, jnp.where(live, at, 0))
                item = walks.make_item(mesh, within, column, row, live, shape)
                return add(planes, item, totals)

            # One program does it all, so that the order is fixed.
            mine = rank & (walks.TEAMS - 1) == team
            steps = jnp.where(
                mine, walks.quotient(one.count + walks.TEAM - 1, walks.TEAM), 0
            )
            totals = walks.repeat(steps, items, start(walks.TEAM))
            lane = jnp.arange(walks.TEAM, dtype=jnp.int32)
            first = jnp.broadcast_to(mine, lane.shape) & (lane == 0)
            where = jnp.where(lane == 0, primitive, n + lane)
            for ref, total in zip(out, totals, strict=True):
                total = jnp.broadcast_to(jnp.sum(total), lane.shape)
                store(ref, where, total, first)

        walks.scan_huge((place, extent, counts), most[0], shape, visit_one)

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
    shape: walks.Shape,
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
        grid=(walks.TEAMS if team else shape.batch * shape.blocks,),
        input_output_aliases={start + k: k for k in range(len(changed))},
        compiler_params=triton.CompilerParams(
            num_warps=_TEAM_WARPS if team else 1, num_stages=1
        ),
        interpret=interpret,
        name=name,
    )(*arguments, *changed)
    return list(out)


def _load_corners(planes, primitive, exists=None, *, which, layout: Layout):
    """x, y and inverse depth of the corners, three lists."""
    corners = len(layout.offsets)
    values = [
        load(planes[which[k]], primitive + layout.offsets[k % corners], exists)
        for k in range(3 * corners)
    ]
    return [values[k * corners : (k + 1) * corners] for k in range(3)]


def _test(corners, column, row, wide, *, layout, grid, facing, interpret):
    """`worklist.nearest_of`; `wide`, a scalar, says which half is needed."""
    arithmetic = INTERPRETED if interpret else COMPILED
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


def _distinct(arrays) -> tuple[list[jax.Array], list[int]]:
    """The arrays without repetition, and where each of them is found."""
    seen: dict[int, int] = {}
    which = [seen.setdefault(id(v), len(seen)) for v in arrays]
    distinct = {k: v for k, v in zip(which, arrays, strict=True)}
    return list(distinct.values()), which
