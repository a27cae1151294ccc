"""What the networks are made of: convolutions without bias, and GroupNorm.

Strided transposed convolutions and the convolution behind the nearest
upsampling are computed as one 2 x 2 convolution to four sub-pixel phases: the
same numbers with no multiplication by inserted or repeated pixels. Also on NVIDIA's
GPUs, though cuDNN has the transposed convolution itself: with it a step took 204 s to
compile on an H200, not 62, and was no longer the same bit for bit in two processes.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unsup3d_jax.nets.convolution import convolve

DTYPE = jnp.dtype
FLOAT32 = jnp.dtype(jnp.float32)


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """U(-b, b) with b = 1/sqrt(fan_in): the authors' framework default."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        # Drawn in a few sizes, since each costs seconds to compile on a CPU. What
        # is drawn depends on the place alone, so that no number changes by it.
        count, drawn = math.prod(shape), 1024
        while drawn < count:
            drawn *= 16
        values = jax.random.uniform(key, (drawn,), dtype, -bound, bound)
        return values[:count].reshape(shape)

    return init


def _interleave_phases(
    x: Float[Array, "b h w i"], phases: Float[Array, "2 2 2 2 i o"]
) -> Float[Array, "b 2*h 2*w o"]:
    """Doubles the resolution; phases[a, b] makes output pixels (2y+a, 2x+b).

    phases has axes (phase row, phase column, kernel row, kernel column, in,
    out). A 2 x 2 window at padded position p sees inputs p-1 and p, which is
    what phase 0 of output row 2p needs, and phase 1 of output row 2(p-1) + 1.
    """
    b, h, w, i = x.shape
    o = phases.shape[-1]
    kernel = phases.transpose(2, 3, 4, 0, 1, 5).reshape(2, 2, i, 4 * o)
    y: Array = convolve(x, kernel, 1, 1)
    y = y.reshape(b, h + 1, w + 1, 2, 2, o)
    rows = [
        jnp.stack([y[:, a : a + h, c : c + w, a, c] for c in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, o)


def transposed_convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]
) -> Float[Array, "b 2*h 2*w o"]:
    """Transposed convolution, kernel 4, stride 2, padding 1.

    out[2y - 1 + k] += x[y] kernel[k], the gradient of a strided convolution. Reverse
    mode only.
    """
    # Phase a of a row takes tap 3 - a from the input above, 1 - a from the one below.
    # Reversed and reshaped, not indexed: the gradient of indexing is a scatter.
    i, o = kernel.shape[2:]
    phases = kernel[::-1, ::-1].reshape(2, 2, 2, 2, i, o)  # (ky, a, kx, c, i, o)
    return _interleave_phases(x, phases.transpose(1, 3, 0, 2, 4, 5))


def upsampled_convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b 2*h 2*w o"]:
    """3 x 3 convolution (padding 1) of the nearest-neighbour upsampled x.

    Repeated pixels share their taps, so each phase is a 2 x 2 convolution:
    4/9 of the multiplications. Reverse mode only.
    """

    def halves(k: Array) -> Array:  # (3, ...) -> (2 phases, 2 taps, ...)
        return jnp.stack(
            [jnp.stack([k[0], k[1] + k[2]]), jnp.stack([k[0] + k[1], k[2]])]
        )

    rows = halves(kernel)  # (a, ky, 3, i, o)
    phases = halves(jnp.moveaxis(rows, 2, 0))  # (c, kx, a, ky, i, o)
    return _interleave_phases(x, phases.transpose(2, 0, 3, 1, 4, 5))


class Conv(nn.Module):
    """Convolution without bias; kernel HWIO."""

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    dtype: DTYPE = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = uniform_by_fan_in(math.prod(shape[:3]))
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        if x.shape[1:3] == (self.size, self.size) and self.padding == 0:
            # One output pixel: a plain matrix product.
            return jnp.einsum("bhwi,hwio->bo", x, kernel)[:, None, None]
        return convolve(x, kernel, self.stride, self.padding)


class Deconv(nn.Module):
    """4 x 4 transposed convolution without bias; kernel (4, 4, in, out).

    From 1 x 1 it gives 4 x 4 (stride 1, padding 0), else it doubles the
    resolution (stride 2, padding 1). fan_in counts the *output* channels, as
    the authors' framework does for transposed convolutions.
    """

    features: int
    dtype: DTYPE = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        shape = (4, 4, x.shape[-1], self.features)
        init = uniform_by_fan_in(16 * self.features)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        if x.shape[1:3] == (1, 1):
            return jnp.einsum("bi,hwio->bhwo", x[:, 0, 0], kernel)
        return transposed_convolve(x, kernel)


class UpsampledConv(nn.Module):
    """Nearest upsampling x2, then a 3 x 3 convolution without bias."""

    features: int
    dtype: DTYPE = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        shape = (3, 3, x.shape[-1], self.features)
        init = uniform_by_fan_in(math.prod(shape[:3]))
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        return upsampled_convolve(x, kernel)


def _group_mean(per_channel: Array, groups: int, count: int) -> Array:
    """Sums over pixels (b, c) -> mean over each channel's group, (b, 1, 1, c)."""
    b, c = per_channel.shape
    total = per_channel.reshape(b, groups, c // groups).sum(-1, keepdims=True)
    full = jnp.broadcast_to(total / count, (b, groups, c // groups))
    return full.reshape(b, 1, 1, c)


def _group_size(x: Array, groups: int) -> int:
    _, h, w, c = x.shape
    return h * w * (c // groups)


def _group_statistics(x: Array, groups: int) -> tuple[Array, Array, Array]:
    """float32 x, mean and 1/deviation as (b, 1, 1, c)."""
    count = _group_size(x, groups)
    wide = x.astype(jnp.float32)
    mean = _group_mean(wide.sum((1, 2)), groups, count)
    # Two passes, not E[x^2] - mean^2, which cancels for large means.
    variance = _group_mean(jnp.square(wide - mean).sum((1, 2)), groups, count)
    return wide, mean, jax.lax.rsqrt(variance + 1e-5)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_normalise(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    groups: int,
) -> Float[Array, "b h w c"]:
    """Group normalisation over contiguous channel blocks, epsilon 1e-5.

    Sums per channel first, then per group: an order of magnitude faster on
    CPU than a reshape to (..., group, channel). The exact derivative is
    written out (reverse mode only), because it needs just two sums over
    pixels and one pass: XLA's takes four times as long on CPU.
    """
    return _group_normalise_forward(x, scale, bias, groups)[0]


def _group_normalise_forward(x, scale, bias, groups):
    wide, mean, inverse = _group_statistics(x, groups)
    y = ((wide - mean) * (inverse * scale) + bias).astype(x.dtype)
    # Not the normal numbers: two passes over them would cost more than making them.
    return y, (x, scale, mean, inverse)


def _group_normalise_backward(groups, residuals, cotangent):
    x, scale, mean, inverse = residuals
    wide, count = x.astype(jnp.float32), _group_size(x, groups)
    g = cotangent.astype(jnp.float32)
    g_sum = g.sum((1, 2))  # (b, c)
    g_normal = (g * ((wide - mean) * inverse)).sum((1, 2))
    mean_g = _group_mean(scale * g_sum, groups, count)
    mean_g_normal = _group_mean(scale * g_normal, groups, count)
    slope = inverse * mean_g_normal
    x_bar = inverse * (scale * g - mean_g - (wide - mean) * slope)
    return x_bar.astype(x.dtype), g_normal.sum(0), g_sum.sum(0)


group_normalise.defvjp(_group_normalise_forward, _group_normalise_backward)


class GroupNorm(nn.Module):
    """`group_normalise` with a learnt scale and shift per channel.

    Statistics are float32 whatever the input.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        if c % self.groups:
            raise ValueError(f"{c} channels do not divide into {self.groups} groups.")
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return group_normalise(x, scale, bias, self.groups)
