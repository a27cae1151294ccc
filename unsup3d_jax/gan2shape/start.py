"""What networks begin with: those of a joint run, or those that ship.

    python -m unsup3d_jax.gan2shape.start WORKDIR [FILE.npz]

makes `weights/open_faces.npz` of a joint run (`configs/gan2shape/faces_start.py`): its
newest parameters in half precision, with the keys of its config that give them their
meaning. A photo alone says nothing of what is frontal in its category; these do.
`weights/open_faces.md` is their model card.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from unsup3d_jax.configs.gan2shape import default
from unsup3d_jax.configuration import Keys, of_run, record_beside
from unsup3d_jax.engine import checkpoint, half_precision
from unsup3d_jax.engine.workdir import check_meaning
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape.options import IDENTITY

NAME = "open_faces"  # of what ships, as train.init_from says it
PATH = Path(__file__).with_name("weights") / f"{NAME}.npz"
# The encoder's parameters hang on the projection as well.
_IDENTITY = dataclasses.replace(
    IDENTITY,
    meaning=(*IDENTITY.meaning, "projection."),
    on_the_way=(*IDENTITY.on_the_way, "projection.latents"),
)


def first_params(config: ConfigDict) -> dict[str, Any] | None:
    """The networks that `train.init_from` names; None: noise.

    Raises:
        UserError: if it is no joint run, or of other networks; names the keys that
            differ.
    """
    place = config.train.init_from
    if not place:
        return None
    if place == NAME:
        return load(config)
    workdir = Path(place).expanduser()
    params, _, _ = _of_joint_run(workdir)
    check_meaning(config, workdir, _IDENTITY, but=_IDENTITY.on_the_way)
    return params


def load(config: ConfigDict, path: Path = PATH) -> dict[str, Any]:
    """Parameters of D, A, V, L and E that ship, float32, by the names of a run's.

    Raises:
        UserError: if the config is of other networks; names the keys that differ.
    """
    params, _ = half_precision.load(
        path,
        _meaning(config),
        default.YOUNGER,
        what=f"train.init_from={NAME}: what ships",
        remedy="Use --config=gan2shape/faces, name a joint run of yours, or begin "
        "with noise: train.init_from='' and stages.joint_steps=(0,0,0).",
    )
    return params


def _meaning(config: ConfigDict) -> dict[str, Any]:
    return half_precision.meaning_of(config, _IDENTITY)


def _of_joint_run(place: Path) -> tuple[dict[str, Any], int, ConfigDict]:
    """Its newest parameters, the iteration they are of, its config.

    Raises:
        UserError: if it is no joint run.
    """
    record = record_beside(place)
    if record is None:
        raise UserError(f"train.init_from: {place} holds no config.json of a run.")
    keys = {"gan2shape": Keys(default.get_config, default.RANGES, default.YOUNGER)}
    theirs = of_run(record, keys)
    if theirs.stages.mode != "joint":
        raise UserError(f"train.init_from: {place} is no joint run.")
    parts, step = checkpoint.load_parts(place / "groups" / f"{0:05d}")
    return jax.tree.map(lambda x: x[0], parts["params"]), step, theirs


def main() -> None:
    """Writes the file; see above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("file", type=Path, nargs="?", default=PATH)
    args = parser.parse_args()
    params, step, config = _of_joint_run(args.workdir)
    args.file.parent.mkdir(exist_ok=True)
    half_precision.save(
        args.file, params, _meaning(config), step=step, seed=config.seed
    )
    print(f"{args.file}: {args.file.stat().st_size:,} bytes, step {step}")


if __name__ == "__main__":
    main()
