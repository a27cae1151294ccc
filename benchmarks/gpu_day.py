"""All that is to be known of one GPU, in as many minutes as it is there for.

    python -m benchmarks.gpu_day --output=DIR --minutes=13

The parts run in order of value, each in a process of its own with a limit of its own.
What a part has found is in DIR when it ends, so whatever ends the day early costs the
rest and no more; a part that no longer fits is skipped, one that fails is reported, and
the next one runs. `summary.json` says which did what; `NAME.log` holds what it printed.

The faces to train on are rendered meanwhile, by the CPU's cores. Nothing is downloaded.
Optional: `--authors`, a clone of the authors' repository, whose step is timed beside
ours; `--vgg`, a file of VGG16's weights, without which training does without the
perceptual loss; peers of the rasterizer, wherever Python finds them.

What it costs, measured on an H200 with 16 cores: compiling a step of full width 62 s
and more (204 s with cuDNN's transposed convolutions), most of it the search for each
convolution's fastest kernel (a second program of the same step finds it in
JAX_COMPILATION_CACHE_DIR, which the parts share, if the first one came to its end);
42,000 faces 116 s, at low priority beside the first parts; the tests 90 to 125 s.

`--rehearse` runs all parts with tiny sizes on whatever machine, so that no minute of a
GPU is spent on an import error.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = 60.0  # seconds until the first step of a program that was compiled before
RESERVE = 5.0  # seconds kept for the end
TESTS = ("tests/rasterizer/test_gpu.py", "tests/unsup3d/test_gpu_step.py")


@dataclasses.dataclass(frozen=True)
class Part:
    """A command, worth starting if `least` seconds are left, ended after `most`."""

    name: str
    command: list[str]
    least: float
    most: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def parts(flags: argparse.Namespace) -> list[Part]:
    """What is done, in order of value."""
    out: Path = flags.output
    small = flags.rehearse
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # beside others
    authors = []
    if flags.authors and not small:
        authors = [f"--authors={flags.authors}", "--authors_device=cuda"]
    # Theirs in the precision of ours, and first in the one that PyTorch takes.
    precisions = {"float32": "tf32,float32", "bfloat16": "bfloat16"}

    def module(name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{name}", *arguments]

    def step(dtype: str) -> list[str]:
        sizes = "--batch=64 --rounds=10"
        if small:
            sizes = "--batch=2 --rounds=1 --width=16 --size=32 --no-perceptual"
        arguments = [*sizes.split(), "--no-parts", f"--compute_dtype={dtype}", *authors]
        if authors:
            arguments.append(f"--authors_precisions={precisions[dtype]}")
        return module("train_step", *arguments, f"--output={out}/step_{dtype}.json")

    pytest = "-m pytest -q -m gpu -n 8 -p no:cacheprovider --durations=15".split()
    tests = [sys.executable, *pytest, f"--junitxml={out}/correctness.xml", *TESTS]
    cases = "grid:64:128,grid:64:16,head:256:16,grid:128:128,grid:256:16"
    rasterizer = [f"--cases={cases}", "--rounds=5", "--seconds=60"]
    if small:
        rasterizer = ["--cases=grid:16:2", "--rounds=1"]
    ceilings = ["--small"] if small else []
    programs = "grid_xla" if small else "grid,grid_xla,step_bfloat16,step"
    traced = [*ceilings, f"--programs={programs}"]
    return [
        Part("machine", module("ceilings", *ceilings, f"--output={out}/machine.json"),
             10, 60),
        Part("correctness", tests, 60, 150, shared),
        Part(
            "rasterizer",
            module("rasterizer_gpu", *rasterizer, f"--output={out}/rasterizer.json"),
            40, 120, shared,
        ),
        Part("step_bfloat16", step("bfloat16"), 150, 240, shared),
        Part("step_float32", step("float32"), 150, 240, shared),
        Part(
            "kernels",
            module("kernels", *traced, f"--output={out}/kernels/kernels.json"),
            60, 240, shared,
        ),
    ]  # fmt: skip


def training(flags: argparse.Namespace, seconds: float) -> Part:
    """The last part, which takes what is left.

    As many steps as fit, by what one has just been measured to take; else until the
    time is up.
    """
    arguments = [*run_keys(flags), *flags.training.split()]
    dtype = "bfloat16" if "bfloat16" in flags.training else "float32"
    measured = flags.output / f"step_{dtype}.json"
    if measured.exists():
        step = json.loads(measured.read_text())["ours"]["step_s"]
        steps = int(max(seconds - START, 1.0) / step)
        arguments.append(f"--config.train.steps={min(steps, 50_000)}")
    command = [
        *(sys.executable, "-m", "benchmarks.timed_training"),
        f"--seconds={seconds:.0f}",
        f"--output={flags.output / 'training'}",
        *("--", *arguments),
    ]
    return Part("training", command, 0, seconds + 120)


def run_keys(flags: argparse.Namespace) -> list[str]:
    """The config of the training run, and so of its faces."""
    keys = [
        "--config=configs/synfaces.py",
        f"--config.data.cache_dir={flags.cache}",
        "--config.eval.baselines=constant,average,untrained",
        "--config.checkpoint.deadline=60.0",
    ]
    if flags.vgg:
        keys.append(f"--config.loss.perceptual_weights={flags.vgg}")
    else:
        keys.append("--config.loss.perceptual=0")
    if flags.rehearse:
        keys += [
            "--config.data.image_size=32",
            "--config.model.width=16",
            "--config.train.batch_size=8",
            "--config.data.count_train=256",
            "--config.data.count_val=16",
            "--config.data.count_test=16",
            "--config.log.every=5",
            "--config.log.picture_every=10",
        ]
    return keys


def render_faces(flags: argparse.Namespace) -> subprocess.Popen:
    """Starts rendering the faces of the training run; ends by itself."""
    arguments = [*run_keys(flags), f"--output={flags.output / 'data'}"]
    command = [sys.executable, "main.py", "--mode=data", *arguments]
    return subprocess.Popen(
        ["nice", "-n", "10", *command],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=(flags.output / "data.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run(part: Part, output: Path, seconds: float) -> dict[str, Any]:
    """Runs one part for so long at most; what came of it."""
    start = time.monotonic()
    with (output / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            part.command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | part.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
            ending = f"status {process.returncode}"
        except subprocess.TimeoutExpired:
            _kill(process)
            ending = f"ended after {seconds:.0f} s"
    return {
        "part": part.name,
        "ending": ending,
        "seconds": round(time.monotonic() - start, 1),
        "command": part.command[1:],
    }


def _kill(process: subprocess.Popen) -> None:
    """With all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def day(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs all parts; `summary.json` is whole after each."""
    # What one part has compiled the next one need not.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(flags.output / "compiled"))
    begin = time.monotonic()
    flags.output.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []

    def left() -> float:
        return 60 * flags.minutes - RESERVE - (time.monotonic() - begin)

    def note(row: dict[str, Any]) -> None:
        done.append(row)
        (flags.output / "summary.json").write_text(json.dumps(done, indent=1) + "\n")
        told = (flags.output / f"{row['part']}.log").read_text().splitlines()
        print(f"=== {row['part']}: {row['ending']}, {row['seconds']} s", flush=True)
        print("\n".join(told[-flags.tail :]), flush=True)

    wanted = flags.parts.split(",") if flags.parts else None
    trains = wanted is None or "training" in wanted
    faces = render_faces(flags) if trains else None
    rendering = time.monotonic()
    try:
        for part in parts(flags):
            if wanted is not None and part.name not in wanted:
                continue
            kept = flags.training_seconds if trains else 0.0
            room = left() - kept
            if room < part.least:
                print(f"=== {part.name}: skipped, {room:.0f} s are left", flush=True)
                continue
            note(run(part, flags.output, min(part.most, room)))
        if faces is not None:
            try:
                faces.wait(max(1.0, left() - 60))
            except subprocess.TimeoutExpired:
                print("=== the faces were not ready in time", flush=True)
                return done
            waited = time.monotonic() - rendering
            print(f"=== faces: there after at most {waited:.0f} s", flush=True)
            print((flags.output / "data.log").read_text()[-600:])
            # Scoring and the start of two programs, beside the training itself.
            seconds = left() - flags.scoring_seconds
            part = training(flags, max(10.0, seconds))
            note(run(part, flags.output, max(20.0, left())))
    finally:
        if faces is not None and faces.poll() is None:
            _kill(faces)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--parts", help="only these: machine,correctness,...,training")
    parser.add_argument("--authors", type=Path, help="clone of their repository")
    parser.add_argument("--vgg", type=Path, help="VGG16's weights: .npz, .safetensors")
    parser.add_argument("--cache", type=Path, help="of the faces; in DIR unless given")
    parser.add_argument(
        "--training", default="", help="more keys of main.py for the training run"
    )
    parser.add_argument(
        "--training_seconds", type=float, default=200.0, help="kept for training"
    )
    parser.add_argument(
        "--scoring_seconds", type=float, default=60.0, help="kept for scoring after it"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes, any machine"
    )
    parser.add_argument("--tail", type=int, default=25, help="lines of a log to show")
    flags = parser.parse_args()
    flags.output = flags.output.resolve()
    flags.cache = (flags.cache or flags.output / "cache").resolve()
    day(flags)


if __name__ == "__main__":
    main()
