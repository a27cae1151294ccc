"""Which samples a triangle covers, and which triangle is nearest, in exact arithmetic.

Everything that decides a face index lives here, and it rounds alike on every machine:

* Vertices are snapped to a grid of 2**-bits pixels, and a sample is covered when three
  integer edge functions agree in sign. Edges are inclusive: two triangles that share an
  edge leave no crack, and both cover the samples on it.
* The nearest face is the one with the largest inverse depth, computed in float32 from
  the exact integer barycentrics. A compiler may contract x*y + z into one rounding or
  two; rounding each product to 22 bits beforehand takes that freedom away. The sum is
  rounded to 20 bits: depths that agree to one part in a million are a tie, and the
  smallest face index wins a tie. Divisions must be rounded once, which those of GPUs
  and TPUs are not: `divide` sees to that.

Depth, barycentrics and gradients never see the snapped vertices.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Differences of snapped coordinates stay below this, so that an edge function, held as
# hi * 2**10 + lo in two int32, cannot overflow: 2 M**2 / 2**10 + 4 M < 2**31.
MAX_SPAN = 2**20 - 2**12
# And below this, so that it fits one int32: 2 M**2 < 2**31.
SMALL_SPAN = 2**15 - 1
LOW_BITS = 10
LOW_MASK = 2**LOW_BITS - 1
MAX_SUBPIXEL_BITS = 8


@dataclasses.dataclass(frozen=True)
class SampleGrid:
    """Where the samples lie, in the pixels of the image.

    Sample (i, j) lies at x = (j - (supersample - 1) / 2) / supersample + offset[0], and
    likewise y from i and offset[1].

    Attributes:
        height, width: pixels.
        supersample: samples a side of each pixel.
        offset: (x, y) shift of all samples, pixels.
    """

    height: int
    width: int
    supersample: int = 1
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def rows(self) -> int:
        return self.height * self.supersample

    @property
    def columns(self) -> int:
        return self.width * self.supersample

    @property
    def samples(self) -> int:
        return self.rows * self.columns

    @property
    def bits(self) -> int:
        """Sub-sample bits: at most 8, fewer when the image, with a band as wide as
        itself on either side, would not fit MAX_SPAN."""
        side = max(self.rows, self.columns, 1)
        return max(0, min(MAX_SUBPIXEL_BITS, int(math.log2(MAX_SPAN / (3 * side)))))

    @property
    def smallest_area(self) -> float:
        """Twice the area, in square pixels, below which a triangle has no slope: the
        square of the snapping unit."""
        return (1.0 / (2**self.bits * self.supersample)) ** 2

    @property
    def shift(self) -> tuple[float, float]:
        """Sample coordinates of the pixel coordinate (0, 0)."""
        half = (self.supersample - 1) / 2
        return (
            half - self.supersample * self.offset[0],
            half - self.supersample * self.offset[1],
        )

    @property
    def centre(self) -> tuple[int, int]:
        """The middle sample (column, row), the origin of snapped coordinates."""
        return (self.columns // 2, self.rows // 2)

    def positions(self, dtype) -> tuple[jax.Array, jax.Array]:
        """x (columns,) and y (rows,) of the samples, in pixels."""
        s = self.supersample
        x = (jnp.arange(self.columns, dtype=dtype) - (s - 1) / 2) / s + self.offset[0]
        y = (jnp.arange(self.rows, dtype=dtype) - (s - 1) / 2) / s + self.offset[1]
        return x, y


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which faces are drawn at all.

    Attributes:
        near, far: a face with a vertex at z <= near or z >= far is not.
        facing: 0 draws both sides; 1 only faces whose corners follow one another
            counter-clockwise as seen on the screen, -1 only clockwise ones.
    """

    near: float = 0.0
    far: float = math.inf
    facing: int = 0


def snap(x: jax.Array, shift: float, centre: int, grid: SampleGrid) -> jax.Array:
    """Pixel coordinates to int32 units of 2**-bits samples, relative to `centre`.

    The rounding happens in pixel units, where it is one exact multiplication and one
    rounding; scaling to samples is then integer. The caller keeps values small enough
    for int32.
    """
    scale = 2**grid.bits
    units = jnp.round(x * scale).astype(jnp.int32)
    return units * grid.supersample + (round(shift * scale) - centre * scale)


def edge(ax, ay, bx, by, px, py):
    """cross(b - a, p - a), exact for differences of at most SMALL_SPAN."""
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


def wide_edge(ax, ay, bx, by, px, py):
    """cross(b - a, p - a) as (hi, lo), meaning hi * 2**10 + lo with 0 <= lo < 2**10.

    Exact for differences of at most MAX_SPAN.
    """
    ex, ey = bx - ax, by - ay
    dx, dy = px - ax, py - ay
    hi = ex * (dy >> LOW_BITS) - ey * (dx >> LOW_BITS)
    lo = ex * (dy & LOW_MASK) - ey * (dx & LOW_MASK)
    return hi + (lo >> LOW_BITS), lo & LOW_MASK


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b in float32, rounded once on every machine.

    Args:
        a, b: positive (a may be 0), such that they and their quotient are ordinary
            numbers; otherwise the result is any number.
    """
    return jax.lax.platform_dependent(a, b, cpu=jnp.divide, default=divide_by_remainder)


def divide_by_remainder(a, b, estimate: Callable = jnp.divide):
    """`divide`, given a quotient that is not off by more than two last places."""
    sure = (a > 0) & (b > 0)
    a, b = jnp.where(sure, a, 1.0), jnp.where(sure, b, 1.0)
    quotient = jax.lax.bitcast_convert_type(estimate(a, b), jnp.int32)
    (a_digits, a_power), (b_digits, b_power) = _take_apart(a), _take_apart(b)
    for _ in range(2):
        quotient = _improve(quotient, a_digits, b_digits, a_power - b_power)
    quotient = jax.lax.bitcast_convert_type(quotient, jnp.float32)
    return jnp.where(sure, quotient, 0.0)


def _improve(quotient, a_digits, b_digits, power):
    """A quotient's bits, one last place nearer to the true one, if not the nearest."""
    digits, own = _take_bits_apart(quotient)
    # a - quotient * b, in last places of both: small, so that 32 bits of it are all.
    shift = jnp.clip(power - own + 150, 0, 31)
    rest = (a_digits << shift) - digits * b_digits
    # Below a power of two last places are half as long.
    halve = (digits == 1 << 23) & (rest < 0)
    quotient = quotient - halve.astype(jnp.int32)
    rest = jnp.where(halve, 2 * rest + b_digits, rest)
    up, down = 2 * rest > b_digits, 2 * rest < -b_digits
    return quotient + up.astype(jnp.int32) - down.astype(jnp.int32)


def _take_apart(value):
    return _take_bits_apart(jax.lax.bitcast_convert_type(value, jnp.int32))


def _take_bits_apart(word):
    """The 24 digits of a positive float32, and its power of two, as they are stored."""
    return word & (1 << 23) - 1 | 1 << 23, word >> 23


class Arithmetic(NamedTuple):
    """How to compute in float32; all that may not differ between machines.

    Attributes:
        divide: (a, b) -> a / b, rounded once.
        round_mantissa: (value, bits) -> value rounded to nearest, ties to even.
        step: value -> value, as a step of its own; see `worklist.coarsening`.
    """

    divide: Callable
    round_mantissa: Callable
    step: Callable = lambda value: value


XLA = Arithmetic(
    divide,
    lambda value, bits: jax.lax.reduce_precision(value, 8, bits),
    jax.lax.optimization_barrier,
)


def nearness(edges, inverse_depths, facing: int = 0, arithmetic: Arithmetic = XLA):
    """How near a triangle is at a sample: int32 that grows with inverse depth.

    Args:
        edges: `edge` opposite to each of the three vertices, int32.
        inverse_depths: 1 / z of the three vertices, float32; 0 marks a bad vertex.
        facing: see `Rules`.
        arithmetic: that of whatever compiles this.

    Returns:
        int32; 0 where the sample is not covered or the triangle is degenerate, else
        the bits of the rounded positive inverse depth, of which the lowest three are 0.
    """
    e0, e1, e2 = edges
    area = e0 + e1 + e2
    lowest = jnp.minimum(jnp.minimum(e0, e1), e2)
    highest = jnp.maximum(jnp.maximum(e0, e1), e2)
    # y points down, so that a counter-clockwise face has negative areas.
    inside = _facing(lowest >= 0, highest <= 0, facing) & (area != 0)
    return _nearness(
        [e.astype(jnp.float32) for e in edges],
        area.astype(jnp.float32),
        inside,
        inverse_depths,
        arithmetic,
    )


def _facing(clockwise, counter_clockwise, facing: int):
    if facing == 0:
        return clockwise | counter_clockwise
    return counter_clockwise if facing > 0 else clockwise


def wide_nearness(edges, inverse_depths, facing: int = 0, arithmetic: Arithmetic = XLA):
    """`nearness` of `wide_edge`; the same number where both are exact."""
    lo = edges[0][1] + edges[1][1] + edges[2][1]
    hi = edges[0][0] + edges[1][0] + edges[2][0] + (lo >> LOW_BITS)
    lo = lo & LOW_MASK
    positive = negative = (hi | lo) != 0
    for high, low in edges:
        positive &= high >= 0
        negative &= (high < 0) | ((high | low) == 0)

    def to_float(hi, lo):
        # Both parts are exact in float32, so that the whole is rounded once, and alike
        # with either sign: hi alone may have more bits than float32.
        middle = (hi & 0xFF) << LOW_BITS | lo
        return (hi >> 8).astype(jnp.float32) * 2.0 ** (LOW_BITS + 8) + middle.astype(
            jnp.float32
        )

    return _nearness(
        [to_float(*e) for e in edges],
        to_float(hi, lo),
        _facing(positive, negative, facing),
        inverse_depths,
        arithmetic,
    )


def _nearness(edges, area, inside, inverse_depths, arithmetic: Arithmetic):
    a, b, c = inverse_depths
    ok = inside & (jnp.minimum(jnp.minimum(a, b), c) > 0.0)
    # Of whichever sign, as all edges are where they count.
    size = jnp.where(ok, jnp.abs(area), 1.0)
    shares = [arithmetic.divide(jnp.abs(e), size) for e in edges]
    products = [
        arithmetic.round_mantissa(s * i, 22)
        for s, i in zip(shares, inverse_depths, strict=True)
    ]
    total = arithmetic.round_mantissa(products[0] + products[1] + products[2], 20)
    return jnp.where(ok, jax.lax.bitcast_convert_type(total, jnp.int32), 0)
