"""Weights of VGG-Face out of the two files that are public.

MatConvNet's .mat (vgg-face.mat, and the older vgg_face.mat, which keeps its layers
under `net`) and Keras's .h5 (rcmalli_vggface_tf_vgg16.h5), which expects blue before
green before red. No code stored in a file is ever run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import h5_files, mat_files, vgg_face, weight_files
from unsup3d_jax.nets.file_guard import Refused, existing, shown

# Endings of the names that Keras, old and new, gives to kernels and biases.
_KERNELS = ("kernel:0", "kernel", "_W_1:0", "_W:0", "_W")
_BIASES = ("bias:0", "bias", "_b_1:0", "_b:0", "_b")


def load_vgg_face(
    path: str | Path, *, width: float = 1.0
) -> dict[str, dict[str, np.ndarray]]:
    """Loads VGG-Face up to fc7, whatever lies behind it in the file.

    Args:
        path: .mat or .h5, known by their content.
        width: see `vgg_face.layer_shapes`.

    Returns:
        float32 {"kernel": (height, width, in, out), "bias": (out,)} by the names of
        `vgg_face.layer_shapes`, for images red, green, blue.

    Raises:
        UserError: if the file is missing or damaged, or does not hold this network; or
            if it is .h5 and h5py is not installed.
    """
    path = existing(path)
    shapes = vgg_face.layer_shapes(width)
    if h5_files.is_hdf5(path):
        return _from_keras(path, shapes)
    return _from_matconvnet(path, shapes)


def _layer(
    arrays: Mapping[str, Any],
    kernel: str,
    bias: str,
    shape: tuple[int, ...],
    source: str,
) -> dict[str, np.ndarray]:
    """A layer whose kernel and bias may lie in the file in other shapes of one size."""
    found = {}
    for key, name, wanted in (("kernel", kernel, shape), ("bias", bias, shape[-1:])):
        stored = tuple(getattr(arrays.get(name), "shape", ()))
        # MATLAB knows no vectors and drops what is 1 at the end; Keras makes a matrix
        # of fc6, which comes out of rows, columns and channels in this order.
        loose = stored if _same_but_ones(stored, wanted) else wanted
        if key == "kernel" and stored == (int(np.prod(wanted[:3])), wanted[3]):
            loose = stored
        array = weight_files.require_array(arrays, name, loose, source=source)
        found[key] = np.ascontiguousarray(array.reshape(wanted))
    return found


def _same_but_ones(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return [n for n in shape if n != 1] == [n for n in other if n != 1]


def _from_matconvnet(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, np.ndarray]]:
    # Cross-correlations of red, green, blue: kernels as they stand.
    tree = mat_files.read_mat(path)
    net = tree.get("net")
    layers = net.get("layers") if isinstance(net, dict) else tree.get("layers")
    if not isinstance(layers, list):
        raise UserError(
            f"{path}: need a list layers, by itself or in net; found "
            f"{shown(list(tree))}."
        )
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        name = layer.get("name") if isinstance(layer, dict) else None
        if isinstance(name, str) and name in shapes:
            parts = layer.get("weights", [layer.get("filters"), layer.get("biases")])
            for key, part in zip(("kernel", "bias"), parts or (), strict=False):
                if isinstance(part, np.ndarray):
                    arrays[f"{name}/{key}"] = part
    return {
        name: _layer(arrays, f"{name}/kernel", f"{name}/bias", shape, str(path))
        for name, shape in shapes.items()
    }


def _from_keras(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    with h5_files.opened(path) as file:
        names = file.names()
        for name, shape in shapes.items():
            kernel = _one_of(names, name, _KERNELS)
            bias = _one_of(names, name, _BIASES)
            stored = {key: file.array(key) for key in (kernel, bias)}
            arrays = {key: array for key, array in stored.items() if array is not None}
            found[name] = _layer(arrays, kernel, bias, shape, str(path))
    first = found["conv1_1"]
    first["kernel"] = np.ascontiguousarray(first["kernel"][:, :, ::-1])
    return found


def _one_of(names: Sequence[str], layer: str, endings: tuple[str, ...]) -> str:
    """The array of a layer with one of some endings; "layer/..." if there is none.

    Raises:
        Refused: if there are several.
    """
    found = [n for n in names if layer in n.split("/") and n.endswith(endings)]
    if len(found) > 1:
        raise Refused(f"has several arrays {shown(found)} for layer {layer}.")
    return found[0] if found else f"{layer}/{endings[0]}"
