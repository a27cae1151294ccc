"""StyleGAN2, generator and discriminator (Karras et al., CVPR 2020).

Images are "signed": float32 in [-1, 1], (b, h, w, 3). Parameters are nested
dictionaries of arrays, stored as drawn from the unit normal: the scale that each layer
multiplies with (equalised learning rate) is not in them. Kernels are HWIO, those of
dense layers and 1 x 1 convolutions (in, out).

A convolution whose kernel depends on the image's style is computed as the image's
channels scaled, one shared convolution, and its outputs scaled, which is the same.
Nothing here is reverse mode only: R1 and path length differentiate twice.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from unsup3d_jax.formation.types import Leaf
from unsup3d_jax.nets import fir
from unsup3d_jax.nets.convolution import plain_convolve

Params = Mapping[str, Any]

_TINY = 1e-8  # under every square root, as in the paper's code
_GROUP = 4  # images whose deviation the discriminator sees


@dataclasses.dataclass(frozen=True)
class GanOptions:
    """Everything static about a StyleGAN2; hashable.

    Attributes:
        image_size: pixels, 4 times a power of 2, at least 8.
        channels: of the maps at 4, 8, ..., image_size pixels.
        style: numbers in z and in w.
        mapping_layers: dense layers from z to w.
        mapping_rate: their learning rate over that of the others.
        noise: whether the generator has noise inputs.

    Raises:
        ValueError: if a value is none of these.
    """

    image_size: int
    channels: tuple[int, ...]
    style: int = 512
    mapping_layers: int = 8
    mapping_rate: float = 0.01
    noise: bool = True

    def __post_init__(self):
        size = self.image_size
        if size < 8 or size & (size - 1):
            raise ValueError(f"image_size must be 8, 16, 32, ..., got {size}.")
        levels = size.bit_length() - 2
        if len(self.channels) != levels or min(self.channels) < 1:
            raise ValueError(
                f"channels must be {levels} positive numbers, of the levels 4 to "
                f"{size} px, got {self.channels}."
            )
        if self.style < 1 or self.mapping_layers < 1 or not self.mapping_rate > 0:
            raise ValueError(
                "need style >= 1, mapping_layers >= 1 and mapping_rate > 0, got "
                f"{self.style}, {self.mapping_layers} and {self.mapping_rate}."
            )

    @property
    def latents(self) -> int:
        """n, how many vectors w+ has: one a layer, shared by neighbours."""
        return 2 * len(self.channels)

    @property
    def noise_sizes(self) -> tuple[int, ...]:
        """Pixels along a side of each layer's noise map: 4, 8, 8, 16, 16, ..."""
        sizes = [4 * 2**level for level in range(len(self.channels))]
        return (4, *(size for size in sizes[1:] for _ in range(2)))


@struct.dataclass
class StyleGan:
    """A trained generator and its discriminator, as another method uses them.

    Attributes:
        mapping, synthesis, discriminator: parameters.
        noise: fixed maps, (r, r) a layer.
        mean_w: (style,) what truncation pulls to.
        options: static.
    """

    mapping: Any
    synthesis: Any
    discriminator: Any
    noise: tuple[Float[Leaf, "_ _"], ...]
    mean_w: Float[Leaf, "s"]
    options: GanOptions = struct.field(pytree_node=False)


# --- parameters ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Start:
    """How one array begins: all of one value, or drawn from the normal times `gain`."""

    shape: tuple[int, ...]
    value: float | None = None
    gain: float = 1.0


def _dense_start(inputs: int, outputs: int, rate: float = 1.0) -> dict[str, _Start]:
    kernel = _Start((inputs, outputs), gain=1.0 / rate)
    return {"kernel": kernel, "bias": _Start((outputs,), 0.0)}


def _conv_start(inputs: int, outputs: int) -> dict[str, _Start]:
    return {
        "kernel": _Start((3, 3, inputs, outputs)),
        "bias": _Start((outputs,), 0.0),
    }


def _style_start(style: int, inputs: int) -> dict[str, _Start]:
    return {
        "style_kernel": _Start((style, inputs)),
        "style_bias": _Start((inputs,), 1.0),
    }


def _generator_start(options: GanOptions) -> dict[str, Any]:
    style, channels = options.style, options.channels

    def layer(inputs: int, outputs: int) -> dict[str, _Start]:
        conv, strength = _conv_start(inputs, outputs), {"noise": _Start((), 0.0)}
        return conv | _style_start(style, inputs) | strength

    def rgb(inputs: int) -> dict[str, _Start]:
        return _dense_start(inputs, 3) | _style_start(style, inputs)

    mapping = {
        f"dense_{n}": _dense_start(style, style, options.mapping_rate)
        for n in range(options.mapping_layers)
    }
    synthesis: dict[str, Any] = {
        "constant": _Start((4, 4, channels[0])),
        "block_0": {"conv": layer(channels[0], channels[0]), "rgb": rgb(channels[0])},
    }
    for n, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False), 1):
        synthesis[f"block_{n}"] = {
            "up": layer(inputs, outputs),
            "conv": layer(outputs, outputs),
            "rgb": rgb(outputs),
        }
    return {"mapping": mapping, "synthesis": synthesis}


def _discriminator_start(options: GanOptions) -> dict[str, Any]:
    channels = options.channels[::-1]
    params: dict[str, Any] = {"rgb": _dense_start(3, channels[0])}
    for n, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
        params[f"block_{n}"] = {
            "conv": _conv_start(inputs, inputs),
            "down": _conv_start(inputs, outputs),
            "skip": {"kernel": _Start((inputs, outputs))},
        }
    last = channels[-1]
    params["conv"] = _conv_start(last + 1, last)
    params["dense_0"] = _dense_start(16 * last, last)
    params["dense_1"] = _dense_start(last, 1)
    return params


@partial(jax.jit, static_argnames="kind_and_options")
def _drawn(key: Array, *, kind_and_options: tuple[Any, GanOptions]) -> dict[str, Any]:
    """All at once: each size drawn by itself costs a CPU seconds to compile."""
    kind, options = kind_and_options
    starts, tree = jax.tree.flatten(
        kind(options), is_leaf=lambda leaf: isinstance(leaf, _Start)
    )
    sizes = [0 if s.value is not None else math.prod(s.shape) for s in starts]
    normal, position, arrays = jax.random.normal(key, (sum(sizes),)), 0, []
    for start, size in zip(starts, sizes, strict=True):
        if start.value is not None:
            arrays.append(jnp.full(start.shape, start.value))
        else:
            values = jax.lax.slice(normal, (position,), (position + size,))
            arrays.append(start.gain * values.reshape(start.shape))
        position += size
    return jax.tree.unflatten(tree, arrays)


def init_generator(key: Key[Array, ""], options: GanOptions) -> dict[str, Any]:
    """Fresh parameters, {"mapping": ..., "synthesis": ...}, float32.

    Kernels of the unit normal (of the mapping over its rate), biases 0, those of the
    modulation 1, noise strengths 0.
    """
    return _drawn(key, kind_and_options=(_generator_start, options))


def init_discriminator(key: Key[Array, ""], options: GanOptions) -> dict[str, Any]:
    """Fresh parameters, float32: kernels of the unit normal, biases 0."""
    return _drawn(key, kind_and_options=(_discriminator_start, options))


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
    convolve = fir.up_convolve if up else partial(plain_convolve, stride=1, padding=1)
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
) -> tuple[Float[Array, "b r r"], ...]:
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
) -> tuple[Float[Array, "r r"], ...]:
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
    x = plain_convolve(x, _scaled(params["kernel"]), 1, 1)
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
