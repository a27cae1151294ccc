"""The trained localiser that ships: `weights/open_faces.npz`, and how it is made.

    python -m unsup3d_jax.stn3dmm.shipped WORKDIR [FILE.npz]

takes the newest parameters of a run in half precision, with the keys of its config that
give them their meaning. `weights/open_faces.md` is its model card.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from configs.stn3dmm import default
from unsup3d_jax.configuration import Keys, flatten, of_run, record_beside
from unsup3d_jax.engine import checkpoint, packing
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing
from unsup3d_jax.stn3dmm import task

PATH = Path(__file__).with_name("weights") / "open_faces.npz"
ORIGIN = "the localiser that ships"  # of scores
_ABOUT = "about"


def save(path: Path, params: Mapping[str, Any], config: ConfigDict, step: int) -> None:
    """Writes parameters in half precision, and what they mean.

    Raises:
        OSError: if it cannot be written.
    """
    arrays = {
        name: np.asarray(array, np.float16)
        for name, array in traverse_util.flatten_dict(dict(params), sep="/").items()
    }
    about = {"step": step, "seed": config.seed, "keys": _meaning(config)}
    arrays[_ABOUT] = np.array(json.dumps(about, sort_keys=True))
    with replacing(path) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load(config: ConfigDict, path: Path = PATH) -> tuple[dict[str, Any], int]:
    """The shipped parameters, float32, and the step they were trained to.

    Raises:
        UserError: if the config is of another localiser; names the keys that differ.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; train first (--mode=train).")
    with np.load(path, allow_pickle=False) as stored:
        about = json.loads(str(stored[_ABOUT]))
        arrays = {
            name: stored[name].astype(np.float32)
            for name in stored.files
            if name != _ABOUT
        }
    # A key that the file is older than has its value of then, as in a run's record.
    then, now = dict(default.YOUNGER) | about["keys"], _meaning(config)
    unlike = sorted(key for key in now if key not in then or now[key] != then[key])
    unlike += sorted(about["keys"].keys() - now.keys())
    if unlike:
        raise UserError(
            f"the localiser that ships is of another model; these keys differ: "
            f"{', '.join(unlike)}. Use configs/stn3dmm/open_faces.py, or train."
        )
    params = traverse_util.unflatten_dict(arrays, sep="/")
    packing.check_shapes(params, task.shapes_of_params(config), str(path))
    return params, int(about["step"])


def _meaning(config: ConfigDict) -> dict[str, Any]:
    identity = task.IDENTITY
    values = flatten(json.loads(json.dumps(config.to_dict())))
    return {
        key: value
        for key, value in values.items()
        if key.startswith(identity.meaning) and key not in identity.on_the_way
    }


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
    save(args.file, jax.device_get(found["params"]), config, step)
    print(f"{args.file}: {args.file.stat().st_size:,} bytes, step {step}")


if __name__ == "__main__":
    main()
