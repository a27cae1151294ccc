"""Where rosinality's PyTorch StyleGAN2 keeps each array that ours has."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.nets import fir
from unsup3d_jax.nets.stylegan2 import GanOptions

_LARGEST = 12  # blocks: 16384 px, more than any


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of theirs.

    Attributes:
        key: in their state dictionary.
        ours: its name among our parameters, parts joined by "/".
        shape: of theirs.
        convert: makes ours of it.
        filter_sum: of a filter, which is checked and not kept: what it sums to.
    """

    key: str
    ours: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray
    filter_sum: float | None = None


def is_the_filter(array: np.ndarray, total: float) -> bool:
    """Whether a (4, 4) array is the filter that `nets.fir` has built in."""
    wanted = np.outer(fir.FILTER, fir.FILTER) * (total / 64.0)
    return bool(np.allclose(array, wanted, rtol=1e-4, atol=1e-6))


def infer_options(state: Mapping[str, Any], source: str) -> GanOptions:
    """Size, channels and style of a generator, by the shapes of its arrays.

    Raises:
        UserError: if they are those of no StyleGAN2.
    """

    def shape(key: str, rank: int) -> tuple[int, ...]:
        found = tuple(getattr(state.get(key), "shape", ()))
        if len(found) != rank:
            raise UserError(
                f"{source}: {key!r} must be an array of {rank} axes, found shape "
                f"{found}; not a StyleGAN2 in rosinality's layout."
            )
        return found

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, key) is not None for key in state)

    blocks = count(r"to_rgbs\.\d+\.bias")
    if not 1 <= blocks <= _LARGEST:
        raise UserError(f"{source}: expected arrays 'to_rgbs.0.bias', ...; no such.")
    channels = [shape("input.input", 4)[1]]
    channels += [shape(f"convs.{2 * n}.conv.weight", 5)[1] for n in range(blocks)]
    with refusing(f"{source}: "):
        return GanOptions(
            image_size=4 * 2**blocks,
            channels=tuple(channels),
            style=shape("style.1.weight", 2)[0],
            mapping_layers=count(r"style\.\d+\.weight"),
        )


def _dense(array: np.ndarray) -> np.ndarray:
    return array.T


def _pointwise(array: np.ndarray) -> np.ndarray:
    """([1,] out, in, 1, 1) -> (in, out)."""
    return array[..., 0, 0].reshape(array.shape[-4:-2]).T


def _kernel(array: np.ndarray) -> np.ndarray:
    """([1,] out, in, h, w) -> (h, w, in, out)."""
    return array.reshape(array.shape[-4:]).transpose(2, 3, 1, 0)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def _scalar(array: np.ndarray) -> np.ndarray:
    return array.reshape(())


def generator_table(options: GanOptions) -> list[Entry]:
    """All arrays of "g_ema"; ours lie under mapping/, synthesis/ and noise/."""
    style, channels = options.style, options.channels
    table = []
    for n in range(options.mapping_layers):
        theirs, ours = f"style.{n + 1}", f"mapping/dense_{n}"
        table += [
            Entry(f"{theirs}.weight", f"{ours}/kernel", (style, style), _dense),
            Entry(f"{theirs}.bias", f"{ours}/bias", (style,)),
        ]

    def modulation(theirs: str, ours: str, inputs: int) -> list[Entry]:
        key = f"{theirs}.conv.modulation"
        return [
            Entry(f"{key}.weight", f"{ours}/style_kernel", (inputs, style), _dense),
            Entry(f"{key}.bias", f"{ours}/style_bias", (inputs,)),
        ]

    def layer(theirs: str, ours: str, inputs: int, outputs: int) -> list[Entry]:
        shape = (1, outputs, inputs, 3, 3)
        return [
            Entry(f"{theirs}.conv.weight", f"{ours}/kernel", shape, _kernel),
            *modulation(theirs, ours, inputs),
            Entry(f"{theirs}.noise.weight", f"{ours}/noise", (1,), _scalar),
            Entry(f"{theirs}.activate.bias", f"{ours}/bias", (outputs,)),
        ]

    def rgb(theirs: str, ours: str, inputs: int) -> list[Entry]:
        shape = (1, 3, inputs, 1, 1)
        return [
            Entry(f"{theirs}.conv.weight", f"{ours}/kernel", shape, _pointwise),
            *modulation(theirs, ours, inputs),
            Entry(f"{theirs}.bias", f"{ours}/bias", (1, 3, 1, 1), _flat),
        ]

    def channels_last(array: np.ndarray) -> np.ndarray:
        return array[0].transpose(1, 2, 0)

    first, block = channels[0], "synthesis/block_0"
    shape = (1, first, 4, 4)
    table += [
        Entry("input.input", "synthesis/constant", shape, channels_last),
        *layer("conv1", f"{block}/conv", first, first),
        *rgb("to_rgb1", f"{block}/rgb", first),
    ]
    for n, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
        up, conv, block = 2 * n, 2 * n + 1, f"synthesis/block_{n + 1}"
        table += [
            *layer(f"convs.{up}", f"{block}/up", inputs, outputs),
            Entry(f"convs.{up}.conv.blur.kernel", "", (4, 4), filter_sum=4.0),
            *layer(f"convs.{conv}", f"{block}/conv", outputs, outputs),
            *rgb(f"to_rgbs.{n}", f"{block}/rgb", outputs),
            Entry(f"to_rgbs.{n}.upsample.kernel", "", (4, 4), filter_sum=4.0),
        ]
    table += [
        Entry(f"noises.noise_{n}", f"noise/{n}", (1, 1, r, r), lambda a: a[0, 0])
        for n, r in enumerate(options.noise_sizes)
    ]
    return table


def discriminator_table(options: GanOptions) -> list[Entry]:
    """All arrays of "d"."""
    channels = options.channels[::-1]
    first, last = channels[0], channels[-1]
    table = [
        Entry("convs.0.0.weight", "rgb/kernel", (first, 3, 1, 1), _pointwise),
        Entry("convs.0.1.bias", "rgb/bias", (first,)),
    ]

    def conv(weight: str, bias: str, ours: str, inputs: int, outputs: int):
        shape = (outputs, inputs, 3, 3)
        return [
            Entry(weight, f"{ours}/kernel", shape, _kernel),
            Entry(bias, f"{ours}/bias", (outputs,)),
        ]

    for n, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
        key, block, skip = f"convs.{n + 1}", f"block_{n}", (outputs, inputs, 1, 1)
        one, two = f"{key}.conv1", f"{key}.conv2"
        table += [
            *conv(f"{one}.0.weight", f"{one}.1.bias", f"{block}/conv", inputs, inputs),
            Entry(f"{two}.0.kernel", "", (4, 4), filter_sum=1.0),
            *conv(f"{two}.1.weight", f"{two}.2.bias", f"{block}/down", inputs, outputs),
            Entry(f"{key}.skip.0.kernel", "", (4, 4), filter_sum=1.0),
            Entry(f"{key}.skip.1.weight", f"{block}/skip/kernel", skip, _pointwise),
        ]

    def of_pixels(array: np.ndarray) -> np.ndarray:
        """Their maps are flattened channels first, ours last."""
        array = array.reshape(last, last, 4, 4).transpose(2, 3, 1, 0)
        return array.reshape(16 * last, last)

    head = "final_linear"
    table += [
        *conv("final_conv.0.weight", "final_conv.1.bias", "conv", last + 1, last),
        Entry(f"{head}.0.weight", "dense_0/kernel", (last, 16 * last), of_pixels),
        Entry(f"{head}.0.bias", "dense_0/bias", (last,)),
        Entry(f"{head}.1.weight", "dense_1/kernel", (1, last), _dense),
        Entry(f"{head}.1.bias", "dense_1/bias", (1,)),
    ]
    return table
