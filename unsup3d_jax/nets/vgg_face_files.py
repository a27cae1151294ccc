"""Weights of VGG-Face out of the two files that are public.

MatConvNet's .mat (vgg-face.mat, and the older vgg_face.mat, which keeps its layers
under `net`) and Keras's .h5 (rcmalli_vggface_tf_vgg16.h5), which expects blue before
green before red. No code stored in a file is ever run.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import vgg_face, weight_files
from unsup3d_jax.nets.file_guard import (
    Budget,
    Refused,
    StoredArray,
    existing,
    reading,
    shape_of,
    shown,
)

# Endings of the names that Keras, old and new, gives to kernels and biases.
_KERNELS = ("kernel:0", "kernel", "_W_1:0", "_W:0", "_W")
_BIASES = ("bias:0", "bias", "_b_1:0", "_b:0", "_b")
_MOST_DATASETS = 1000  # in a .h5 file; VGG-Face has 32
_COMPRESSED = 15  # kind of a variable in a .mat file
_PIECE = 1 << 20  # bytes expanded at once to be counted
_HDF5 = b"\x89HDF\r\n\x1a\n"


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
    with open(path, "rb") as file:
        is_hdf5 = file.read(len(_HDF5)) == _HDF5
    if is_hdf5:
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
    with reading(path, ".mat file of MATLAB 5"):
        _refuse_bombs(path)
        names = [name for name, *_ in scipy.io.whosmat(path)]
        wanted = [name for name in ("layers", "net") if name in names]
        if not wanted:
            raise Refused(f"has no variable layers or net, only {shown(names)}.")
        tree = scipy.io.loadmat(
            path,
            variable_names=wanted,
            struct_as_record=True,
            squeeze_me=False,
            chars_as_strings=True,
        )
        layers = _unnested(tree, wanted[0])
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        name = _text(_field(layer, "name"))
        parts = _weights_of(layer)
        if name in shapes and parts is not None:
            arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = parts
    return {
        name: _layer(arrays, f"{name}/kernel", f"{name}/bias", shape, str(path))
        for name, shape in shapes.items()
    }


def _refuse_bombs(path: Path) -> None:
    """Refuses a file that expands to more than any file of weights does.

    SciPy expands each variable as a whole; so all are expanded once before, and only
    counted.

    Raises:
        Refused: if so, or if it is no file of MATLAB 5.
    """
    budget = Budget(path)
    with open(path, "rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:])
        if order is None:
            raise Refused("is neither a .mat file of MATLAB 5 nor a .h5 file.")
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            if kind != _COMPRESSED:
                file.seek(size, 1)
                continue
            expander, left = zlib.decompressobj(), size
            while left and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                while piece:
                    budget.take(len(expander.decompress(piece, _PIECE)))
                    piece = expander.unconsumed_tail


def _unnested(tree: Mapping[str, Any], name: str) -> list[np.ndarray]:
    """The list of layers, each a record, of the newer layout or the older one."""
    value = tree[name]
    if name == "net":
        value = _field(value, "layers")
    if not isinstance(value, np.ndarray) or value.dtype != object:
        raise Refused("layers must be a list of structures.")
    return [layer for layer in value.ravel() if isinstance(layer, np.ndarray)]


def _field(record: Any, name: str) -> Any:
    """A field of a structure of one element; None where it has none."""
    names = getattr(getattr(record, "dtype", None), "names", None) or ()
    if name not in names or record.size != 1:
        return None
    return record.ravel()[0][name]


def _text(value: Any) -> str:
    is_text = isinstance(value, np.ndarray) and value.dtype.kind == "U"
    return str(value.ravel()[0]) if is_text and value.size == 1 else ""


def _weights_of(layer: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Kernel and bias; None for layers that have none."""
    pair = _field(layer, "weights")
    if isinstance(pair, np.ndarray) and pair.dtype == object and pair.size == 2:
        kernel, bias = pair.ravel()
    else:
        kernel, bias = _field(layer, "filters"), _field(layer, "biases")
    if isinstance(kernel, np.ndarray) and isinstance(bias, np.ndarray):
        return kernel, bias
    return None


def _from_keras(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, np.ndarray]]:
    try:
        import h5py  # optional
    except ImportError:
        raise UserError(
            f"{path}: reading .h5 files needs h5py; pip install 'unsup3d_jax[h5]'."
        ) from None
    with reading(path, ".h5 file"), h5py.File(path, "r") as file:
        datasets = _datasets(file, h5py)
        budget, found = Budget(path), {}
        for name, shape in shapes.items():
            kernel = _one_of(datasets, name, _KERNELS)
            bias = _one_of(datasets, name, _BIASES)
            arrays = {
                key: _stored(datasets[key], budget)
                for key in (kernel, bias)
                if key in datasets
            }
            found[name] = _layer(arrays, kernel, bias, shape, str(path))
    first = found["conv1_1"]
    first["kernel"] = np.ascontiguousarray(first["kernel"][:, :, ::-1])
    return found


def _datasets(file: Any, h5py: Any) -> dict[str, Any]:
    """Path -> data set of all that lie in this very file.

    Links to other files are not followed, nor any link twice.
    """
    found: dict[str, Any] = {}

    def look(group: Any, prefix: str, depth: int) -> None:
        for key in group:
            # Soft and external links could lead out of the file, or in circles.
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item, name = group[key], f"{prefix}{key}"
            if isinstance(item, h5py.Dataset):
                found[name] = item
                if len(found) > _MOST_DATASETS:
                    raise Refused(f"has more than {_MOST_DATASETS} arrays.")
            elif isinstance(item, h5py.Group) and depth < 8:
                look(item, f"{name}/", depth + 1)

    look(file, "", 0)
    return found


def _one_of(datasets: Mapping[str, Any], layer: str, endings: tuple[str, ...]) -> str:
    """The data set of a layer with one of some endings; "layer/..." if there is none.

    Raises:
        Refused: if there are several.
    """
    found = [n for n in datasets if layer in n.split("/") and n.endswith(endings)]
    if len(found) > 1:
        raise Refused(f"has several arrays {shown(found)} for layer {layer}.")
    return found[0] if found else f"{layer}/{endings[0]}"


def _stored(dataset: Any, budget: Budget) -> StoredArray:
    if dataset.external or dataset.is_virtual:
        raise Refused(f"array {dataset.name!r} lies in another file.")
    if dataset.dtype.kind not in "fiub":
        return StoredArray(budget)
    shape = shape_of(tuple(map(int, dataset.shape)))
    return StoredArray(budget, shape, int(dataset.nbytes), lambda: dataset[()])
