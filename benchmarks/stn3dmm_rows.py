"""What each term of the 3DMM-STN's loss is worth: the same recipe with and without.

    python -m benchmarks.stn3dmm_rows --folder=runs/stn3dmm_rows \
        --output=benchmarks/results/stn3dmm_rows_cpu.json --rows=full,landmarks \
        --seeds=0,1,2 -- --config=configs/stn3dmm/open_faces.py

Everything behind `--` goes to `main.py` for every row. A row that is finished is not
trained again, and refused if it was trained otherwise. Each is scored on the test split
of its config and, with `--also="data.pose=natural eval.people=0"`, under other keys;
the JSON has the scores of all, and is written after each row.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

# Row -> keys of the config. "{supervised}" is the workdir of that row.
ROWS: dict[str, tuple[str, ...]] = {
    # Landmarks, shape by the other view's identity, and the prior.
    "full": (),
    # The same without other views: an image explains its own landmarks.
    "landmarks": ("loss.identity=0", "loss.shape=10"),
    "pose_and_shape_together": ("loss.identity=0",),
    "symmetry": ("loss.symmetry=0.1",),
    "multi_view": ("loss.multi_view=0.1",),
    # At a small weight, from the middle of 700 steps on.
    "symmetry_late": ("loss.symmetry=0.01", "loss.image_start=350"),
    "multi_view_late": ("loss.multi_view=0.01", "loss.image_start=350"),
    "supervised": (
        "loss.landmark=0",
        "loss.identity=0",
        "loss.prior=0",
        "loss.theta=1e-3",
        "loss.vertices=1",
    ),
    # From there on no label at all, as where theta is known of synthetic faces only.
    "no_landmarks": (
        "train.init_from={supervised}",
        "train.learning_rate=1e-4",
        "loss.landmark=0",
        "loss.identity=0",
        "loss.prior=1e-4",
        "loss.symmetry=0.01",
        "loss.multi_view=0.01",
    ),
    # What must hurt.
    "shuffled": ("broken.landmarks=True",),
    "wrong_mirror": ("broken.mirror=True",),
    "unmasked": ("loss.symmetry=1", "visibility.train=none"),
    "masked": ("loss.symmetry=1",),
}


def run(arguments: list[str], log: Path) -> tuple[float, float]:
    """Seconds, and seconds of CPU, that the program took.

    Raises:
        SystemExit: if it fails.
    """
    start, cpu = time.monotonic(), _cpu_of_children()
    with log.open("a") as told:
        done = subprocess.run(
            [sys.executable, "main.py", *arguments], stdout=told, stderr=told
        )
    if done.returncode != 0:
        sys.exit(f"main.py ended with status {done.returncode}; see {log}")
    return time.monotonic() - start, _cpu_of_children() - cpu


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def scores_of(workdir: Path) -> dict[str, Any]:
    """What the run wrote, without what it says of itself."""
    found = json.loads((workdir / "eval" / "test.json").read_text())
    found.pop("rules")
    return found


def finished_row(
    record: Path, keys: list[str], common: list[str], also: str
) -> dict[str, Any]:
    """The row of a record, which must be of these keys.

    Raises:
        SystemExit: naming the record, if it is of others.
    """
    row = json.loads(record.read_text())
    # Older records do not say what all rows had in common.
    there = (row["keys"], _of_run(row.get("common", common)))
    other = row.get("also", {}).get("keys", [])
    if there != (keys, _of_run(common)) or other != also.split():
        sys.exit(
            f"{record} is of another row: {[*there, other]}, not "
            f"{[keys, _of_run(common), also.split()]}; remove it or take another "
            "--folder"
        )
    return row


def _of_run(common: list[str]) -> list[str]:
    """Without what is a matter of the machine."""
    return [key for key in common if not key.startswith("--config.data.cache_dir")]


def train_row(
    name: str, seed: int, folder: Path, common: list[str], also: str
) -> dict[str, Any]:
    """Trains and scores one row, unless that is done already."""
    workdir = folder / f"{name}-{seed}"
    record = folder / f"{name}-{seed}.json"
    supervised = str(folder / f"supervised-{seed}")
    keys = [key.format(supervised=supervised) for key in ROWS[name]]
    if record.exists():
        return finished_row(record, keys, common, also)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    arguments = [
        *common,
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        *(f"--config.{key}" for key in keys),
    ]
    log = folder / f"{name}-{seed}.log"
    seconds, cpu = run(arguments, log)
    row: dict[str, Any] = {
        "row": name,
        "seed": seed,
        "keys": keys,
        "common": common,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "load_average": os.getloadavg()[0],
        "scores": scores_of(workdir),
    }
    if also:
        other = [f"--config.{key}" for key in also.split()]
        cache = [key for key in common if key.startswith("--config.data.cache_dir")]
        run(["--mode=eval", f"--workdir={workdir}", *cache, *other], log)
        row["also"] = {"keys": also.split(), "scores": scores_of(workdir)}
    record.write_text(json.dumps(row, indent=1) + "\n")
    return row


def main() -> None:
    """Trains the rows that are asked for; see above."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, common = sys.argv[1:cut], sys.argv[cut + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", default="full")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--also", default="")
    args = parser.parse_args(own)
    record = {"machine": machine.describe("flax", "optax"), "common": common}
    rows = []
    for name in args.rows.split(","):
        for seed in map(int, args.seeds.split(",")):
            rows.append(train_row(name, seed, args.folder, common, args.also))
            text = json.dumps(record | {"rows": rows}, indent=1)
            args.output.write_text(text + "\n")
            print(f"{name}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
