"""What a StyleGAN2 is made of: its options, and fresh parameters.

Parameters are nested dictionaries of arrays, stored as drawn from the unit normal: the
scale that each layer multiplies with (equalised learning rate) is not in them. Kernels
are HWIO, those of dense layers and 1 x 1 convolutions (in, out).
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from unsup3d_jax.formation.types import Leaf


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
