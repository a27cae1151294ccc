"""vmap that folds the mapped axis into the batch; and what shard_map must know."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def fold_vmap(function: Callable) -> Callable:
    """`function`, whose arguments and results all lead with one batch axis, such that
    vmap adds to the batch.

    A while loop under plain vmap carries every member until the slowest is done, and
    selects at every step. Not differentiable: use inside a custom_vjp, or on integers.
    """
    folded = jax.custom_batching.custom_vmap(function)

    @folded.def_vmap
    def _(axis_size, in_batched, *args):
        def fold(value, batched):
            if not batched:
                value = jnp.broadcast_to(value, (axis_size, *value.shape))
            return value.reshape(axis_size * value.shape[1], *value.shape[2:])

        if axis_size == 0:  # a batch of none, which the function need not know
            member = jax.tree.map(_member, args, tuple(in_batched))
            out = jax.tree.map(
                lambda v: like(jnp.zeros((0, *v.shape), v.dtype), args),
                jax.eval_shape(function, *member),
            )
            return out, jax.tree.map(lambda _: True, out)

        args = jax.tree.map(fold, args, tuple(in_batched))
        batch = jax.tree.leaves(args)[0].shape[0] // axis_size
        out = folded(*args)
        out = jax.tree.map(lambda v: v.reshape(axis_size, batch, *v.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return folded


def _member(value, batched) -> jax.ShapeDtypeStruct:
    """What one member of a mapped axis looks like."""
    return jax.ShapeDtypeStruct(
        value.shape[1:] if batched else value.shape, value.dtype
    )


def like(value, *references):
    """Arrays that vary over all mesh axes of `jax.shard_map` that the references vary
    over: constants, for the carry of a loop or the other branch of a conditional.

    Args:
        value, references: pytrees. Outside `shard_map` value comes back untouched.
    """
    axes = _varying(references)
    if not axes:
        return value

    def cast(leaf):
        missing = tuple(sorted(axes - _varying(leaf), key=str))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, value)


def alike(*values):
    """The values, each varying over all mesh axes that any of them varies over.

    The gradient of one that is the same on all devices is then summed over them, as
    that of a custom_vjp would not be.
    """
    return like(values, values)


def result_like(shape: tuple[int, ...], dtype, *references) -> jax.ShapeDtypeStruct:
    """What an `ffi_call` returns that varies as the references do."""
    if not _varying(references):
        return jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda: like(jnp.zeros(shape, dtype), references))


def _varying(values) -> frozenset:
    """Mesh axes over which any of these differs from device to device."""
    axes = frozenset()
    for leaf in jax.tree.leaves(values):
        kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        kind = getattr(kind, "manual_axis_type", None)
        axes |= frozenset() if kind is None else kind.varying
    return axes


def flatten_lead(values: jax.Array, keep: int) -> jax.Array:
    """All but the last `keep` axes as one; reshape(-1) cannot where an axis is 0."""
    lead = values.shape[: values.ndim - keep]
    return values.reshape(math.prod(lead), *values.shape[values.ndim - keep :])
