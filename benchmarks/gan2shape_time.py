"""Minutes an image and memory of GAN2Shape, by pixels and by images at a time.

    python -m benchmarks.gan2shape_time --sizes=32,64,128 --images=1,8,32 \
        --output=benchmarks/results/gan2shape_time_cpu.json

Compiles an iteration of each kind, times `--iterations` of them on noise, and
multiplies by how many the config has: a whole run is not made. Config `faces` at other
sizes, with the generator that ships, whose pictures are resized; every group by itself,
without a joint stage and without the search for latents. Groups that are worked on one
after the other, as on a CPU, are measured once. Seconds are those of the wall, median;
CPU seconds beside them say what other programs took away. No cell is begun after
`--budget` seconds: those left out are named.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from configs.gan2shape import faces
from unsup3d_jax.gan2shape import generated, latents, options, run, stages, subjects
from unsup3d_jax.gan2shape.steps import Moment

Kind = tuple[str, bool]
MIB = 2**20


def config_of(size: int, images: int) -> Any:
    """Config `faces` for noise of any size."""
    config = faces.get_config()
    config.data.image_size = size
    config.prior.mask = "ellipse"
    config.stages.joint_steps = (0, 0, 0)
    config.stages.group = min(config.stages.group, images)
    config.loss.spread = 0.0
    config.train.devices = 1
    return config


def problem(config: Any, groups: int) -> tuple[stages.Plan, stages.Work]:
    """Groups of noise, with a latent that is nobody's."""
    static = options.check_config(config)
    projection, gan = generated.make(config)
    count, size = groups * config.stages.group, config.data.image_size
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(count, size, size, 3)).astype(np.float32)
    names = tuple(f"noise {i}" for i in range(count))
    found = subjects.of_images(config, names, images)
    own = latents.own_of(config, gan, np.zeros((count, gan.options.style), np.float32))
    found = dataclasses.replace(found, shared=gan, own=own)
    lot = run.Lot(slice(0, count), Path())
    plan = run.plan_of(config, static, projection)
    return plan, run.work_of(config, found, lot, run.common_of(config, found), None)


def iterations(config: Any) -> dict[Kind, int]:
    """How many of each kind a run has."""
    found: dict[Kind, int] = {}
    for phase in options.phases(config):
        kind = (phase.kind, phase.flip)
        found[kind] = found.get(kind, 0) + phase.last - phase.first
    return found


def measure(config: Any, groups: int, repeats: int) -> dict[str, Any]:
    """One iteration of each kind of so many groups side by side; memory in MiB."""
    plan, work = problem(config, groups)
    state = stages.begin(work, plan)
    start = stages._groups(state)
    kinds: dict[str, Any] = {}
    for kind, flip in iterations(config):
        # Donated in each iteration.
        copied = jax.tree.map(jnp.copy, start)
        part = stages._compiled_renewal(plan, kind)(copied)
        at = Moment(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        step = stages._compiled_iteration(plan, kind, flip, plan.devices[:1])
        begin, busy = time.perf_counter(), time.process_time()
        total = jnp.zeros(groups)
        lowered = step.lower(part, total, at, work.given, work.common)  # pyright: ignore
        compiled = lowered.compile()
        compile_s = time.perf_counter() - begin
        compile_cpu = time.process_time() - busy
        wall, cpu = [], []
        for _ in range(repeats + 1):
            begin, busy = time.perf_counter(), time.process_time()
            part, total, at = compiled(part, total, at, work.given, work.common)
            jax.block_until_ready((part, total))
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - busy)
        memory = compiled.memory_analysis()
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        used += memory.output_size_in_bytes - memory.alias_size_in_bytes
        kinds[name_of((kind, flip))] = {
            "compile_s": round(compile_s, 2),
            "compile_cpu_s": round(compile_cpu, 2),
            "seconds": statistics.median(wall[1:]),  # the first one warms up
            "cpu_seconds": statistics.median(cpu[1:]),
            "program_mib": round(used / MIB, 1),
        }
    of_group = sum(x.nbytes for x in jax.tree.leaves(start)) / groups
    return {"kinds": kinds, "group_mib": round(of_group / MIB, 2)}


def name_of(kind: Kind) -> str:
    """Of a kind, for people."""
    return f"{kind[0]}{', mirrored too' if kind[1] else ''}"


def cell(config: Any, images: int, measured: dict[str, Any], side: int) -> dict:
    """A run of so many images, of what was measured of `side` groups at a time."""
    groups = math.ceil(images / config.stages.group)
    turns = math.ceil(groups / side)
    at_a_time = min(groups, config.stages.groups_at_a_time)
    seconds, cpu = (
        sum(
            count * measured["kinds"][name_of(kind)][what]
            for kind, count in iterations(config).items()
        )
        for what in ("seconds", "cpu_seconds")
    )
    program = max(kind["program_mib"] for kind in measured["kinds"].values())
    return {
        "size": config.data.image_size,
        "images": images,
        "group": config.stages.group,
        "groups_side_by_side": side,
        "iterations": sum(iterations(config).values()),
        "minutes_per_image": round(seconds * turns / images / 60, 3),
        "cpu_minutes_per_image": round(cpu * turns / images / 60, 3),
        # Groups of the lot that are not in the program wait beside it.
        "peak_mib": round(program + (at_a_time - side) * measured["group_mib"], 1),
        **measured,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="32,64,128")
    parser.add_argument("--images", default="1,8,32")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--note", default="", help="goes into the JSON")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    about = {"machine": machine.describe("flax", "optax"), "note": args.note}
    about["iterations_timed"] = args.iterations
    start, known = time.monotonic(), {}
    cells: list[dict] = []
    left_out: list[str] = []
    print(
        "| px | images | min/image | CPU min/image | peak MiB |\n|---|---|---|---|---|"
    )
    for size in map(int, args.sizes.split(",")):
        for images in map(int, args.images.split(",")):
            config = config_of(size, images)
            groups = math.ceil(images / config.stages.group)
            on_cpu = jax.default_backend() == "cpu"
            lot = min(groups, config.stages.groups_at_a_time)
            side = config.stages.side_by_side or (1 if on_cpu else lot)
            key = (size, config.stages.group, side)
            if key not in known:
                if time.monotonic() - start > args.budget:
                    left_out.append(f"{size} px, {images} images")
                    continue
                known[key] = measure(config, side, args.iterations)
            row = cell(config, images, known[key], side)
            cells.append(row)
            print(
                f"| {size} | {images} | {row['minutes_per_image']:.2f} | "
                f"{row['cpu_minutes_per_image']:.2f} | {row['peak_mib']:.0f} |",
                flush=True,
            )
            if args.output:
                text = json.dumps(
                    about | {"cells": cells, "left_out": left_out}, indent=1
                )
                args.output.write_text(text + "\n")
    if left_out:
        print(f"left out: {'; '.join(left_out)}")
    if args.output:
        text = json.dumps(about | {"cells": cells, "left_out": left_out}, indent=1)
        args.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
