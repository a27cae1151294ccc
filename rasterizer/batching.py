"""vmap that folds the mapped axis into the batch."""

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
                lambda v: jnp.zeros((0, *v.shape), v.dtype),
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


def flatten_lead(values: jax.Array, keep: int) -> jax.Array:
    """All but the last `keep` axes as one; reshape(-1) cannot where an axis is 0."""
    lead = values.shape[: values.ndim - keep]
    return values.reshape(math.prod(lead), *values.shape[values.ndim - keep :])
