"""Convolutions that change the resolution through the filter [1, 3, 3, 1].

A convolution with stride 2, or its transpose, and the low pass beside it are one
linear map with six taps along each axis, which touch three pixels of the coarser map.
So both are one 3 x 3 convolution there, to or from the four pixels that a coarse one
stands for: no dilation, no pass over a blurred map, and derivatives of any order are
convolutions of the same kind (Karras et al., CVPR 2020, "StyleGAN2").
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.nets.convolution import same_convolve

FILTER = (1.0, 3.0, 3.0, 1.0)  # along each axis; here it sums to 8


def _up_taps() -> np.ndarray:
    """(phase, coarse pixel, tap): along one axis, what a tap of the 3 x 3 kernel adds.

    The transposed convolution puts x[y] kernel[k] at 2y + k, and the filter, which
    begins one pixel before, sums to 2: out[p] = sum x[y] kernel[k] f[2y + k + 1 - p].
    """
    taps = np.zeros((2, 3, 3), np.float32)
    for phase in range(2):
        for coarse in range(3):  # x[q - 1], x[q], x[q + 1] make out[2q + phase]
            for k in range(3):
                t = 2 * (coarse - 1) + k + 1 - phase
                if 0 <= t < 4:
                    taps[phase, coarse, k] = FILTER[t] / 4.0
    return taps


_UP = _up_taps()
# On the way down the filter sums to 1 and begins two pixels before: out[q] = sum
# x[2q + k + t - 2] kernel[k] f[t]. The same table, since f is symmetric, but that the
# coarse pixels x[q - 1], x[q], x[q + 1] come in the opposite order.
_DOWN = _UP[:, ::-1] / 2.0


def up_convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b 2*h 2*w o"]:
    """Transposed convolution, stride 2, no padding, then the filter (sum 4, padding 1).

    The kernel is taken as PyTorch's transposed convolution takes it: not turned.
    """
    b, h, w, i = x.shape
    o = kernel.shape[-1]
    # (rows j of phase a, columns l of phase c): two small products.
    taps = _UP.astype(kernel.dtype)
    rows = jnp.einsum("ajk,knio->ajnio", taps, kernel)
    both = jnp.einsum("cln,ajnio->jliaco", taps, rows)
    y = same_convolve(x, both.reshape(3, 3, i, 4 * o))
    y = y.reshape(b, h, w, 2, 2, o).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, 2 * h, 2 * w, o)


def down_convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h//2 w//2 o"]:
    """The filter (sum 1, padding 2), then a convolution of stride 2, no padding."""
    b, h, w, i = x.shape
    o = kernel.shape[-1]
    taps = _DOWN.astype(kernel.dtype)
    rows = jnp.einsum("ajk,knio->ajnio", taps, kernel)
    both = jnp.einsum("cln,ajnio->jlacio", taps, rows)
    x = x.reshape(b, h // 2, 2, w // 2, 2, i).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, h // 2, w // 2, 4 * i)
    return same_convolve(x, both.reshape(3, 3, 4 * i, o))


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Zeros put between the pixels, then the filter (sum 4, padding 2 and 1).

    Every new pixel is 3/4 of the pixel it lies in and 1/4 of the next; zero outside.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        padded = jnp.pad(x, [(int(a == axis),) * 2 for a in range(4)])

        def part(start: int, padded=padded, axis=axis, n=n) -> Array:
            return padded[(slice(None),) * axis + (slice(start, start + n),)]

        near = 0.75 * x
        pair = jnp.stack([near + 0.25 * part(0), near + 0.25 * part(2)], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The filter (sum 1, padding 1) at every second pixel."""
    for axis in (1, 2):
        n = x.shape[axis] // 2
        padded = jnp.pad(x, [(int(a == axis),) * 2 for a in range(4)])
        pairs = padded.reshape(*x.shape[:axis], n + 1, 2, *x.shape[axis + 1 :])

        def part(start: int, phase: int, pairs=pairs, axis=axis, n=n) -> Array:
            where = (slice(None),) * axis + (slice(start, start + n), phase)
            return pairs[where]

        x = (part(0, 0) + 3.0 * (part(0, 1) + part(1, 0)) + part(1, 1)) / 8.0
    return x
