"""Files of weights: the one that ships, `weights/faces.npz`, and those of users.

    python -m unsup3d_jax.unsup3d.shipped PLACE [FILE.npz]

takes the newest parameters of a workdir, or those of one of its `checkpoints/<step>`
folders, in half precision, with the config they were trained with and what is usual for
photos of its validation split (`belief`). `--weights=FILE.npz` uses them.
`weights/faces.md` is the model card of what ships.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configuration import Keys, of_run, record_beside
from unsup3d_jax.engine import checkpoint, half_precision, packing
from unsup3d_jax.engine.log import say
from unsup3d_jax.errors import UserError, one_line, writing
from unsup3d_jax.unsup3d import belief, score, task

NAME = "weights.npz"  # of a file in its workdir


def load(config: ConfigDict, path: Path) -> tuple[dict[str, Any], int]:
    """The parameters of a file, float32, and the step they were trained to.

    Raises:
        UserError: if it is no file of weights, or the config is of another model; names
            the keys that differ.
    """
    params, step = half_precision.load(
        path,
        half_precision.meaning_of(config, task.IDENTITY),
        default.YOUNGER,
        what=f"--weights: {path}",
        remedy="Leave these keys as they were in training.",
    )
    expected = jax.eval_shape(lambda: task.initial_params(config))
    packing.check_shapes(params, expected, str(path))
    return params, step


def make(place: Path, path: Path | None = None) -> tuple[Path, int]:
    """Writes the file of a run, see above; returns its path and the step.

    Raises:
        UserError: if the place holds no run of this method, or nothing can be written.
    """
    record = record_beside(place)
    if record is None:
        raise UserError(f"{place} holds no config.json of a run.")
    keys = Keys(default.get_config, default.RANGES, default.YOUNGER)
    config = of_run(record, {"unsup3d": keys})
    task.check_config(config)
    found, step = checkpoint.load_parts(place)
    path = path or record.parent / NAME
    params = found["params"]
    usual = belief.find(place, step)
    if usual is None:
        usual = score.find_usual(config, task.lazy_splits(config), params, step)
    if isinstance(usual, str):
        say(f"how far photos may be believed is not stored: {usual}")
        more = {}
    else:
        more = {"belief": usual.as_json()}
    with writing(path):
        half_precision.save(
            path,
            jax.device_get(params),
            half_precision.meaning_of(config, task.IDENTITY),
            step=step,
            seed=config.seed,
            config=half_precision.training_of(config, task.IDENTITY),
            **more,
        )
    return path, step


def main() -> int:
    """Writes the file; see above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", type=Path, help="a workdir, or a checkpoint in it")
    parser.add_argument("file", type=Path, nargs="?", help=f"default: PLACE/{NAME}")
    args = parser.parse_args()
    try:
        path, step = make(args.place, args.file)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size:,} bytes, step {step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
