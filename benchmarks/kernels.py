"""Which kernels run in a training step and in the rasterizer, and for how long?

    python -m benchmarks.kernels --output=kernels.json --programs=step,step_bfloat16

Each program runs a few times under JAX's profiler. Of each kernel: how often it runs in
a call, how long, which operation of the compiled program it is and where in ours that
comes from (`scope`). `busy_share` is the share of a call in which any kernel runs; what
is missing there is launching and waiting for the host. `scopes` sums the kernels by the
part of the program that they belong to.

The compiled programs are written beside the JSON file, so that what a kernel does can
be read afterwards.
"""

import argparse
import gzip
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rasterizer
from benchmarks import machine
from benchmarks.peers import scenes
from benchmarks.train_step import Ours
from configs import default

CALLS = 5
SHOWN = 400  # kernels of a program, the longest first


class Program(NamedTuple):
    """A compiled program and how it is run to its end."""

    text: str
    call: Callable[[], None]


class Event(NamedTuple):
    """A kernel that ran; microseconds."""

    kernel: str
    operation: str
    start: float
    duration: float


# --- the programs -----------------------------------------------------------------


def step(batch: int, width: int, size: int, dtype: str) -> Program:
    config = default.get_config()
    config.train.devices = 1
    config.train.batch_size = batch
    config.model.width = width
    config.data.image_size = size
    config.model.compute_dtype = dtype
    images = np.random.default_rng(0).uniform(size=(batch, size, size, 3))
    ours = Ours(config, images.astype(np.float32))
    return Program(ours.text(), ours)


def grid(batch: int, size: int, backend: str) -> Program:
    """Grids of vertices to depth images, and the gradient back."""
    scene = scenes.grid_scene(size, batch)
    vertices, cotangent = jnp.asarray(scene.vertices), jnp.asarray(scene.cotangent)

    def draw(vertices: jax.Array) -> jax.Array:
        assert scene.grid is not None
        return rasterizer.render_grid_depth(
            vertices.reshape(scene.batch, *scene.grid, 3),
            scene.size,
            background=scene.background,
            backend=backend,
        ).depth

    def pull(vertices: jax.Array, cotangent: jax.Array):
        depth, vjp = jax.vjp(draw, vertices)
        return depth, vjp(cotangent)[0]

    compiled = jax.jit(pull).lower(vertices, cotangent).compile()
    return Program(
        compiled.as_text() or "",
        lambda: jax.block_until_ready(compiled(vertices, cotangent)),
    )


def programs(small: bool) -> dict[str, Callable[[], Program]]:
    """Name -> what makes it; `small` for a rehearsal on a CPU."""
    batch, width, size = (2, 16, 32) if small else (64, 64, 64)
    grids = 2 if small else 128
    return {
        "step": lambda: step(batch, width, size, "float32"),
        "step_bfloat16": lambda: step(batch, width, size, "bfloat16"),
        "grid": lambda: grid(grids, 64, "auto"),
        "grid_xla": lambda: grid(grids, 64, "xla"),
    }


# --- what ran ---------------------------------------------------------------------


def traced(call: Callable[[], None], calls: int) -> tuple[list[Event], float]:
    """All kernels of a few calls, and the microseconds that the calls took."""
    call()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the host down
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds = time.perf_counter() - start
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        profile = jax.profiler.ProfileData.from_file(str(files[-1]))
        return list(_events(profile)), 1e6 * seconds


def _events(profile: Any) -> Iterator[Event]:
    """Kernels of accelerators; of a CPU the operations, which is what it has."""
    planes = list(profile.planes)
    device = [p for p in planes if p.name.startswith("/device:")]
    for plane in device or planes:
        for line in plane.lines:
            if device and not line.name.startswith("Stream"):
                continue  # lines derived from the streams, event for event
            for event in line.events:
                known = {name: value for name, value in event.stats if name}
                operation = str(known.get("hlo_op", ""))
                if device or operation:
                    yield Event(
                        event.name,
                        operation,
                        event.start_ns / 1e3,
                        event.duration_ns / 1e3,
                    )


def scopes_of(text: str) -> dict[str, str]:
    """Operation of a compiled program's text -> where in our program it comes from."""
    pattern = r'%?([\w.-]+) = [^\n]*?metadata=\{[^}]*?op_name="([^"]*)"'
    return dict(re.findall(pattern, text))


def part_of(scope: str) -> str:
    """The part of the program that a scope belongs to, in a few words."""
    words = re.findall(r"\w+", scope)
    backward = " backward" if "transpose" in words else ""
    skipped = {"pmap", "jit", "jvp", "transpose", "shmap_body", "shard_map", "vmap"}
    named = [w for w in words if w not in skipped and not w.startswith("_")]
    return (" ".join(named[:2]) or "?") + backward


def summary(events: list[Event], scopes: dict[str, str], calls: int) -> dict[str, Any]:
    """Kernels of one call by time, parts of the program by time; microseconds."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    parts: dict[str, float] = defaultdict(float)
    for event in events:
        times[event.kernel, event.operation].append(event.duration)
        parts[part_of(scopes.get(event.operation, ""))] += event.duration / calls
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))
    return {
        "kernels_a_call": len(events) / calls,
        "kernel_us_a_call": sum(e.duration for e in events) / calls,
        "busy_us_a_call": _covered(events) / calls,
        "parts": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "kernels": [
            {
                "kernel": kernel[:160],
                "operation": operation,
                "scope": scopes.get(operation, "")[:240],
                "times_a_call": len(durations) / calls,
                "us_a_call": round(sum(durations) / calls, 2),
            }
            for (kernel, operation), durations in longest[:SHOWN]
        ],
    }


def _covered(events: list[Event]) -> float:
    """Length of the union of the kernels' times."""
    total, end = 0.0, -1.0
    for event in sorted(events, key=lambda e: e.start):
        stop = event.start + event.duration
        total += max(0.0, stop - max(end, event.start))
        end = max(end, stop)
    return total


def measure(names: list[str], *, small: bool, output: Path | None) -> dict[str, Any]:
    """Runs the programs; what is finished is written at once."""
    known = programs(small)
    report: dict[str, Any] = {"machine": machine.describe(), "calls": CALLS}
    for name in names:
        start = time.perf_counter()
        program = known[name]()
        compiled = time.perf_counter() - start
        events, wall = traced(program.call, CALLS)
        found = summary(events, scopes_of(program.text), CALLS)
        found["wall_us_a_call"] = wall / CALLS
        found["busy_share"] = found["busy_us_a_call"] * CALLS / wall
        found["compile_s"] = compiled
        report[name] = found
        _print(name, found)
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=1) + "\n")
            place = output.with_name(f"{output.stem}_{name}.hlo.txt.gz")
            place.write_bytes(gzip.compress(program.text.encode()))
    return report


def _print(name: str, found: dict[str, Any]) -> None:
    print(
        f"\n{name}: {found['wall_us_a_call']:.0f} us a call (traced), "
        f"{found['kernels_a_call']:.0f} kernels, busy {found['busy_share']:.0%}"
    )
    for part, us in list(found["parts"].items())[:16]:
        print(f"  {us:10.0f} us  {part}")
    for row in found["kernels"][:16]:
        print(
            f"  {row['us_a_call']:10.1f} us {row['times_a_call']:7.1f} x  "
            f"{row['kernel'][:60]}  {row['scope'][-90:]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", default="grid,grid_xla,step,step_bfloat16")
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    parser.add_argument("--output", type=Path, help="JSON file")
    flags = parser.parse_args()
    names = flags.programs.split(",")
    for name in names:
        if name not in programs(flags.small):
            parser.error(f"--programs: expected {', '.join(programs(False))}: {name}")
    measure(names, small=flags.small, output=flags.output)


if __name__ == "__main__":
    main()
