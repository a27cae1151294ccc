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
_LOW_BITS = 10
_LOW_MASK = 2**_LOW_BITS - 1
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
    """cross(b - a, p - a) as (hi, lo), meaning hi * 2**10 + lo with 0 <= lo < 2**10.

    Exact for int32 arguments whose differences stay below MAX_SPAN.
    """
    ex, ey = bx - ax, by - ay
    dx, dy = px - ax, py - ay
    hi = ex * (dy >> _LOW_BITS) - ey * (dx >> _LOW_BITS)
    lo = ex * (dy & _LOW_MASK) - ey * (dx & _LOW_MASK)
    return hi + (lo >> _LOW_BITS), lo & _LOW_MASK


def _to_float(hi, lo):
    return hi.astype(jnp.float32) * (2.0**_LOW_BITS) + lo.astype(jnp.float32)


def nearness(edges, inverse_depths):
    """How near a triangle is at a sample: int32 that grows with inverse depth.

    Args:
        edges: the edge functions opposite to the three vertices, each (hi, lo).
        inverse_depths: 1 / z of the three vertices, float32; 0 marks a bad vertex.

    Returns:
        int32; 0 where the sample is not covered or the triangle is degenerate, else
        the bits of the rounded positive inverse depth.
    """
    sum_lo = edges[0][1] + edges[1][1] + edges[2][1]
    area_hi = edges[0][0] + edges[1][0] + edges[2][0] + (sum_lo >> _LOW_BITS)
    area_lo = sum_lo & _LOW_MASK
    inside_ccw = (edges[0][0] >= 0) & (edges[1][0] >= 0) & (edges[2][0] >= 0)
    inside_cw = ~inside_ccw
    for hi, lo in edges:
        inside_cw &= (hi < 0) | ((hi | lo) == 0)
    area = _to_float(area_hi, area_lo)
    ok = (inside_ccw | inside_cw) & ((area_hi | area_lo) != 0)
    for inverse in inverse_depths:
        ok &= inverse > 0.0
    safe_area = jnp.where(ok, area, 1.0)
    total = None
    for (hi, lo), inverse in zip(edges, inverse_depths, strict=True):
        weight = jnp.where(ok, _to_float(hi, lo), 0.0) / safe_area
        product = jax.lax.reduce_precision(weight * inverse, 8, 22)
        total = product if total is None else total + product
    total = jax.lax.reduce_precision(total, 8, 20)
    bits = jax.lax.bitcast_convert_type(total, jnp.int32)
    return jnp.where(ok, bits, 0)
