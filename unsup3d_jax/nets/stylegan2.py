"""StyleGAN2, generator and discriminator (Karras et al., CVPR 2020).

Images are "signed": float32 in [-1, 1], (b, h, w, 3). What the parameters are is said
in `stylegan2_parameters`.

A convolution whose kernel depends on the image's style is computed as the image's
channels scaled, one shared convolution, and its outputs scaled, which is the same.
Nothing here is reverse mode only: R1 and path length differentiate twice.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unsup3d_jax.nets import fir
from unsup3d_jax.nets.convolution import same_convolve
from unsup3d_jax.nets.stylegan2_parameters import (
    GanOptions,
    StyleGan,
    init_discriminator,
    init_generator,
)

__all__ = [
    "GanOptions",
    "StyleGan",
    "discriminate",
    "discriminator_features",
    "fixed_noise",
    "generate",
    "init_discriminator",
    "init_generator",
    "map_latent",
    "mean_latent",
    "random_noise",
    "synthesise",
    "truncate",
]

Params = Mapping[str, Any]

_TINY = 1e-8  # under every square root, as in the paper's code
_GROUP = 4  # images whose deviation the discriminator sees


# --- layers --------------------------------------------------------------------------


def _activate(x: Array, bias: Array) -> Array:
    return math.sqrt(2.0) * jax.nn.leaky_relu(x + bias, 0.2)


def _dense(params: Params, x: Array, rate: float = 1.0) -> Array:
    """Without bias."""
    return x @ (params["kernel"] * (rate / math.sqrt(x.shape[-1])))


def _scaled(kernel: Array) -> Array:
    """A 3 x 3 kernel as it is used."""
    return kernel * (1.0 / math.sqrt(math.prod(kernel.shape[:-1])))


def _style(params: Params, w: Array) -> Array:
    """(b, 1, 1, i) factors of a layer's input channels."""
    product = w @ (params["style_kernel"] * (1.0 / math.sqrt(w.shape[-1])))
    return (product + params["style_bias"])[:, None, None]


def _styled(params: Params, x: Array, w: Array, noise: Array | None, up: bool) -> Array:
    """One layer of the synthesis: modulated convolution, noise, activation."""
    kernel, style = _scaled(params["kernel"]), _style(params, w)
    convolve = fir.up_convolve if up else same_convolve
    # The length of each output's kernel after modulation: the sum over the taps does
    # not depend on the image.
    squares = jnp.square(kernel).sum((0, 1))
    unit = jax.lax.rsqrt(jnp.square(style) @ squares + _TINY)
    x = convolve(x * style, kernel) * unit
    if noise is not None:
        x = x + params["noise"] * noise.reshape(-1, *x.shape[1:3], 1)
    return _activate(x, params["bias"])


def _to_rgb(params: Params, x: Array, w: Array) -> Array:
    return _dense(params, x * _style(params, w)) + params["bias"]


# --- generator -----------------------------------------------------------------------


def map_latent(
    mapping: Params,
    z: Float[Array, "b s"],
    options: GanOptions,
    first: int = 0,
    last: int | None = None,
) -> Float[Array, "b s"]:
    """The mapping network from z to w, or a part of it.

    Args:
        mapping: parameters.
        z: unit normal, or what the part begins with.
        options: of the generator.
        first, last: F[first:last], where F[0] makes the mean square of z one ("pixel
            norm") and F[1], F[2], ... are the dense layers; None: to the end.
    """
    steps = range(options.mapping_layers + 1)[first:last]
    for step in steps:
        if step == 0:
            mean = jnp.square(z).mean(-1, keepdims=True)
            z = z * jax.lax.rsqrt(mean + _TINY)
        else:
            params = mapping[f"dense_{step - 1}"]
            product = _dense(params, z, options.mapping_rate)
            z = _activate(product, params["bias"] * options.mapping_rate)
    return z


def mean_latent(
    mapping: Params, key: Key[Array, ""], options: GanOptions, count: int = 4096
) -> Float[Array, "s"]:
    """Mean w of `count` mapped normals: what truncation pulls to."""
    z = jax.random.normal(key, (count, options.style))
    return map_latent(mapping, z, options).mean(0)


def truncate(
    w: Float[Array, "*b s"], mean_w: Float[Array, "s"], psi: float
) -> Float[Array, "*b s"]:
    """w pulled to the mean; psi 1 leaves it, 0 gives the mean."""
    return mean_w + psi * (w - mean_w)


def random_noise(
    key: Key[Array, ""], options: GanOptions, batch: int
) -> tuple[Float[Array, "b _ _"], ...]:
    """Noise maps of the unit normal, a map an image for each layer."""
    sizes = [size**2 for size in options.noise_sizes]
    normal, position, maps = jax.random.normal(key, (batch, sum(sizes))), 0, []
    for size in options.noise_sizes:
        part = normal[:, position : position + size**2]
        maps.append(part.reshape(batch, size, size))
        position += size**2
    return tuple(maps)


def fixed_noise(
    key: Key[Array, ""], options: GanOptions
) -> tuple[Float[Array, "_ _"], ...]:
    """Noise maps that all images share."""
    return tuple(maps[0] for maps in random_noise(key, options, 1))


def synthesise(
    synthesis: Params,
    w: Float[Array, "b s"] | Float[Array, "b n s"],
    noise: Sequence[Array] | None,
    options: GanOptions,
) -> Float[Array, "b h w 3"]:
    """Signed images of latents; unbounded, mostly within [-1, 1].

    Args:
        synthesis: parameters.
        w: one vector an image for all layers, or W+: `options.latents` vectors.
        noise: a map a layer, (r, r) or (b, r, r); None: no noise. Not used if the
            options have no noise.
        options: of the generator.

    Raises:
        ValueError: if W+ has another number of vectors, or noise of maps.
    """
    if w.ndim == 2:
        w = jnp.broadcast_to(w[:, None], (w.shape[0], options.latents, w.shape[1]))
    if w.shape[1] != options.latents:
        raise ValueError(
            f"W+ must have {options.latents} vectors for {options.image_size} px, got "
            f"{w.shape[1]}."
        )
    layers = len(options.noise_sizes)
    maps = [None] * layers if noise is None or not options.noise else list(noise)
    if len(maps) != layers:
        raise ValueError(f"noise must be {layers} maps, got {len(maps)}.")
    constant, first = synthesis["constant"], synthesis["block_0"]
    x = jnp.broadcast_to(constant, (w.shape[0], *constant.shape))
    x = _styled(first["conv"], x, w[:, 0], maps[0], up=False)
    rgb = _to_rgb(first["rgb"], x, w[:, 1])
    for n in range(1, len(options.channels)):
        block = synthesis[f"block_{n}"]
        x = _styled(block["up"], x, w[:, 2 * n - 1], maps[2 * n - 1], up=True)
        x = _styled(block["conv"], x, w[:, 2 * n], maps[2 * n], up=False)
        # Shares its vector with the first layer of the next block.
        rgb = fir.upsample(rgb) + _to_rgb(block["rgb"], x, w[:, 2 * n + 1])
    return rgb


def generate(
    gan: StyleGan, w: Float[Array, "b s"] | Float[Array, "b n s"]
) -> Float[Array, "b h w 3"]:
    """Signed images of latents with the generator's fixed noise; see `synthesise`."""
    return synthesise(gan.synthesis, w, gan.noise, gan.options)


# --- discriminator -------------------------------------------------------------------


def _conv(params: Params, x: Array) -> Array:
    x = same_convolve(x, _scaled(params["kernel"]))
    return _activate(x, params["bias"])


def _block(params: Params, x: Array) -> Array:
    """Residual block, half the resolution."""
    down, skip = params["down"], params["skip"]
    y = fir.down_convolve(_conv(params["conv"], x), _scaled(down["kernel"]))
    y = _activate(y, down["bias"])
    return (y + _dense(skip, fir.downsample(x))) * math.sqrt(0.5)


def discriminator_features(
    discriminator: Params,
    signed: Float[Array, "b h w 3"],
    options: GanOptions,
    count: int = 4,
) -> tuple[Array, ...]:
    """Maps after the first residual blocks, (b, h/2, w/2, c), (b, h/4, w/4, c), ...

    Args:
        discriminator: parameters.
        signed: images of any size that can be halved so often.
        options: of the discriminator; its image_size need not be that of the images.
        count: blocks; no more than there are.
    """
    rgb = discriminator["rgb"]
    x, maps = _activate(_dense(rgb, signed), rgb["bias"]), []
    for n in range(min(count, len(options.channels) - 1)):
        x = _block(discriminator[f"block_{n}"], x)
        maps.append(x)
    return tuple(maps)


def _deviation(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """How much the images of a group differ, one number for all of them."""
    b, h, w, c = x.shape
    group = min(b, _GROUP)
    if b % group:
        raise ValueError(f"a batch must be 1 to 3 or a multiple of {_GROUP}, got {b}.")
    variance = x.reshape(group, b // group, h, w, c).var(0)
    mean = jnp.sqrt(variance + _TINY).mean((1, 2, 3))
    return jnp.broadcast_to(jnp.tile(mean, group)[:, None, None, None], (b, h, w, 1))


def discriminate(
    discriminator: Params, signed: Float[Array, "b h w 3"], options: GanOptions
) -> Float[Array, "b"]:
    """Logits, high for real images.

    They depend on the batch: of each four images (b/4 apart) the deviation is seen.

    Raises:
        ValueError: if the images are of another size, or more than 3 and no multiple
            of 4.
    """
    size = options.image_size
    if signed.shape[1:3] != (size, size):
        raise ValueError(f"images must be {size} px, got shape {signed.shape}.")
    count = len(options.channels) - 1
    x = discriminator_features(discriminator, signed, options, count)[-1]
    x = _conv(discriminator["conv"], jnp.concatenate([x, _deviation(x)], -1))
    first, last = discriminator["dense_0"], discriminator["dense_1"]
    x = _activate(_dense(first, x.reshape(x.shape[0], -1)), first["bias"])
    return (_dense(last, x) + last["bias"])[:, 0]
