"""VGG16's trunk: the feature space of perceptual losses.

Eq. (7) of Wu et al., CVPR 2020 compares images in relu3_3 of the network of
Simonyan and Zisserman (2015), trained on ImageNet and frozen; LPIPS
(`unsup3d_jax.nets.lpips`) compares them in five of its layers.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import AnyArray

# Output channels of each 3 x 3 convolution; "pool" halves the resolution.
PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool")
PLAN += (512, 512, 512, "pool", 512, 512, 512)
# Convolutions up to and including each layer, the last of its block.
LAYERS = {"relu1_2": 2, "relu2_2": 4, "relu3_3": 7, "relu4_3": 10, "relu5_3": 13}

# "kernel" (3, 3, in, out) and "bias" (out,) of each convolution, in their order.
Vgg16 = Sequence[Mapping[str, AnyArray]]

# Of the ImageNet images the network was trained on, RGB in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def features(
    vgg: Vgg16, image: Float[AnyArray, "b h w 3"], *, layer: str
) -> Float[Array, "b hf wf c"]:
    """Computes one layer of VGG16, such as the one that Eq. (7) compares.

    Args:
        vgg: of `vgg16_files.load_vgg16`, for this layer or a later one.
        image: RGB in [0, 1].
        layer: relu1_2 (b, h, w, 64), relu2_2 (b, h/2, w/2, 128), relu3_3
            (b, h/4, w/4, 256), relu4_3 (b, h/8, w/8, 512) or relu5_3
            (b, h/16, w/16, 512).

    Raises:
        UserError: if there is no such layer.
        ValueError: if there are too few convolutions, or h and w are no multiples of
            4 (16 for relu5_3, 8 for relu4_3).
    """
    return taps(vgg, image, layers=(layer,))[0]


def taps(
    vgg: Vgg16, image: Float[AnyArray, "b h w 3"], *, layers: Sequence[str]
) -> list[Float[Array, "b _ _ _"]]:
    """Computes several layers in one pass, in the order of the network.

    Args:
        vgg, image: see `features`.
        layers: names of `features`, in the order of the network.

    Raises:
        UserError, ValueError: see `features`.
    """
    wanted = [convolutions(layer) for layer in layers]
    count = max(wanted)
    if len(vgg) < count:
        raise ValueError(f"{layers[-1]} needs {count} convolutions, got {len(vgg)}.")
    unit = max(4, 2 ** sorted(LAYERS.values()).index(count))
    if image.shape[1] % unit or image.shape[2] % unit or image.shape[3] != 3:
        raise ValueError(f"need (b, {unit}m, {unit}n, 3), got {image.shape}.")
    steps = enumerate(trunk(vgg[:count], normalise(image)), 1)
    return [x for done, x in steps if done in wanted]


def trunk(vgg: Vgg16, x: Float[Array, "b h w 3"]) -> Iterator[Float[Array, "b _ _ _"]]:
    """The convolutions given, each with its ReLU, pooled between the blocks.

    Args:
        vgg: the first of VGG16's convolutions, or all, of any widths.
        x: pixels as these weights expect them.
    """
    done = 0
    for stage in PLAN:
        if done == len(vgg):
            return
        if stage == "pool":
            x = max_pool(x)
            continue
        weights = vgg[done]
        x = jax.nn.relu(_convolve(x, weights["kernel"]) + weights["bias"])
        done += 1
        yield x


def places() -> list[tuple[int, int]]:
    """Block, and number in it, of every convolution; both count from 1."""
    found, block, number = [], 1, 1
    for stage in PLAN:
        if stage == "pool":
            block, number = block + 1, 1
            continue
        found.append((block, number))
        number += 1
    return found


def normalise(image: Float[AnyArray, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images in [0, 1] to zero mean and unit spread over ImageNet, as VGG expects."""
    return (jnp.asarray(image) - MEAN) / STD


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2 x 2, stride 2; an odd last row or column is left out.

    Equal maxima share the gradient.
    """
    # Not `reduce_window`, whose gradient searches every window once more: a seventh
    # of VGG16's time on one CPU core (nothing on two), a quarter of its bytes.
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def convolutions(layer: str) -> int:
    """How many convolutions there are up to a layer.

    Raises:
        UserError: if there is no such layer.
    """
    if layer not in LAYERS:
        raise UserError(
            f"loss.perceptual_layer: expected one of {', '.join(LAYERS)}, "
            f"got {layer!r}."
        )
    return LAYERS[layer]


def kernel_shapes(layer: str) -> list[tuple[int, int, int, int]]:
    """(height, width, in, out) of the convolutions up to a layer, in their order.

    Raises:
        UserError: if there is no such layer.
    """
    widths = [3] + [stage for stage in PLAN if isinstance(stage, int)]
    shapes = [(3, 3, i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return shapes[: convolutions(layer)]


def _convolve(x: Array, kernel: AnyArray) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
