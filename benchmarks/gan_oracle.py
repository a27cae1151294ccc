"""GAN2Shape without a GAN: the true scene drawn again, and what must not work.

    python -m benchmarks.gan_oracle --folder=runs/gan_oracle \
        --output=benchmarks/results/gan2shape_oracle_cpu.json -- \
        --config=configs/gan2shape/oracle.py

Row `oracle` shows that steps 1 and 3 find the shape where the projection is perfect.
Row `control` feeds step 3 with the pseudo samples themselves, of the same images: what
it gains over the prior is no merit of the projection. Everything behind `--` goes to
`main.py`; a row that is finished is not run again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.stn3dmm_rows import run, scores_of

ROWS = {"oracle": (), "control": ("projection.kind=none",)}
_KEPT = ("side", "mad_deg", "mad_authors_deg", "depth_pearson", "coverage")


def row_of(name: str, folder: Path, common: list[str]) -> dict[str, Any]:
    """Runs one row, unless that is done already; its scores by stage."""
    workdir, record = folder / name, folder / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"--config.{key}" for key in ROWS[name]]
    seconds, cpu = run([*common, f"--workdir={workdir}", *keys], folder / f"{name}.log")
    scores = scores_of(workdir)
    rows = {**scores["baselines"], scores["name"]: scores}
    images = scores["images"]
    row = {
        "row": name,
        "keys": ROWS[name],
        "images": images,
        "iterations": scores["checkpoint_step"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_minutes_per_image": round(cpu / 60 / images, 3),
        "load_average": os.getloadavg()[0],
        "scores": {
            label: {k: found[k] for k in _KEPT if k in found}
            for label, found in rows.items()
        },
    }
    record.write_text(json.dumps(row, indent=1) + "\n")
    return row


def main() -> None:
    """Runs the rows that are asked for; see above."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, common = sys.argv[1:cut], sys.argv[cut + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", default="oracle,control")
    args = parser.parse_args(own)
    about: dict[str, Any] = {
        "machine": machine.describe("flax", "optax"),
        "common": common,
        "mask": "true mask and predicted validity, each eroded 3 x 3",
    }
    rows = []
    for name in args.rows.split(","):
        rows.append(row_of(name, args.folder, common))
        args.output.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
