"""How fast is the rasterizer on a GPU, beside others and beside what memory allows?

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.rasterizer_gpu \\
        --output=rasterizer_gpu.json                # all cases, some minutes
    python -m benchmarks.rasterizer_gpu --cases=grid:64:16,head:256:16 --rounds=3

Scenes are those of `benchmarks.rasterizer`; depth, forward, and forward with the
gradient to the vertices. Inputs lie on the GPU, results stay there, and every renderer
draws the whole batch. All take turns, round after round, in one process; figures are
medians over rounds.

latency: one call, from the host's start of it until the result is there. throughput:
the mean of many calls started back to back, with one wait at the end; the time that the
host takes to start a call, some 50 us in JAX, is hidden where the GPU takes longer.

floor: the bytes that must be moved (each vertex and face read once, each pixel of depth
written once; with the gradient, its cotangent read and a gradient written for each
vertex besides) over the rate of a copy on this GPU, measured.

Only the first call of a renderer is timed if it takes longer than a second. What a
renderer raises is reported in its row. JAX and PyTorch share the GPU's memory only if
JAX is told not to take most of it at once, as above.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import ceilings, machine, peers
from benchmarks import rasterizer as on_cpu
from benchmarks.peers import Calls, Peer, Queue, Scene, scenes

CASES = (
    "grid:64:16",
    "grid:64:128",
    "grid:128:16",
    "grid:128:128",
    "grid:256:16",
    "grid:256:128",
    "head:256:16",
)
PEERS = ("nvdiffrast", "neural_renderer")
BACKENDS = ("auto", "xla")
MESH_SIZE = 64  # grids up to this size are drawn as general meshes too
ROW_SECONDS = 0.02  # back-to-back calls of a round last about this long
MOST_CALLS = 200
SINGLE_CALLS = 5
SCALARS = {"forward": 1, "gradient": 2}  # of a vertex and of a pixel, read or written


def make_case(name: str) -> Scene:
    """The scene of "KIND:SIZE:BATCH", such as grid:64:16.

    Raises:
        ValueError: unless it is a grid or a head, of a size and a batch.
    """
    makers = {"grid": scenes.grid_scene, "head": scenes.head_scene}
    try:
        kind, size, batch = name.split(":")
        return makers[kind](int(size), int(batch))
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"a case is like grid:64:16 or head:256:4, not {name!r}."
        ) from (error)


def own_peers(scene: Scene, backends: Iterable[str]) -> list[Peer]:
    """Ours: a grid by each backend, a mesh where the scene is one or is small."""
    found = []
    for backend in backends:
        if scene.grid is not None:
            draw = functools.partial(on_cpu.draw_grid, backend=backend)
            found.append(on_cpu.ours(f"ours, grid, {backend}", draw))
        if scene.grid is None or scene.size[0] <= MESH_SIZE:
            draw = functools.partial(on_cpu.draw_mesh, backend=backend)
            found.append(on_cpu.ours(f"ours, mesh, {backend}", draw))
    return found


def floor_bytes(scene: Scene, what: str) -> int:
    """What must be read or written at least, for "forward" or "gradient".

    A grid's faces need not be read, a mesh's once for the whole batch.
    """
    once = 4 * (scene.vertices.size + scene.cotangent.size) * SCALARS[what]
    return once + (0 if scene.grid is not None else 4 * scene.faces.size)


# --- timing -----------------------------------------------------------------------


def _seconds(start: Callable[[], Any], wait: Callable[[Any], object], calls=1) -> float:
    """Of a call, on average over `calls` of them back to back."""
    result = None
    began = time.perf_counter()
    for _ in range(calls):
        result = start()
    wait(result)
    return (time.perf_counter() - began) / calls


def time_in_turns(
    queues: dict[Any, Queue], rounds: int
) -> dict[tuple[Any, str], dict[str, list[float]]]:
    """Seconds of each queue's "forward" and "gradient": `single` and `row`.

    A first call warms up, and is all there is of one slower than a second.
    """
    times, calls = {}, {}
    for key, queue in queues.items():
        for what in SCALARS:
            start = getattr(queue, what)
            first = _seconds(start, queue.wait)
            if first > on_cpu.SLOW_CALL_S:
                times[key, what] = {"single": [first], "row": [first]}
                continue
            times[key, what] = {"single": [], "row": []}
            warm = _seconds(start, queue.wait)  # the first may have compiled
            calls[key, what] = min(MOST_CALLS, max(1, int(ROW_SECONDS / warm)))
    for _ in range(rounds):
        for (key, what), count in calls.items():
            queue = queues[key]
            start, found = getattr(queue, what), times[key, what]
            for _ in range(min(count, SINGLE_CALLS)):
                found["single"].append(_seconds(start, queue.wait))
            found["row"].append(_seconds(start, queue.wait, count))
    return times


def _figures(times: dict[str, list[float]], scene: Scene, floor_s: float) -> dict:
    seconds = statistics.median(times["row"])
    return {
        "images_per_s": scene.batch / seconds,
        "mtri_per_s": scene.batch * len(scene.faces) / seconds / 1e6,
        "ms": 1e3 * seconds,
        "ms_all": [round(1e3 * s, 5) for s in times["row"]],
        "latency_ms": 1e3 * statistics.median(times["single"]),
        "latency_ms_all": [round(1e3 * s, 5) for s in times["single"]],
        "floor_ms": 1e3 * floor_s,
        "times_floor": seconds / floor_s,
    }


def measure_case(
    scene: Scene, renderers: Sequence[Peer], *, rounds: int, rate: float
) -> list[dict[str, Any]]:
    """One row for each renderer; the first that can draw is what others must equal.

    Args:
        rate: of a copy, bytes a second.
    """
    ready: dict[int, Calls] = {}
    rows: list[dict[str, Any]] = []
    truth: list[np.ndarray] | None = None
    for k, peer in enumerate(renderers):
        row = {
            "scene": scene.name,
            "size": scene.size[0],
            "batch": scene.batch,
            "faces": len(scene.faces),
            "renderer": peer.name,
        }
        rows.append(row)
        try:
            calls = peer.prepare(scene)
            assert calls.gradient is not None and calls.queue is not None
            if truth is None:
                truth = [np.asarray(v) for v in calls.gradient()]
            else:
                row |= on_cpu.agreement(calls, *truth)
        except Exception as error:  # theirs may be any; the others go on
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        row |= calls.costs
        ready[k] = calls
    queues = {k: calls.queue for k, calls in ready.items() if calls.queue}
    for (k, what), times in time_in_turns(queues, rounds).items():
        floor_s = floor_bytes(scene, what) / rate
        rows[k][what] = _figures(times, scene, floor_s)
    return rows


def measure(
    *,
    cases: Iterable[str] = CASES,
    backends: Iterable[str] = BACKENDS,
    rounds: int = 7,
    seconds: float = float("inf"),
    output: Path | None = None,
    copy_mib: int = 1024,
) -> dict[str, Any]:
    """The whole benchmark; prints as it goes, and writes `output` after each case.

    Args:
        cases: see `make_case`.
        backends: of our rasterizer.
        seconds: no case is begun later than this.
        copy_mib: size of the array that is copied to find the rate of the memory.
    """
    began = time.perf_counter()
    found, missing = peers.load_all(PEERS)
    rate = ceilings.copy_rate(copy_mib)
    report: dict[str, Any] = {
        "machine": machine.describe("torch"),
        "preallocate": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"),
        "copy_gb_per_s": rate / 1e9,
        "rounds": rounds,
        "peers": {
            p.name: {"version": p.version, "device": p.device, "differs": p.differs}
            for p in found
        },
        "missing_peers": missing,
        "rows": [],
        "left_out": [],
    }
    print(f"a copy moves {rate / 1e9:.0f} GB/s, read and written")
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    for name in cases:
        if time.perf_counter() - began > seconds:
            report["left_out"].append(name)
            continue
        scene = make_case(name)
        renderers = own_peers(scene, backends) + found
        rows = measure_case(scene, renderers, rounds=rounds, rate=rate)
        report["rows"] += rows
        _print_rows(rows)
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=1) + "\n")
    if report["left_out"]:
        print(f"no time for {', '.join(report['left_out'])}")
    report["seconds"] = time.perf_counter() - began
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    print(
        f"\n{first['scene']} {first['size']} px x {first['batch']}, "
        f"{first['faces']} faces: ms a call"
    )
    head = "  ".join(
        f"{what + ':':9s} {'through':>9s} {'latency':>9s} {'floor':>7s} {'times':>7s}"
        for what in SCALARS
    )
    print(f"{'':20s}  {head}    temp MiB  compile s  pixels, gradients off")
    for row in rows:
        if "error" in row:
            print(f"{row['renderer']:20s}  {row['error']}", flush=True)
            continue
        line = f"{row['renderer']:20s}"
        for what in SCALARS:
            r = row[what]
            line += f"  {'':9s} {r['ms']:9.3f} {r['latency_ms']:9.3f}"
            line += f" {r['floor_ms']:7.4f} {r['times_floor']:7.1f}"
        seconds = row["compile_forward_s"] + row["compile_gradient_s"]
        line += f"  {row['temp_gradient_mib']:10.1f}  {seconds:9.1f}"
        if "pixels_off" in row:
            line += f"  {row['pixels_off']:.2%}, {row['gradients_off']:.2%}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="KIND:SIZE:BATCH, ...")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="of ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no case later"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    flags = parser.parse_args()
    # Compilation is one of the figures.
    jax.config.update("jax_enable_compilation_cache", False)
    measure(
        cases=flags.cases.split(","),
        backends=flags.backends.split(","),
        rounds=flags.rounds,
        seconds=flags.seconds,
        output=flags.output,
    )


if __name__ == "__main__":
    main()
