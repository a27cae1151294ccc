"""VGG-Face: VGG16 that was trained to tell people apart, up to its layer fc7.

The network of Parkhi, Vedaldi and Zisserman, Deep Face Recognition, BMVC 2015, whose
trunk is that of `unsup3d_jax.nets.vgg16`. Its two dense layers are convolutions, 7 x 7
and 1 x 1. Weights out of files: `vgg_face_files`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.nets import vgg16

# Pixels a side: what is left for fc6 after five poolings is 7 x 7.
SIZE = 224
# Of the faces it was trained on, red, green, blue of 0 to 255.
MEAN = np.array([129.1863, 104.7624, 93.5940], np.float32)
_DENSE = 4096  # outputs of fc6 and fc7

# {name of `layer_shapes`: {"kernel": (height, width, in, out), "bias": (out,)}}.
VggFace = Mapping[str, Mapping[str, AnyArray]]


def layer_shapes(width: float = 1.0) -> dict[str, tuple[int, int, int, int]]:
    """Kernels (height, width, in, out) by name: conv1_1, ..., conv5_3, fc6, fc7.

    Args:
        width: factor of all numbers of channels but the three colours; 1 is the
            published network.
    """
    shapes, before = {}, 3
    widths = [stage for stage in vgg16.PLAN if isinstance(stage, int)]
    for (block, number), full in zip(vgg16.places(), widths, strict=True):
        channels = max(round(full * width), 1)
        shapes[f"conv{block}_{number}"] = (3, 3, before, channels)
        before = channels
    dense = max(round(_DENSE * width), 1)
    shapes["fc6"] = (7, 7, before, dense)
    shapes["fc7"] = (1, 1, dense, dense)
    return shapes


def features(
    weights: VggFace,
    images: Float[AnyArray, "b h w 3"],
    *,
    subtract_mean: bool = True,
) -> Float[Array, "b f"]:
    """fc7 behind its ReLU, without dropout.

    Args:
        weights: of `vgg_face_files.load_vgg_face`.
        images: RGB in [0, 1], SIZE pixels a side.
        subtract_mean: as in the network's own training; not so in the training of Bas
            et al., ICCVW 2017 (code).

    Raises:
        ValueError: if the images have another size.
    """
    if images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"need (b, {SIZE}, {SIZE}, 3), got {images.shape}.")
    x = 255.0 * jnp.asarray(images)
    if subtract_mean:
        x = x - MEAN
    *convolutions, fc6, fc7 = (weights[name] for name in layer_shapes())
    *_, x = vgg16.trunk(convolutions, x)
    x = jnp.einsum("bhwi,hwio->bo", vgg16.max_pool(x), fc6["kernel"])
    x = jax.nn.relu(x + fc6["bias"])
    return jax.nn.relu(x @ jnp.asarray(fc7["kernel"])[0, 0] + fc7["bias"])
