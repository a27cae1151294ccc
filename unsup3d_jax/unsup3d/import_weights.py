"""Turns a checkpoint of the authors' PyTorch code into one of ours.

    python -m unsup3d_jax.import_weights --input=checkpoint030.pth \\
        --config=configs/celeba.py --config.compat.half_pixel_depth=true \\
        --config.compat.short_normals=true --config.depth.bump_height=0 \\
        --config.depth.output_gain=1 --workdir=runs/authors_celeba

(Their depth has no bump to start from, and no quiet network.)
Then `main.py --mode=eval` and `--mode=reconstruct` with the same --config and
--workdir use it. The optimizer's state is not imported. PyTorch is not needed,
and nothing in the file is executed (`unsup3d_jax.weight_files`).

A file holds one state dictionary per network, netD, netA, netL, netV and (not
for cars) netC, whose keys number the layers of the authors' `nn.Sequential`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import weight_files
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config

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
_ENCODER = _numbered("Conv", _trunk(0, 2, 4, 6, 8, 10))
_ENCODER_DECODER = {
    **_numbered("Conv", _trunk(0, 3, 6, 9, 11, 15, 20, 26, 32, 39, 42)),
    **_numbered("Deconv", _trunk(13, 17, 23, 29)),
    **_numbered("GroupNorm", _trunk(1, 4, 7, 18, 21, 24, 27, 30, 33, 37, 40)),
    "UpsampledConv_0": "network.36",
}
_CONFIDENCE = {
    **_numbered("Conv", [*_trunk(0, 3, 6, 9, 11), "out_net1.6", "out_net2.0"]),
    **_numbered("Deconv", [*_trunk(13, 15, 18), "out_net1.0", "out_net1.3"]),
    **_numbered("GroupNorm", [*_trunk(1, 4, 7, 16, 19), "out_net1.1", "out_net1.4"]),
}
_LAYERS = {
    "depth": _ENCODER_DECODER,
    "albedo": _ENCODER_DECODER,
    "light": _ENCODER,
    "view": _ENCODER,
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
    if options.networks.image_size != 64 or options.supervised:
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
    checkpoint = weight_files.read_torch_file(path, foreign_classes=True)
    return convert(checkpoint, options, source=str(path))


def convert(
    checkpoint: Mapping[str, Any], options: ModelOptions, *, source: str
) -> dict[str, Any]:
    """Renames and transposes {"netD": state dictionary, ...} to our parameters.

    Args:
        checkpoint: leaves are numpy arrays or `weight_files.TensorHandle`s.
        options: see `read_authors_checkpoint`.
        source: file name, for messages.

    Raises:
        UserError: naming the key that is missing, unknown or of another shape.
    """
    shapes = jax.eval_shape(lambda k: model.init_params(k, options), jax.random.key(0))
    params = {}
    for name, modules in shapes.items():
        theirs = _NETWORKS[name]
        state = checkpoint.get(theirs)
        if not isinstance(state, Mapping):
            remedy = (
                "train it without, --config.model.use_confidence=False."
                if name == "conf"
                else f"the file holds {sorted(map(str, checkpoint))}."
            )
            raise UserError(
                f"{source}: network {theirs!r} ({name}) is missing; {remedy}"
            )
        params[name] = _network(state, modules, _LAYERS[name], f"{source}: {theirs}")
    return params


def _network(
    state: Mapping[str, Any],
    modules: Mapping[str, Mapping[str, Any]],
    layers: Mapping[str, str],
    source: str,
) -> dict[str, dict[str, np.ndarray]]:
    params: dict[str, dict[str, np.ndarray]] = {}
    used = set()
    for module, leaves in modules.items():
        params[module] = {}
        for leaf, wanted in leaves.items():
            key = f"{layers[module]}.{'bias' if leaf == 'bias' else 'weight'}"
            used.add(key)
            params[module][leaf] = _leaf(state, key, module, wanted.shape, source)
    unknown = sorted(set(state) - used)
    if unknown:
        raise UserError(
            f"{source}: unknown key {unknown[0]!r}; the network is not the authors'."
        )
    return params


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


def main(argv: list[str]) -> int:
    """Reads --input and writes step 0 of --workdir."""
    if {"-h", "--help"} & set(argv[1:]):
        print(f"{__doc__}\nOther flags are main.py's.")
        return 0
    # Here, not above: reading weights needs neither orbax nor the command line.
    from configs import default
    from unsup3d_jax import cli
    from unsup3d_jax.engine import checkpoint, train_state

    try:
        args = cli.parse(argv, default.get_config())
        if args.input is None:
            raise UserError("--input=FILE is missing: the authors' .pth checkpoint.")
        options = options_from_config(args.config)
        params = read_authors_checkpoint(args.input, options)
        if checkpoint.newest_step(args.workdir) is not None:
            raise UserError(f"--workdir {args.workdir} holds checkpoints already.")
        checkpoint.claim_workdir(args.workdir, args.config, jax.local_devices())
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = train_state.create(
        jax.random.key(args.config.seed),
        params,
        train_state.make_optimizer(args.config),
    )
    checkpoints = checkpoint.Checkpoints(args.workdir, keep=1)
    checkpoints.save(state, {})
    checkpoints.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{args.workdir}: {count:,} parameters of {', '.join(params)} from {args.input}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
