"""How many photos a second does mode reconstruct make, by what it writes?

    python -m benchmarks.reconstruct
    python -m benchmarks.reconstruct --photos=128 --output=reconstruct.json

JPEG files of `--file_size` are read, decomposed and written to a temporary folder, as
`--mode=reconstruct --outputs=...` does; the networks hold noise, whose shapes are as
large as the picture. A first batch, which compiles, is not counted. The rate is by the
clock; the seconds of CPU of a photo say what a busy machine hides. `compiled` counts
the programs that decomposed: one for all batches.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from benchmarks.input_pipeline import photo_folder
from configs import folder_small
from unsup3d_jax.engine import host_memory
from unsup3d_jax.unsup3d import reconstruct_files, task
from unsup3d_jax.unsup3d.outputs import OUTPUTS

VIDEOS = ("turntable", "relight")
CHOICES = {
    "factors": ("factors",),
    "pictures and mesh": ("maps", "mesh"),
    "all but videos": tuple(name for name in OUTPUTS if name not in VIDEOS),
    "both videos": VIDEOS,
    "all": OUTPUTS,
}
BATCH = 16


def noise(config: Any) -> dict:
    """Parameters that mean nothing; nothing is compiled to make them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: task.initial_params(config))
    return jax.tree.map(
        lambda s: rng.normal(0, 0.05, s.shape).astype(np.float32), shapes
    )


def measure(config: Any, params: dict, source: Path, outputs: tuple[str, ...]) -> dict:
    """Seconds, and seconds of CPU, a photo."""
    busy, start = sum(os.times()[:4]), time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        with contextlib.redirect_stderr(io.StringIO()):  # a line for each photo
            result = reconstruct_files.reconstruct_folder(
                config, params, source, output, batch_size=BATCH, outputs=outputs
            )
        seconds = time.perf_counter() - start
        cpu = sum(os.times()[:4]) - busy  # with ffmpeg's
        files = [p for p in Path(output).rglob("*") if p.is_file()]
        written = sum(p.stat().st_size for p in files)
    count = len(result.written)
    return {
        "photos": count,
        "photos_per_second": count / seconds,
        "cpu_seconds_per_photo": cpu / count,
        "bytes_per_photo": written // count,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=128, help="a third with videos")
    parser.add_argument("--file_size", type=int, nargs=2, default=(178, 218))
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--choices", default=",".join(CHOICES), help="some of these")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    host_memory.keep_freed()  # as every command does
    config = folder_small.get_config()
    config.data.image_size = args.image_size
    params, rows = noise(config), {}
    with tempfile.TemporaryDirectory() as folder:
        places = {}
        for name, count in (
            ("first", BATCH),
            ("many", args.photos),
            ("few", max(BATCH, args.photos // 3)),
        ):
            places[name] = Path(folder) / name
            places[name].mkdir()
            photo_folder(places[name], count, tuple(args.file_size))
        for choice in args.choices.split(","):
            outputs = CHOICES[choice]
            source = places["few" if {*VIDEOS} & {*outputs} else "many"]
            measure(config, params, places["first"], outputs)
            rows[choice] = measure(config, params, source, outputs)
            rows[choice]["outputs"] = outputs
            print(
                f"{choice:18} {rows[choice]['photos_per_second']:8.1f} photos/s"
                f"  {1e3 * rows[choice]['cpu_seconds_per_photo']:8.1f} ms of CPU"
                f"  {rows[choice]['bytes_per_photo'] / 1e3:8.0f} kB",
                flush=True,
            )
    decompose: Any = reconstruct_files.decompose
    compiled = decompose._cache_size()
    print(f"programs compiled to decompose: {compiled}")
    if args.output:
        content = {
            "question": "how many photos a second does mode reconstruct make",
            "machine": machine.describe("trimesh", "pillow", "imageio-ffmpeg"),
            "settings": vars(args) | {"output": str(args.output)},
            "compiled": compiled,
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
