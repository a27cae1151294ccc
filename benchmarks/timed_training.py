"""How good is a run after so many minutes on this machine?

    python -m benchmarks.timed_training --seconds=300 --output=DIR \
        -- --config=configs/synfaces.py --config.model.compute_dtype=bfloat16

Everything behind `--` goes to `main.py`. The program trains as for a user, is stopped
by the SIGTERM that a scheduler would send, and scores what it has saved. DIR gets
`training.json` (steps, images/s, the scores and the baselines beside them),
`curves.jsonl`, the newest panel, and `parameters.safetensors` in half precision,
small enough to be carried away. The workdir, `DIR/run`, can be trained further.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks import machine
from unsup3d_jax.engine import checkpoint

GRACE = 60.0  # seconds to save in
ENVIRONMENT = dict(os.environ)  # of the programs that are started here


def train(arguments: list[str], seconds: float, log: Path) -> float:
    """Runs the program until it ends or its time is up; the seconds that it took."""
    start = time.monotonic()
    with log.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, "main.py", *arguments],
            stdout=told,
            stderr=told,
            env=ENVIRONMENT,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(GRACE)
    if process.returncode != 0:
        sys.exit(f"training ended with status {process.returncode}; see {log}")
    return time.monotonic() - start


def evaluate(arguments: list[str], log: Path, seconds: float) -> None:
    """Scores the newest checkpoint, as mode eval does."""
    with log.open("w") as told:
        subprocess.run(
            [sys.executable, "main.py", "--mode=eval", *arguments],
            stdout=told,
            stderr=told,
            env=ENVIRONMENT,
            timeout=seconds,
            check=True,
        )


def keep_parameters(workdir: Path, file: Path) -> int:
    """Writes the newest parameters as float16; how many there are."""
    parts, _ = checkpoint.load_parts(workdir)
    flat: dict[str, np.ndarray] = {}

    def walk(prefix: str, tree: Any) -> None:
        for name, value in tree.items():
            key = f"{prefix}.{name}" if prefix else name
            if isinstance(value, dict):
                walk(key, value)
            else:
                flat[key] = np.asarray(value, np.float16)

    walk("", parts["params"])
    save_file(flat, file)
    return sum(v.size for v in flat.values())


def measure(arguments: list[str], seconds: float, output: Path) -> dict[str, Any]:
    """Trains and scores; files in `output` as said above."""
    workdir = output / "run"
    arguments = [*arguments, f"--workdir={workdir}"]
    took = train(arguments, seconds, output / "train.log")
    lines = [json.loads(s) for s in (workdir / "metrics.jsonl").open()]
    steps = [line for line in lines if line["split"] == "train"]
    rates = [line["images_per_second"] for line in steps if "images_per_second" in line]
    report: dict[str, Any] = {
        "seconds": took,
        "steps": max(line["step"] for line in lines),
        "images_per_s": float(np.median(rates)) if rates else None,
        "last": steps[-1],
        "validation": [line for line in lines if line["split"] == "val"],
    }
    shutil.copy(workdir / "metrics.jsonl", output / "curves.jsonl")
    panels = sorted(
        (workdir / "pictures").glob("*.png"), key=lambda p: int(p.stem), reverse=True
    )
    if panels:
        shutil.copy(panels[0], output / "panel.png")
    report["parameters"] = keep_parameters(workdir, output / "parameters.safetensors")
    _write(report, output)
    evaluate(arguments, output / "eval.log", 300.0)
    report["scores"] = {
        file.stem: json.loads(file.read_text())
        for file in sorted((workdir / "eval").glob("*.json"))
    }
    _write(report, output)
    print((output / "eval.log").read_text())
    return report


def _write(report: dict[str, Any], output: Path) -> None:
    described = report | {"machine": machine.describe("flax", "optax")}
    (output / "training.json").write_text(json.dumps(described, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", help="of main.py, behind --")
    flags = parser.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    # The memory is for the programs that train and score; this one reads files.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    measure(flags.arguments, flags.seconds, flags.output)


if __name__ == "__main__":
    main()
