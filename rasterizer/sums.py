"""Sums over faces and over vertices, bit-equal from run to run.

XLA's CPU scatter adds its updates one after the other, in their order: fast, and the
same every time. Elsewhere a scatter-add is a race (GPU) or slow (TPU), so there the
terms are brought next to one another, by the work list or by a stable sort, and added
in a segmented running sum.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from . import worklist
from .batching import alike, fold_vmap
from .coverage import SampleGrid
from .worklist import Boxes, take


def sum_by_face(
    boxes: Boxes,
    face_index: jax.Array,
    values: tuple[jax.Array, ...],
    *,
    triangle_count: int,
    grid: SampleGrid,
) -> list[list[jax.Array]]:
    """Sums values over the samples that each face won.

    Args:
        boxes: of the primitives that were drawn; each (B, P).
        face_index: (B, samples) int32; triangle t of primitive p is t * P + p.
        values: each (B, samples); read where face_index >= 0.

    Returns:
        For each triangle of a primitive, one (B, P) array for each value.
    """
    options = {"triangle_count": triangle_count, "grid": grid}
    by_platform = partial(
        jax.lax.platform_dependent,
        cpu=partial(face_sums_by_scatter, **options),
        default=partial(face_sums_by_list, **options),
    )
    return fold_vmap(by_platform)(boxes, face_index, values)


def face_sums_by_scatter(
    boxes: Boxes, face_index, values, *, triangle_count: int, grid: SampleGrid
):
    """`sum_by_face`, in a fixed order only where a scatter has one."""
    del grid
    batch, count = boxes.count.shape
    faces = triangle_count * count
    target = face_index + (jnp.arange(batch, dtype=jnp.int32) * faces)[:, None]
    target = jnp.where(face_index >= 0, target, batch * faces)
    totals = [
        jnp.zeros(batch * faces, v.dtype)
        .at[target]
        .add(v, mode="drop")
        .reshape(batch, triangle_count, count)
        for v in values
    ]
    return [[total[:, t] for total in totals] for t in range(triangle_count)]


def face_sums_by_list(
    boxes: Boxes, face_index, values, *, triangle_count: int, grid: SampleGrid
):
    """`sum_by_face` by gathers: the work list holds the samples of a primitive next to
    one another, so that a segmented running sum ends with the primitive's total."""

    batch, count = boxes.count.shape
    index = face_index.reshape(-1)
    flat = [v.reshape(-1) for v in values]

    def add(items, ranges, totals):
        face = jnp.where(items.live, take(index, items.sample), -1)
        within = items.primitive - items.mesh * count
        terms = [
            jnp.where(face == within + t * count, take(v, items.sample), 0.0)
            for t in range(triangle_count)
            for v in flat
        ]
        return worklist.add_runs(terms, items, ranges, totals)

    totals = worklist.for_each_chunk(
        Boxes(*(v.reshape(-1) for v in boxes)),
        [
            jnp.zeros(batch * count, v.dtype)
            for _ in range(triangle_count)
            for v in flat
        ],
        add,
        batch=batch,
        grid=grid,
    )
    totals = [v.reshape(batch, count) for v in totals]
    k = len(flat)
    return [totals[t * k : (t + 1) * k] for t in range(triangle_count)]


def sum_rows(values: jax.Array, ids: jax.Array, count: int) -> jax.Array:
    """Sums rows that name the same target: the transpose of `gather_rows`.

    Args:
        values: (B, M, C).
        ids: (B, M) int32 in [0, count).

    Returns:
        (B, count, C). The gradient is exact, in either mode.
    """
    values, ids = alike(values, ids)
    return with_transpose(
        lambda v: sum_rows_in_order(v, ids, count),
        lambda t: _take_rows(t, ids),
        values,
    )


def sum_rows_in_order(values, ids, count) -> jax.Array:
    """`sum_rows` for those who pull back themselves; it has no gradient."""
    values, ids = alike(values, ids)

    @fold_vmap
    def sums(values, ids):
        return jax.lax.platform_dependent(
            values,
            ids,
            cpu=partial(sum_rows_by_scatter, count=count),
            default=partial(sum_rows_by_sort, count=count),
        )

    return sums(values, ids)


def gather_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """table[b, ids[b, m]]: (B, N, C), (B, M) to (B, M, C), ids in [0, N).

    The gradient is exact, in either mode, and summed in a fixed order.
    """
    table, ids = alike(table, ids)
    count = table.shape[1]
    return with_transpose(
        lambda t: _take_rows(t, ids), lambda v: sum_rows_in_order(v, ids, count), table
    )


def _take_rows(table, ids) -> jax.Array:
    return jax.vmap(take)(table, ids)


def with_transpose(apply: Callable, transpose: Callable, value: jax.Array) -> jax.Array:
    """`apply(value)`, linear, pulled back by `transpose` instead of by its own.

    A custom_vjp would end forward mode. JAX's one map that has both modes, batching and
    a transpose to be chosen is `custom_linear_solve`: the solution (x, y) of

        x = value,    y = apply(x)

    is linear in the right side (value, 0), and pulls (0, y) back to transpose(y). Of
    both sides only that is read, so nothing else is computed; and as `solve` is given,
    the equation itself is asked for its shapes alone.
    """
    if value.size == 0:
        return apply(value)
    out = jax.eval_shape(apply, value)

    def solve(_, sides):
        return sides[0], apply(sides[0])

    def transpose_solve(_, sides):
        return transpose(sides[1]), jnp.zeros_like(sides[1])

    # The rules of custom_linear_solve want a right side that depends on value wholly
    # and, to be differentiated twice, a solution that is used wholly; both for show.
    def whole(x):
        return jnp.broadcast_to(x.reshape(-1)[0], out.shape)

    x, y = jax.lax.custom_linear_solve(
        lambda x: x, (value, whole(value)), solve, transpose_solve
    )
    return jnp.where(np.False_, whole(x), y)


def sum_rows_by_scatter(values, ids, *, count: int):
    """`sum_rows`, in a fixed order only where a scatter has one."""
    batch, _, channels = values.shape
    target = ids + (jnp.arange(batch, dtype=jnp.int32) * count)[:, None]
    target = target.reshape(-1)
    # A plane at a time: XLA's CPU scatter is slower on rows.
    planes = [
        jnp.zeros(batch * count, values.dtype)
        .at[target]
        .add(values[..., c].reshape(-1), mode="promise_in_bounds")
        for c in range(channels)
    ]
    return jnp.stack(planes, axis=-1).reshape(batch, count, channels)


def sum_rows_by_sort(values, ids, *, count: int):
    """`sum_rows` in the order of the rows, whatever the machine."""
    batch, _, channels = values.shape
    target = ids + (jnp.arange(batch, dtype=jnp.int32) * count)[:, None]
    zeros = tuple(jnp.zeros(batch * count, values.dtype) for _ in range(channels))
    terms = tuple(values[..., c].reshape(-1) for c in range(channels))
    planes = add_at_by_sort(zeros, target.reshape(-1), terms)
    return jnp.stack(planes, axis=-1).reshape(batch, count, channels)


def add_at(
    totals: tuple[jax.Array, ...], target: jax.Array, terms: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Adds terms to totals. Not differentiable.

    Args:
        totals: each (N,).
        target: (M,) int32 in [0, N]; N adds nothing.
        terms: as many, each (M,).
    """
    return jax.lax.platform_dependent(
        totals, target, terms, cpu=add_at_by_scatter, default=add_at_by_sort
    )


def add_at_by_scatter(totals, target, terms):
    """`add_at`, in a fixed order only where a scatter has one."""
    return tuple(
        total.at[target].add(term, mode="drop")
        for total, term in zip(totals, terms, strict=True)
    )


def add_at_by_sort(totals, target, terms):
    """`add_at` in the order of the terms, whatever the machine."""
    count = totals[0].size
    position = jnp.arange(target.size, dtype=jnp.int32)
    target, order = jax.lax.sort((target, position), num_keys=1)
    first = jnp.concatenate([jnp.ones(1, bool), target[1:] != target[:-1]])
    last = jnp.concatenate([first[1:], jnp.ones(1, bool)])
    step = position - jax.lax.cummax(jnp.where(first, position, 0))
    sums = worklist.running(
        [term[order] for term in terms],
        jnp.max(step) + 1,
        lambda here, back, reach: jnp.where(step >= reach, here + back, here),
    )
    # One update a target: nothing to race for.
    where = jnp.where(last, target, count)
    before = jnp.minimum(target, count - 1)
    return tuple(
        total.at[where].set(take(total, before) + term, mode="drop")
        for total, term in zip(totals, sums, strict=True)
    )
