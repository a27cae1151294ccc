"""The authors' networks in their checkpoints, whose keys number the layers.

The code of both papers, unsup3d and GAN2Shape, makes a network of one `nn.Sequential`
"network", in which activations count too: "network.0.weight", "network.3.weight". A
file holds a state dictionary for each of netD, netA, ...; one flat dictionary of
"netD.network.0.weight" and so on is read too, and what training scripts and several
GPUs put around either: "model", "state_dict", "module.".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import file_guard, weight_files


def _numbered(kind: str, indices: list[int]) -> dict[str, str]:
    return {f"{kind}_{n}": f"network.{index}" for n, index in enumerate(indices)}


def _levels(image_size: int) -> int:
    """Convolutions that halve the image, down to 4 x 4."""
    return image_size.bit_length() - 3


def encoder_layers(image_size: int) -> dict[str, str]:
    """Where the layers of `networks.Encoder` are: {our module: their layer}."""
    return _numbered("Conv", [2 * n for n in range(_levels(image_size) + 2)])


def encoder_decoder_layers(image_size: int) -> dict[str, str]:
    """Where the layers of `networks.EncoderDecoder` are: {our module: their layer}."""
    levels = _levels(image_size)
    convs = [3 * n for n in range(levels)]  # convolution, norm, activation
    norms = [3 * n + 1 for n in range(levels - 1)]
    code = convs[-1] + 2
    convs += [code, code + 4]  # to 1 x 1, then to 4 x 4 and its convolution
    deconvs = [code + 2]
    layer = code + 6
    for _ in range(levels - 1):  # transposed, norm, activation, convolution, ...
        deconvs.append(layer)
        norms += [layer + 1, layer + 4]
        convs.append(layer + 3)
        layer += 6
    upsampled = layer + 1  # the upsampling is a layer too
    norms += [upsampled + 1, upsampled + 4]
    convs += [upsampled + 3, upsampled + 6]
    return {
        **_numbered("Conv", convs),
        **_numbered("Deconv", deconvs),
        **_numbered("GroupNorm", norms),
        "UpsampledConv_0": f"network.{upsampled}",
    }


def network_state(tree: Mapping[str, Any], network: str) -> dict[str, Any] | None:
    """One network's state dictionary, its keys without prefixes; None if absent.

    Args:
        tree: of the whole file; wrappers are seen through.
        network: such as "netD".
    """
    tree = weight_files.unwrapped(tree)
    state = tree.get(network)
    if not isinstance(state, Mapping):
        parts = [str(key).partition(f"{network}.") for key in tree]
        ours = [not before or before.endswith(".") for before, _, _ in parts]
        state = {
            after: value
            for (_, dot, after), value, is_ours in zip(
                parts, tree.values(), ours, strict=True
            )
            if dot and is_ours
        }
    if not state:
        return None
    prefix = weight_files.prefix_of(state, "network.0.weight") or ""
    return {str(key).removeprefix(prefix): value for key, value in state.items()}


def convert_network(
    state: Mapping[str, Any],
    shapes: Mapping[str, Any],
    layers: Mapping[str, str],
    source: str,
) -> dict[str, Any]:
    """Renames and transposes a state dictionary to the parameters of our network.

    Args:
        state: leaves are numpy arrays or `file_guard.StoredArray`s.
        shapes: the tree of our parameters, or of what has their shapes.
        layers: {our module: their layer}; a module within another is "a/b".
        source: file and network, for messages.

    Raises:
        UserError: naming the key that is missing, unknown or of another shape.
    """
    params, used = {}, set()
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(shapes), sep="/")
    for path, wanted in flat.items():
        module, _, leaf = str(path).rpartition("/")
        if module not in layers:
            raise UserError(
                f"{source}: has no layer that is our {module}; a network of another "
                "size, or not the authors'."
            )
        key = f"{layers[module]}.{'bias' if leaf == 'bias' else 'weight'}"
        used.add(key)
        params[path] = _leaf(state, key, module, tuple(wanted.shape), source)
    unknown = sorted(set(state) - used)
    if unknown:
        key = file_guard.shown(unknown[0])
        raise UserError(
            f"{source}: unknown key {key}; the network is not the authors'."
        )
    return traverse_util.unflatten_dict(params, sep="/")


def _leaf(
    state: Mapping[str, Any],
    key: str,
    module: str,
    shape: tuple[int, ...],
    source: str,
) -> np.ndarray:
    if len(shape) == 1:
        return weight_files.require_array(state, key, shape, source=source)
    height, width, inputs, outputs = shape
    if module.startswith("Deconv"):  # transposed convolution: (in, out, h, w)
        stored, order = (inputs, outputs, height, width), (2, 3, 0, 1)
    else:  # (out, in, h, w)
        stored, order = (outputs, inputs, height, width), (2, 3, 1, 0)
    array = weight_files.require_array(state, key, stored, source=source)
    return np.ascontiguousarray(array.transpose(order))
