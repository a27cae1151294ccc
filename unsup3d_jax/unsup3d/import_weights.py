"""Turns a checkpoint of the authors' PyTorch code into one of ours.

    python -m unsup3d_jax.import_weights --input=checkpoint030.pth \\
        --config=configs/celeba.py --config.compat.half_pixel_depth=true \\
        --config.compat.short_normals=true --config.depth.bump_height=0 \\
        --config.depth.output_gain=1 --workdir=runs/authors_celeba

(Their depth has no bump to start from, and no quiet network.)
Then `main.py --mode=eval` and `--mode=reconstruct` with the same --workdir use it.
The optimizer's state is not imported. PyTorch is not needed, and nothing in
the file is executed (`nets.torch_files`).

A file holds one state dictionary per network, netD, netA, netL, netV and (not
for cars) netC, in any of the forms that `nets.authors_files` reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unsup3d_jax.engine import checkpoint, gradient_step, warm_start
from unsup3d_jax.engine.optimizer import make_optimizer
from unsup3d_jax.engine.task import RunState
from unsup3d_jax.engine.workdir import claim_workdir, newest_step
from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.nets import authors_files, file_guard, torch_files, weight_files
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config
from unsup3d_jax.unsup3d.task import IDENTITY

# Our networks and theirs.
_NETWORKS = {
    "depth": "netD",
    "albedo": "netA",
    "light": "netL",
    "view": "netV",
    "conf": "netC",
}


def _numbered(kind: str, names: list[str]) -> dict[str, str]:
    return {f"{kind}_{number}": name for number, name in enumerate(names)}


def _trunk(*indices: int) -> list[str]:
    return [f"network.{index}" for index in indices]


# Where their layers are ours, at 64 px.
_SIZE = 64
_CONFIDENCE = {
    **_numbered("Conv", [*_trunk(0, 3, 6, 9, 11), "out_net1.6", "out_net2.0"]),
    **_numbered("Deconv", [*_trunk(13, 15, 18), "out_net1.0", "out_net1.3"]),
    **_numbered("GroupNorm", [*_trunk(1, 4, 7, 16, 19), "out_net1.1", "out_net1.4"]),
}
_LAYERS = {
    "depth": authors_files.encoder_decoder_layers(_SIZE),
    "albedo": authors_files.encoder_decoder_layers(_SIZE),
    "light": authors_files.encoder_layers(_SIZE),
    "view": authors_files.encoder_layers(_SIZE),
    "conf": _CONFIDENCE,
}


def read_authors_checkpoint(path: str | Path, options: ModelOptions) -> dict[str, Any]:
    """Reads the networks of an authors' checkpoint, of either serialisation.

    Args:
        path: their .pth file, with or without optimizer and log.
        options: of the model that the parameters are for: 64 px, no bump under the
            depth; widths and the confidence network as in the file.

    Returns:
        Parameters as `model.init_params` gives them, numpy float32.

    Raises:
        UserError: if the file is not such a checkpoint, or not of this model.
    """
    if options.networks.image_size != _SIZE or options.supervised:
        raise UserError(
            f"{path}: the authors' networks are for data.image_size=64 and "
            "model.supervision='none'."
        )
    limits = options.factors
    if (limits.bump.height, limits.bump.gain) != (0.0, 1.0):
        raise UserError(
            f"{path}: the authors' depth is the network's alone, got "
            f"depth.bump_height={limits.bump.height} and depth.output_gain="
            f"{limits.bump.gain}; add --config.depth.bump_height=0 "
            "--config.depth.output_gain=1, here and wherever the weights are used."
        )
    tree = torch_files.read_torch_file(path, foreign_classes=True)
    return convert(tree, options, source=str(path))


def convert(
    tree: Mapping[str, Any], options: ModelOptions, *, source: str
) -> dict[str, Any]:
    """Renames and transposes {"netD": state dictionary, ...} to our parameters.

    Args:
        tree: leaves are numpy arrays or `file_guard.StoredArray`s; wrappers and
            prefixes are seen through.
        options: see `read_authors_checkpoint`.
        source: file name, for messages.

    Raises:
        UserError: naming the key that is missing, unknown or of another shape.
    """
    shapes = jax.eval_shape(lambda k: model.init_params(k, options), jax.random.key(0))
    tree = weight_files.unwrapped(tree)
    params = {}
    for name, modules in shapes.items():
        theirs = _NETWORKS[name]
        state = authors_files.network_state(tree, theirs)
        if state is None:
            remedy = (
                "train it without, --config.model.use_confidence=False."
                if name == "conf"
                else f"the file holds {file_guard.shown(sorted(map(str, tree)))}."
            )
            raise UserError(
                f"{source}: network {theirs!r} ({name}) is missing; {remedy}"
            )
        params[name] = authors_files.convert_network(
            state, modules, _LAYERS[name], f"{source}: {theirs}"
        )
    return params


def import_checkpoint(config: ConfigDict, source: Path, workdir: Path) -> str:
    """Makes the authors' checkpoint step 0 of a run.

    Args:
        config: of the run, as it is used afterwards.
        source: their .pth file.
        workdir: holds no checkpoint yet.

    Returns:
        A sentence that says what was read; the checkpoint is on disk then.

    Raises:
        UserError: if the file does not fit the config, the workdir is in use, or
            the checkpoint cannot be written (`checkpoint.NotSaved`).
    """
    with refusing():
        options = options_from_config(config)
    params = read_authors_checkpoint(source, options)
    if newest_step(workdir) is not None:
        raise UserError(f"--workdir {workdir} holds checkpoints already.")
    claim_workdir(workdir, config, jax.local_devices(), IDENTITY)
    state = RunState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(config.seed),
        parts=gradient_step.init(params, make_optimizer(config)),
    )
    warm_start.note(workdir, warm_start.Start({"params": params}, None, source))
    checkpoint.write_first(workdir, state)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{workdir}: {count:,} parameters of {', '.join(params)} from {source}"
