"""Operations that one image needs in training, counted from the layers.

Two a multiply-add, of convolutions alone, in the form of the paper's tables: a
3 x 3 kernel on a doubled map costs nine taps here, though ours runs it with four.
Backward is the input's gradient and the weights', each as much as forward; a
network's first layer needs no gradient of its input, VGG16 none of its weights.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from unsup3d_jax.nets import vgg16
from unsup3d_jax.nets.layers import Conv, Deconv, UpsampledConv
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions

ENCODER, DECODER, FIVE = "encoders", "decoders", "5 x 5 layers"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution of one network.

    Attributes:
        network: "depth", "albedo", ...
        stage: `ENCODER` down to the bottleneck, `DECODER` behind it, or `FIVE`.
        module: without parameters or parent; equal for equal layers.
        inputs: (h, w, channels).
        flop: of one image, forward.
        first: its input is the image.
    """

    network: str
    stage: str
    module: nn.Module
    inputs: tuple[int, int, int]
    flop: int
    first: bool

    @property
    def training_flop(self) -> int:
        """Forward and backward."""
        return (2 if self.first else 3) * self.flop


def _flop(module: nn.Module, inputs: tuple, outputs: tuple) -> int:
    h, w, channels = inputs
    if isinstance(module, Deconv):  # each input pixel meets every tap
        return 2 * h * w * 16 * channels * outputs[-1]
    size = 3 if isinstance(module, UpsampledConv) else module.size
    return 2 * outputs[0] * outputs[1] * size**2 * channels * outputs[-1]


def layers(options: ModelOptions, image_size: int) -> list[Layer]:
    """Every convolution of the method's networks, in the order they run."""
    found: list[Layer] = []
    kinds = (Conv, Deconv, UpsampledConv)

    def watch(run: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        outputs = run(*args, **kwargs)
        module = context.module
        if isinstance(module, kinds) and context.method_name == "__call__":
            mine = [layer for layer in found if layer.network == name]
            behind = bool(mine) and mine[-1].stage != ENCODER
            stage = ENCODER
            if getattr(module, "size", 0) == 5:
                stage = FIVE
            elif behind or isinstance(module, Deconv):
                stage = DECODER
            shapes = args[0].shape[1:], outputs.shape[1:]
            found.append(
                Layer(
                    network=name,
                    stage=stage,
                    module=module.clone(parent=None, name=None),
                    inputs=shapes[0],
                    flop=_flop(module, *shapes),
                    first=not mine,
                )
            )
        return outputs

    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    for name, net in model.build_networks(options).items():  # noqa: B007
        with nn.intercept_methods(watch):
            jax.eval_shape(net.init, jax.random.key(0), image)
    return found


def vgg_flop(image_size: int) -> int:
    """VGG16 to relu3_3 in training: three images forward, two of them backward."""
    pixels = [image_size**2 // 4**pool for pool in (0, 0, 1, 1, 2, 2, 2)]
    shapes = vgg16.kernel_shapes("relu3_3")
    forward = sum(
        2 * n * h * w * i * o for n, (h, w, i, o) in zip(pixels, shapes, strict=True)
    )
    return 5 * forward


def training_flop(options: ModelOptions, image_size: int, vgg: bool) -> int:
    """What one image needs, forward and backward: 20.97e9 at 64 px, full width."""
    own = sum(layer.training_flop for layer in layers(options, image_size))
    return own + (vgg_flop(image_size) if vgg else 0)
