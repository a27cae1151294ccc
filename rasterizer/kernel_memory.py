"""Memory and exact arithmetic within kernels that Pallas compiles with Triton."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton

from .coverage import Arithmetic


def load(ref, index, live=None, other=0):
    """Numbers at an index, or at those of lanes; `other` where a lane is not live."""
    if live is None:
        return triton.load(ref.at[index])
    fill = jnp.full(live.shape, other, ref.dtype)
    return triton.load(ref.at[index], mask=live, other=fill)


def store(ref, index, value, live):
    triton.store(ref.at[index], value, mask=live)


def atomic(ref, kind: str, index, value, live, interpret: bool) -> None:
    """Extrema of bits; the programs of an interpreted kernel follow one another."""
    if interpret:
        index = jnp.where(live, index, ref.size)
        at = as_int(ref[...]).at[index]
        update = at.max if kind == "max" else at.min
        ref[...] = as_float(update(value, mode="drop"))
    else:
        update = triton.atomic_max if kind == "max" else triton.atomic_min
        update(ref, (index,), as_float(value), mask=live)


def as_int(value):
    return jax.lax.bitcast_convert_type(value, jnp.int32)


def as_float(value):
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
    word = as_int(value)
    word = word + ((1 << (drop - 1)) - 1) + ((word >> drop) & 1)
    return as_float(word & -(1 << drop))


COMPILED = Arithmetic(_divide, _round_mantissa)
INTERPRETED = Arithmetic(jnp.divide, _round_mantissa)
