"""How the programs of a kernel walk the samples of boxes; see `kernels`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas

from .kernel_memory import load
from .worklist import SIDE_BITS, Boxes

LANES = 32  # of a program: one warp, since primitives that differ wait for one another
_OWN_STEPS = (0, 2, 4, 8, 16, 32, 64)
HUGE = 4096  # samples of a box, above which programs share it
TEAM = 1024  # samples that a program takes at a time of a huge box
TEAMS = 256  # programs that share huge boxes


class Box(NamedTuple):
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


class Shape(NamedTuple):
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


class Item(NamedTuple):
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


class Place:
    """Which primitives a program has.

    Attributes:
        mesh: scalar; the batch member.
        first: scalar; the first primitive, of all in the batch.
        within: lanes; primitives, within the mesh.
        primitive: lanes; primitives, of all in the batch.
        exists: lanes, bool.
    """

    def __init__(self, shape: Shape):
        program = pallas.program_id(0)
        self.mesh = quotient(program, shape.blocks)
        block = program - self.mesh * shape.blocks
        lane = jnp.arange(LANES, dtype=jnp.int32)
        self.start = block * LANES
        self.first = self.mesh * shape.primitives + self.start
        self.within = self.start + lane
        self.primitive = self.first + lane
        self.exists = self.within < shape.primitives


def make_item(mesh, primitive, column, row, live, shape: Shape) -> Item:
    sample = mesh * shape.samples + row * shape.columns + column
    primitive = jnp.broadcast_to(primitive, live.shape)
    return Item(primitive, column, row, jnp.where(live, sample, 0), live)


def own_steps(counts):
    """How many samples each lane walks of its own box, before lanes share the rest.

    Of some numbers the one that takes the fewest steps. Triton's compiler crashes on
    while loops within one another, so that no loop here ends by what happens in it.
    """
    most = jnp.max(counts)
    best, lowest = most, most
    for steps in _OWN_STEPS:
        rest = jnp.maximum(counts - steps, 0)
        shared = (rest > 0).astype(jnp.int32) + quotient(rest + LANES - 1, LANES)
        cost = steps + jnp.sum(shared, dtype=jnp.int32)
        better = cost < lowest
        best, lowest = jnp.where(better, steps, best), jnp.where(better, cost, lowest)
    return best


def walk_own(box: Box, steps, visit: Callable, state):
    """Each lane walks so many samples of its own box."""

    def advance(step, carry):
        column, row, state = carry
        state = visit(state, column, row, box.count > step)
        column = column + 1
        wrap = column >= box.column + box.width
        column, row = jnp.where(wrap, box.column, column), row + wrap.astype(jnp.int32)
        return column, row, state

    return repeat(steps, advance, (box.column, box.row, state))[2]


def walk_shared(boxes, at: Place, counts, done, visit, state, start=None):
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
        one = load_box(boxes, primitive)

        def items(k, state):
            item = done + k * LANES + lane
            live = item < one.count
            within = at.start + chosen
            item = jnp.where(live, item, 0)
            return visit(state, one, primitive, within, item, live)

        steps = quotient(one.count - done + LANES - 1, LANES)
        if start is None:
            return chosen, repeat(steps, items, state)
        own = lane == chosen
        totals = repeat(steps, items, start)
        return chosen, [
            jnp.where(own, old + jnp.sum(new), old)
            for old, new in zip(state, totals, strict=True)
        ]

    left = jnp.sum(counts > done, dtype=jnp.int32)
    return repeat(left, take_one, (np.int32(-1), state))[1]


def scan_huge(boxes, most, shape: Shape, visit: Callable):
    """`visit(rank, box, primitive)` for all huge boxes, one after the other."""
    counts = boxes[2]
    n = shape.batch * shape.primitives
    lane = jnp.arange(TEAM, dtype=jnp.int32)

    def chunk(k, rank):
        here = k * TEAM + lane
        huge = load(counts, here, here < n) > HUGE

        def take_one(_, carry):
            chosen, rank = carry
            chosen = _next(huge, chosen)
            primitive = k * TEAM + chosen
            visit(rank, load_box(boxes, primitive), primitive)
            return chosen, rank + 1

        found = jnp.sum(huge, dtype=jnp.int32)
        return repeat(found, take_one, (np.int32(-1), rank))[1]

    chunks = (most > HUGE).astype(jnp.int32) * math.ceil(n / TEAM)
    repeat(chunks, chunk, np.int32(0))


def _next(marked, after):
    """The first lane that is marked, beyond another."""
    lane = jnp.arange(marked.size, dtype=jnp.int32)
    return jnp.min(jnp.where(marked & (lane > after), lane, marked.size))


def repeat(times, body: Callable, state):
    """`body(k, state)` for k from 0."""
    return jax.lax.fori_loop(np.int32(0), times, body, state)


def pack(boxes: Boxes) -> list[jax.Array]:
    """Place, extent and count of boxes."""
    place = boxes.row << SIDE_BITS | boxes.column
    extent = boxes.large.astype(jnp.int32) << (SIDE_BITS + 1) | boxes.width
    return [place, extent, boxes.count]


def load_box(boxes, primitive, exists=None) -> Box:
    """From references to what `pack` gives; of one primitive, or those of lanes."""
    place, extent, count = (load(ref, primitive, exists) for ref in boxes)
    side = (1 << SIDE_BITS) - 1
    width = jnp.maximum(extent & (2 << SIDE_BITS) - 1, 1)
    # A first column may lie one past the last, in a box without samples.
    return Box(place & side, place >> SIDE_BITS, width, count, extent >> SIDE_BITS + 1)


def unless_huge(count, shape: Shape):
    return jnp.where(count > HUGE, 0, count) if shape.has_huge else count


def locate(box: Box, item):
    """Column and row of samples of a box, by their number."""
    row = quotient(item, box.width)
    return box.column + item - row * box.width, box.row + row


def quotient(a, b):
    """a // b of int32, neither negative."""
    a, b = jnp.broadcast_arrays(a, jnp.asarray(b, jnp.int32))
    return jax.lax.div(a, b)
