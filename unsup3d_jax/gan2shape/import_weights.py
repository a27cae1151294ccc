"""Reads the authors' checkpoints of GAN2Shape: netD, netA, netV, netL and netEnc.

PyTorch is not needed, and nothing in the file is executed (`nets.torch_files`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import authors_files, file_guard, torch_files

# Our networks and theirs.
NETWORKS = {
    "depth": "netD",
    "albedo": "netA",
    "view": "netV",
    "light": "netL",
    "encoder": "netEnc",
}


def read_authors_checkpoint(
    path: str | Path, shapes: Mapping[str, Any], image_size: int
) -> dict[str, Any]:
    """Reads the networks of an authors' checkpoint, of either serialisation.

    Args:
        path: their .pth file.
        shapes: {network: its parameters, or what has their shapes}; all or some of
            NETWORKS, at the authors' widths.
        image_size: pixels of the images that the networks read.

    Returns:
        Parameters of those networks, numpy float32.

    Raises:
        UserError: if the file is not such a checkpoint, or not of these networks;
            names the network and the key.
    """
    tree = torch_files.read_torch_file(path, foreign_classes=True)
    return convert(tree, shapes, image_size, source=str(path))


def convert(
    tree: Mapping[str, Any],
    shapes: Mapping[str, Any],
    image_size: int,
    *,
    source: str,
) -> dict[str, Any]:
    """Renames and transposes {"netD": state dictionary, ...} to our parameters.

    Args:
        tree: leaves are numpy arrays or `file_guard.StoredArray`s.
        shapes, image_size: see `read_authors_checkpoint`.
        source: file name, for messages.

    Raises:
        UserError: naming the key that is missing, unknown or of another shape.
    """
    params = {}
    for name, modules in shapes.items():
        theirs = NETWORKS[name]
        state = authors_files.network_state(tree, theirs)
        if state is None:
            raise UserError(
                f"{source}: network {theirs!r} ({name}) is missing; the file holds "
                f"{file_guard.shown(sorted(map(str, tree)))}."
            )
        if name == "encoder":
            layers = _offset_encoder_layers(state)
        elif name in ("view", "light"):
            layers = authors_files.encoder_layers(image_size)
        else:
            layers = authors_files.encoder_decoder_layers(image_size)
        where = f"{source}: {theirs}"
        params[name] = authors_files.convert_network(state, modules, layers, where)
    return params


def _offset_encoder_layers(state: Mapping[str, Any]) -> dict[str, str]:
    """Where the layers of `OffsetEncoder` are, in the order of their numbers.

    Activations between them may count or not: that changes no result.
    """
    found = {key: re.match(r"network\.(\d{1,4})\.(conv)?", key) for key in state}
    numbers = {int(match[1]) for match in found.values() if match}
    blocks = {int(match[1]) for match in found.values() if match and match[2]}
    convs = sorted(numbers - blocks)
    layers = {f"Conv_{i}": f"network.{n}" for i, n in enumerate(convs)}
    for i, n in enumerate(sorted(blocks)):
        layers[f"DownBlock_{i}/Conv_0"] = f"network.{n}.conv1"
        layers[f"DownBlock_{i}/Conv_1"] = f"network.{n}.conv2"
        layers[f"DownBlock_{i}/BiasedPointwise_0"] = f"network.{n}.conv_sc"
    return layers
