"""Which samples a triangle covers, and which triangle is nearest, in exact arithmetic.

Everything that decides a face index lives here, and it rounds alike on every machine:

* Vertices are snapped to a grid of 2**-bits pixels, and a sample is covered when three
  integer edge functions agree in sign. Edges are inclusive: two triangles that share an
  edge leave no crack, and both cover the samples on it.
* The nearest face is the one with the largest inverse depth, computed in float32 from
  the exact integer barycentrics. A compiler may contract x*y + z into one rounding or
  two; rounding each product to 22 bits beforehand takes that freedom away. The sum is
  rounded to 20 bits: depths that agree to one part in a million are a tie, and the
  smallest face index wins a tie.

Depth, barycentrics and gradients never see the snapped vertices.
"""

import dataclasses
import math

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


def nearness(edges, inverse_depths, facing: int = 0):
    """How near a triangle is at a sample: int32 that grows with inverse depth.

    Args:
        edges: `edge` opposite to each of the three vertices, int32.
        inverse_depths: 1 / z of the three vertices, float32; 0 marks a bad vertex.
        facing: see `Rules`.

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
    )


def _facing(clockwise, counter_clockwise, facing: int):
    if facing == 0:
        return clockwise | counter_clockwise
    return counter_clockwise if facing > 0 else clockwise


def wide_nearness(edges, inverse_depths, facing: int = 0):
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
    )


def _nearness(edges, area, inside, inverse_depths):
    a, b, c = inverse_depths
    ok = inside & (jnp.minimum(jnp.minimum(a, b), c) > 0.0)
    area = jnp.where(ok, area, 1.0)
    products = [
        jax.lax.reduce_precision(e / area * i, 8, 22)
        for e, i in zip(edges, inverse_depths, strict=True)
    ]
    total = jax.lax.reduce_precision(products[0] + products[1] + products[2], 8, 20)
    return jnp.where(ok, jax.lax.bitcast_convert_type(total, jnp.int32), 0)
