"""Convolutions whose gradients are fast on CPUs too.

XLA computes the weight gradient of a convolution as another convolution, whose
"channels" are the images of the batch. On CPUs that reaches a quarter to a half
of the speed of the forward pass, for even kernels a hundredth. Here it is
rewritten as products that XLA:CPU runs at full speed; accelerators keep XLA's own
gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unsup3d_jax.rasterizer.batching import like


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation, zero padded alike on all sides.

    Both derivatives are exact; reverse mode only.
    """
    return plain_convolve(x, kernel, stride, padding)


def plain_convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """`convolve` with XLA's own derivatives, forward mode and transposition too."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(x: Array, kernel: Array, stride: int, padding: int):
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: int, residuals, cotangent: Array):
    x, kernel = residuals
    _, pull_x = jax.vjp(lambda x: plain_convolve(x, kernel, stride, padding), x)
    weight_gradient = partial(
        jax.lax.platform_dependent,
        cpu=partial(_weight_gradient_cpu, kernel, stride, padding),
        default=partial(_weight_gradient_xla, kernel, stride, padding),
    )
    return pull_x(cotangent)[0], weight_gradient(x, cotangent)


convolve.defvjp(_forward, _backward)


@jax.custom_vjp
def same_convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "b h w o"]:
    """`convolve` with stride 1 to the same size; differentiable again and again.

    Its derivatives are the same two functions, so that of any order they have the one
    layout that XLA:CPU has a fast program for. Elsewhere than in a loop or a branch
    XLA brings them into it itself; in there a derivative takes 20 times as long.

    The kernel's size is odd; reverse mode only, of any order.
    """
    return plain_convolve(x, kernel, 1, kernel.shape[0] // 2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(
    x: Float[Array, "b h w i"], y: Float[Array, "b h w o"], size: int
) -> Float[Array, "k k i o"]:
    """The derivative of <y, same_convolve(x, kernel)> by a kernel of `size` taps."""

    def canonical(x: Array, y: Array) -> Array:
        # Images as channels: what XLA makes of the other form, where it may.
        taps = plain_convolve(
            x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3), 1, size // 2
        )
        return taps.transpose(1, 2, 0, 3)

    def direct(x: Array, y: Array) -> Array:
        kernel = jnp.zeros((size, size, x.shape[-1], y.shape[-1]), x.dtype)
        return _weight_gradient_xla(kernel, 1, size // 2, x, y)

    return jax.lax.platform_dependent(x, y, cpu=canonical, default=direct)


def _turned(kernel: Array) -> Array:
    """The kernel of the adjoint convolution."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _same_backward(residuals: tuple[Array, Array], cotangent: Array):
    x, kernel = residuals
    size = kernel.shape[0]
    return same_convolve(cotangent, _turned(kernel)), _correlate(x, cotangent, size)


def _correlate_backward(size: int, residuals: tuple[Array, Array], cotangent: Array):
    x, y = residuals
    return same_convolve(y, _turned(cotangent)), same_convolve(x, cotangent)


same_convolve.defvjp(lambda x, k: (same_convolve(x, k), (x, k)), _same_backward)
_correlate.defvjp(lambda x, y, n: (_correlate(x, y, n), (x, y)), _correlate_backward)


def _weight_gradient_xla(
    kernel: Array, stride: int, padding: int, x: Array, cotangent: Array
) -> Array:
    _, pull = jax.vjp(lambda k: plain_convolve(x, k, stride, padding), kernel)
    return pull(cotangent)[0]


def _weight_gradient_cpu(
    kernel: Array, stride: int, padding: int, x: Array, cotangent: Array
) -> Array:
    """Picks the fastest form by shape; all give the same numbers to rounding.

    GFLOP/s on one x86 core with AVX-512, batch 8, where the forward pass
    reaches 130-190 (columns: XLA, rows, patches, few outputs):

        5 x 5, 64 -> 64, 64 px        68   127    20
        3 x 3, 64 -> 64, 64 px        41   119    22
        3 x 3, 128 -> 128, 32 px      37   151    38
        3 x 3, 512 -> 512, 4 px      132    58   161
        2 x 2, 64 -> 256, 32 px        1   128
        2 x 2, 512 -> 1024, 4 px       1    81   167
        5 x 5, 64 -> 3, 64 px         13    12     -    31

    Milliseconds of a strided one, batch 32, stride 2 (columns: XLA, all patches, an
    image's patches at a time), while other programs ran:

        3 x 3, 3 -> 32, 112 px        37    22    13
        3 x 3, 32 -> 64, 56 px       124   103    35
        3 x 3, 64 -> 128, 28 px       51    27    29
        3 x 3, 256 -> 256, 7 px       26    11    20
    """
    size, inputs, outputs = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    if stride > 1 and size % 2:  # even ones keep the numbers that runs began with
        return _weight_gradient_strided(kernel, stride, padding, x, cotangent)
    if stride != 1 or size == 1 or inputs < 16:
        return _weight_gradient_xla(kernel, stride, padding, x, cotangent)
    if outputs < 16:
        form = _weight_gradient_few_outputs
    elif cotangent.shape[1] < 12:
        form = _weight_gradient_patches
    else:
        form = _weight_gradient_rows
    return form(kernel, padding, x, cotangent).astype(kernel.dtype)


def _pad_image(x: Array, before: tuple[int, int], after: tuple[int, int]) -> Array:
    """Zero border of (..., h, w, c)."""
    widths = [(0, 0)] * (x.ndim - 3)
    return jnp.pad(x, (*widths, *zip(before, after, strict=True), (0, 0)))


def _sum_over_images(part_of_image, x: Array, cotangent: Array) -> Array:
    """Adds up float32 contributions; one image at a time stays in cache."""
    shape = jax.eval_shape(part_of_image, x[0], cotangent[0]).shape

    def add_image(total: Array, image_and_cotangent: tuple[Array, Array]):
        return total + part_of_image(*image_and_cotangent), None

    start = like(jnp.zeros(shape), x, cotangent)
    total, _ = jax.lax.scan(add_image, start, (x, cotangent))
    return total


def _weight_gradient_rows(
    kernel: Array, padding: int, x: Array, cotangent: Array
) -> Array:
    """Sum over images of a convolution along y, whole rows as channels.

    dK[r, s, i, o] = sum_y sum_x X[y + r, x + s, i] G[y, x, o]: for every
    column shift s and input channel i, a one-dimensional convolution over y
    with x as input and o as output channels.
    """
    kh, kw, inputs, outputs = kernel.shape
    width = cotangent.shape[2]

    def part(image: Array, g: Array) -> Array:
        border = (padding, padding)
        planes = jnp.pad(image.transpose(2, 0, 1), ((0, 0), border, border))
        shifted = jnp.concatenate([planes[:, :, s : s + width] for s in range(kw)])
        return jax.lax.conv_general_dilated(
            shifted,
            g,
            (1,),
            ((0, 0),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            preferred_element_type=jnp.float32,
        )

    total = _sum_over_images(part, x, cotangent)
    return total.reshape(kw, inputs, kh, outputs).transpose(2, 0, 1, 3)


def _weight_gradient_few_outputs(
    kernel: Array, padding: int, x: Array, cotangent: Array
) -> Array:
    """One matrix product an image, all shifts of the few outputs side by side."""
    kh, kw, inputs, outputs = kernel.shape
    height, width = x.shape[1:3]
    before = (kh - 1 - padding, kw - 1 - padding)
    after = (padding, padding)

    def part(image: Array, g: Array) -> Array:
        # X[y, x] meets G[y - r + padding, x - s + padding].
        g = _pad_image(g, before, after)
        shifted = [
            g[kh - 1 - r :, kw - 1 - s :][:height, :width]
            for r in range(kh)
            for s in range(kw)
        ]
        return jnp.einsum(
            "yxi,yxo->io",
            image,
            jnp.concatenate(shifted, axis=-1),
            preferred_element_type=jnp.float32,
        )

    total = _sum_over_images(part, x, cotangent)
    return total.reshape(inputs, kh, kw, outputs).transpose(1, 2, 0, 3)


def _weight_gradient_patches(
    kernel: Array, padding: int, x: Array, cotangent: Array, stride: int = 1
) -> Array:
    """One matrix product; the shifted copies of small maps cost little."""
    kh, kw = kernel.shape[:2]
    h, w = cotangent.shape[1:3]
    x = _pad_image(x, (padding, padding), (padding, padding))
    down, right = stride * (h - 1) + 1, stride * (w - 1) + 1  # first to last tap
    shifted = [
        x[:, r : r + down : stride, s : s + right : stride]
        for r in range(kh)
        for s in range(kw)
    ]
    return jnp.einsum(
        "bhwi,bhwo->io",
        jnp.concatenate(shifted, axis=-1),
        cotangent,
        preferred_element_type=jnp.float32,
    ).reshape(kernel.shape)


def _weight_gradient_strided(
    kernel: Array, stride: int, padding: int, x: Array, cotangent: Array
) -> Array:
    """`_weight_gradient_patches`, of large maps an image at a time."""

    def part(x: Array, g: Array) -> Array:
        return _weight_gradient_patches(kernel, padding, x, g, stride)

    if cotangent.shape[1] < 12:
        total = part(x, cotangent)
    else:
        total = _sum_over_images(lambda x, g: part(x[None], g[None]), x, cotangent)
    return total.astype(kernel.dtype)
