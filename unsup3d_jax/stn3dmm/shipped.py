"""The trained localiser that ships: `weights/open_faces.npz`, and how it is made.

    python -m unsup3d_jax.stn3dmm.shipped WORKDIR [FILE.npz]

takes the newest parameters of a run in half precision, with the keys of its config that
give them their meaning. `weights/open_faces.md` is its model card.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from unsup3d_jax.configs.stn3dmm import default
from unsup3d_jax.configuration import Keys, of_run, record_beside
from unsup3d_jax.engine import checkpoint, half_precision, packing
from unsup3d_jax.stn3dmm import task

PATH = Path(__file__).with_name("weights") / "open_faces.npz"
ORIGIN = "the localiser that ships"  # of scores


def load(config: ConfigDict, path: Path = PATH) -> tuple[dict[str, Any], int]:
    """The shipped parameters, float32, and the step they were trained to.

    Raises:
        UserError: if the config is of another localiser; names the keys that differ.
    """
    params, step = half_precision.load(
        path,
        half_precision.meaning_of(config, task.IDENTITY),
        default.YOUNGER,
        what=ORIGIN,
        remedy="Use --config=stn3dmm/open_faces, or train.",
    )
    packing.check_shapes(params, task.shapes_of_params(config), str(path))
    return params, step


def main() -> None:
    """Writes the file; see above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("file", type=Path, nargs="?", default=PATH)
    args = parser.parse_args()
    record = record_beside(args.workdir)
    if record is None:
        raise SystemExit(f"{args.workdir} holds no config.json of a run.")
    keys = Keys(default.get_config, default.RANGES, default.YOUNGER)
    config = of_run(record, {"stn3dmm": keys})
    found, step = checkpoint.load_parts(args.workdir)
    args.file.parent.mkdir(exist_ok=True)
    half_precision.save(
        args.file,
        jax.device_get(found["params"]),
        half_precision.meaning_of(config, task.IDENTITY),
        step=step,
        seed=config.seed,
    )
    print(f"{args.file}: {args.file.stat().st_size:,} bytes, step {step}")


if __name__ == "__main__":
    main()
