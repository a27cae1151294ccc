"""How many meshes a second does the rasterizer draw, and how do others do?

    python -m benchmarks.rasterizer --output=rasterizer.json     # about a minute
    python -m benchmarks.rasterizer --full --output=full.json    # all sizes, minutes
    python -m benchmarks.rasterizer --gate                       # exit 1 if too slow
    python -m benchmarks.rasterizer --tpu                        # compiles for TPUs
    python -m benchmarks.rasterizer_gpu --output=gpu.json        # on a GPU

Scenes: `grid`, depth maps of one vertex a pixel seen from random views (the forward
warp of unsup3d); `head`, a general mesh of 3,410 vertices and 6,772 faces. Each
renderer draws depth, forward, and forward with the gradient to the vertices.

All renderers take turns, round after round, so that other load falls on all alike;
figures are medians over rounds. Slow renderers draw fewer images and fewer rounds.
`temp` is the scratch memory of the compiled program, without inputs and outputs.
On CPUs "ours" are Numba's loops where it is installed, and "ours, XLA" the work list.
"C++ loop" is a plain z-buffer compiled on the spot (`benchmarks/peers/zbuffer.cpp`), on
as many threads as there are cores: the native bound.

`--gate` compares the exact work list with brute force (every face at every pixel, by
the same arithmetic) on one grid of 64 px; it is a ratio of two programs in the same
process, expected in the hundreds, and fails under 50.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rasterizer
from benchmarks import charts, machine, peers
from benchmarks.peers import Calls, Peer, Queue, Scene, scenes
from rasterizer import coverage
from rasterizer.backends import numba_installed
from rasterizer.worklist import snap_vertices

GATE = 50.0
SOFT = {"sigma": 0.05, "gamma": 0.003}
PEER_PIXELS = 150_000  # a slow peer draws no more pixels than this a call
SLOW_CALL_S = 1.0  # and a call slower than this is not repeated


# --- renderers of our own ---------------------------------------------------------


def ours(name: str, draw: Callable[[Scene, jax.Array], jax.Array]) -> Peer:
    """A peer from a function (scene, vertices) -> depth."""

    def prepare(scene: Scene) -> Calls:
        vertices, cotangent = jnp.asarray(scene.vertices), jnp.asarray(scene.cotangent)

        def pull(vertices, cotangent):
            depth, vjp = jax.vjp(lambda v: draw(scene, v), vertices)
            return depth, vjp(cotangent)[0]

        start = time.perf_counter()
        forward = jax.jit(lambda v: draw(scene, v)).lower(vertices).compile()
        middle = time.perf_counter()
        both = jax.jit(pull).lower(vertices, cotangent).compile()
        costs = {
            "compile_forward_s": middle - start,
            "compile_gradient_s": time.perf_counter() - middle,
            "temp_forward_mib": _scratch_mib(forward),
            "temp_gradient_mib": _scratch_mib(both),
        }
        queue = Queue(
            lambda: forward(vertices),
            lambda: both(vertices, cotangent),
            jax.block_until_ready,
        )
        return Calls(
            lambda: jax.block_until_ready(forward(vertices)),
            lambda: jax.block_until_ready(both(vertices, cotangent)),
            queue,
            costs,
        )

    return Peer(
        name=name,
        version=f"jax {jax.__version__}",
        device=f"{jax.default_backend()}, {jax.devices()[0].device_kind}",
        prepare=prepare,
    )


def _scratch_mib(program: jax.stages.Compiled) -> float:
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes / 2**20 if memory else float("nan")


def draw_grid(scene: Scene, vertices: jax.Array, **options) -> jax.Array:
    assert scene.grid is not None
    return rasterizer.render_grid_depth(
        vertices.reshape(scene.batch, *scene.grid, 3),
        scene.size,
        background=scene.background,
        **options,
    ).depth


def draw_mesh(scene: Scene, vertices: jax.Array, **options) -> jax.Array:
    return rasterizer.render_depth(
        vertices, scene.faces, scene.size, background=scene.background, **options
    ).depth


def brute_force(scene: Scene, vertices: jax.Array) -> jax.Array:
    """Face indices (B, H, W) by testing every face at every pixel, a row at a time."""
    grid = coverage.SampleGrid(*scene.size)
    column = jnp.arange(grid.columns, dtype=jnp.int32) - grid.centre[0]

    def one(vertices):
        snapped = snap_vertices(vertices, grid, coverage.Rules())
        x, y, inverse = ([v[scene.faces[:, k]] for k in range(3)] for v in snapped)

        def one_row(row):
            px = (column << grid.bits)[:, None]
            py = (row - grid.centre[1]) << grid.bits
            edges = [
                coverage.edge(x[i], y[i], x[j], y[j], px, py)
                for i, j in ((1, 2), (2, 0), (0, 1))
            ]
            key = coverage.nearness(edges, inverse)
            return jnp.where(jnp.max(key, -1) > 0, jnp.argmax(key, -1), -1)

        return jax.lax.map(one_row, jnp.arange(grid.rows, dtype=jnp.int32))

    return jax.lax.map(one, vertices)


def _own_renderers(scene: Scene, full: bool) -> dict[str, Callable]:
    """Name -> (scene, vertices) -> depth, for what of ours can draw the scene."""
    found: dict[str, Callable] = {}
    backends = {"": "auto"}
    platform = jax.default_backend()
    if platform == "gpu" or (platform == "cpu" and numba_installed()):
        backends[", XLA"] = "xla"
    for suffix, backend in backends.items():
        if scene.grid is not None:
            name = f"ours, grid{suffix}"
            found[name] = functools.partial(draw_grid, backend=backend)
        if scene.grid is None or full:
            name = f"ours, mesh{suffix}"
            found[name] = functools.partial(draw_mesh, backend=backend)
        if full or scene.size[0] <= 64:
            name = f"ours, soft{suffix}"
            found[name] = functools.partial(draw_mesh, backend=backend, **SOFT)
    if scene.grid is not None and full:
        found["ours, grid 2x2"] = functools.partial(draw_grid, supersample=2)
    return found


# --- timing -----------------------------------------------------------------------


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _interleaved(calls: dict[Any, Callable], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each call in each round; a first round warms up and finds the slow."""
    times = {key: [_timed(call)] for key, call in calls.items()}
    slow = {key for key, first in times.items() if first[0] > SLOW_CALL_S}
    for key in calls.keys() - slow:
        times[key] = []
    for _ in range(rounds):
        for key in calls:
            if key not in slow:
                times[key].append(_timed(calls[key]))
    return times


def agreement(calls: Calls, depth: np.ndarray, gradient: np.ndarray) -> dict[str, Any]:
    """Shares of pixels and of gradient entries that are not ours.

    Args:
        depth, gradient: ours, of as many images as theirs or more.
    """
    theirs = np.asarray(calls.forward())
    off = np.abs(theirs - depth[: len(theirs)]) > 1e-3
    out: dict[str, Any] = {"pixels_off": float(off.mean())}
    if calls.gradient is not None:
        pulled = np.asarray(calls.gradient()[1])
        expected = gradient[: len(pulled)]
        scale = np.abs(expected).max()
        out["gradients_off"] = float((np.abs(pulled - expected) > 1e-3 * scale).mean())
    return out


def measure_scene(
    scene: Scene, others: Iterable[Peer], *, rounds: int, full: bool
) -> list[dict[str, Any]]:
    """One row for each renderer: images/s and Mtri/s, forward and with gradient."""
    ready: list[tuple[Peer, Scene, Calls]] = []
    for name, draw in _own_renderers(scene, full).items():
        peer = ours(name, draw)
        ready.append((peer, scene, peer.prepare(scene)))
    for peer in others:
        count = scene.batch
        if peer.name != "C++ loop":
            count = max(1, min(count, PEER_PIXELS // (4 * scene.size[0] ** 2)))
        small = scene.only(count)
        ready.append((peer, small, peer.prepare(small)))
    first = ready[0][2].gradient
    assert first is not None
    truth = [np.asarray(v) for v in first()]
    timed = {}
    for k, (_, _, calls) in enumerate(ready):
        timed[k, "forward"] = calls.forward
        if calls.gradient is not None:
            timed[k, "gradient"] = calls.gradient
    times = _interleaved(timed, rounds)
    rows = []
    for k, (peer, drawn, calls) in enumerate(ready):
        row: dict[str, Any] = {
            "scene": scene.name,
            "size": scene.size[0],
            "batch": drawn.batch,
            "faces": len(scene.faces),
            "renderer": peer.name,
        }
        for what in ("forward", "gradient"):
            if (k, what) not in times:
                continue
            seconds = statistics.median(times[k, what])
            row[what] = {
                "images_per_s": drawn.batch / seconds,
                "mtri_per_s": drawn.batch * len(scene.faces) / seconds / 1e6,
                "ms": 1e3 * seconds,
                "ms_all": [round(1e3 * s, 4) for s in times[k, what]],
            }
        row |= calls.costs
        if not peer.name.startswith("ours") and peer.comparable:
            row |= agreement(calls, *truth)
        rows.append(row)
    return rows


def _cases(full: bool) -> list[Scene]:
    if not full:
        return [
            scenes.grid_scene(32, 16),
            scenes.grid_scene(64, 16),
            scenes.grid_scene(128, 8),
            scenes.grid_scene(256, 2),
            scenes.grid_scene(512, 1),
            scenes.head_scene(128, 8),
            scenes.head_scene(256, 4),
        ]
    sizes = ((32, 64), (64, 16), (64, 1), (64, 64), (128, 8), (256, 4), (512, 1))
    found = [scenes.grid_scene(size, batch) for size, batch in sizes]
    sizes = ((64, 16), (128, 8), (128, 1), (256, 4), (512, 1))
    return found + [scenes.head_scene(size, batch) for size, batch in sizes]


def _limit(peer: Peer, scene: Scene, full: bool) -> bool:
    """Whether a peer is worth waiting for at this size."""
    if peer.name == "jaxrenderer":  # a second an image, and as much to compile
        return scene.size[0] <= (64 if full else 32)
    if peer.name == "PyTorch3D":
        return scene.size[0] <= 128
    return full or scene.size[0] <= 256 or peer.name == "C++ loop"


def measure(*, full: bool, rounds: int, output: Path | None) -> dict[str, Any]:
    """The whole benchmark; prints as it goes."""
    found, missing = peers.load_all()
    rows = []
    for scene in _cases(full):
        others = [p for p in found if _limit(p, scene, full)]
        new = measure_scene(scene, others, rounds=rounds, full=full)
        rows += new
        _print_rows(new)
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    report = {
        "machine": machine.describe("numba"),
        "rounds": rounds,
        "peers": {
            p.name: {"version": p.version, "device": p.device, "differs": p.differs}
            for p in found
        },
        "missing_peers": missing,
        "rows": rows,
    }
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n")
        for name, chart in draw_charts(rows).items():
            output.with_name(f"{output.stem}_{name}.svg").write_text(chart)
    return report


# --- what is shown ----------------------------------------------------------------


def _print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    print(
        f"\n{first['scene']} {first['size']} px, {first['faces']} faces\n"
        f"{'':20s} batch   forward img/s  Mtri/s   fwd+bwd img/s  Mtri/s"
        "   temp MiB  compile s   off"
    )
    for row in rows:
        line = f"{row['renderer']:20s} {row['batch']:5d}"
        for what in ("forward", "gradient"):
            if what in row:
                rate = row[what]
                line += f"  {rate['images_per_s']:13.1f}  {rate['mtri_per_s']:6.1f}"
            else:
                line += f"  {'-':>13s}  {'-':>6s}"
        if "temp_gradient_mib" in row:
            seconds = row["compile_forward_s"] + row["compile_gradient_s"]
            line += f"   {row['temp_gradient_mib']:8.1f}  {seconds:9.1f}"
        if "pixels_off" in row:
            line += f"{'':24s}{row['pixels_off']:.1%}"
        print(line, flush=True)


def draw_charts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """SVG documents: throughput against size, time a pixel, ratio to the C++ loop."""
    best: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if "gradient" in row:
            key = (row["scene"], row["renderer"], row["size"])
            best[key] = max(best.get(key, 0.0), row["gradient"]["images_per_s"])
    throughput: dict[str, list[tuple[float, float]]] = {}
    ratio: dict[str, list[tuple[float, float]]] = {}
    for (scene, name, size), rate in best.items():
        throughput.setdefault(f"{name}: {scene}", []).append((size, rate))
        native = best.get((scene, "C++ loop", size))
        if native and name != "C++ loop":
            ratio.setdefault(f"{name}: {scene}", []).append((size, rate / native))
    cost = {
        name: [(size, 1e9 / (rate * size**2)) for size, rate in line]
        for name, line in throughput.items()
        if name.startswith(("ours", "C++"))
    }
    x_label = "image side, pixels"
    out = {}
    if throughput:
        out["throughput"] = charts.line_chart(
            throughput,
            title="Depth images, forward + backward",
            x_label=x_label,
            y_label="images / s",
        )
        out["cost"] = charts.line_chart(
            cost,
            title="Forward + backward, time a pixel of the image",
            x_label=x_label,
            y_label="ns / pixel",
        )
    if ratio:
        out["ratio"] = charts.line_chart(
            ratio,
            title="Throughput over that of a plain C++ loop",
            x_label=x_label,
            y_label="ratio, forward + backward",
            rule=1.0,
        )
    return out


# --- the gate, and TPUs -----------------------------------------------------------


def gate(rounds: int = 5) -> float:
    """Median ratio of brute force's time to the work list's, one grid of 64 px.

    Raises:
        AssertionError: if they do not draw the same faces.
    """
    scene = scenes.grid_scene(64, 1)
    vertices = jnp.asarray(scene.vertices)
    exact = jax.jit(
        lambda v: (
            rasterizer.rasterize(v, scene.faces, scene.size, backend="xla").face_index
        )
    )
    grid = jax.jit(lambda v: draw_grid(scene, v, backend="xla"))
    brute = jax.jit(lambda v: brute_force(scene, v))
    np.testing.assert_array_equal(exact(vertices), brute(vertices))
    jax.block_until_ready(grid(vertices))
    ratios = []
    for _ in range(rounds):
        # The least of a few: a pause of the machine within one call is not its speed.
        quick = min(
            _timed(lambda: jax.block_until_ready(grid(vertices))) for _ in range(5)
        )
        slow = _timed(lambda: jax.block_until_ready(brute(vertices)))
        ratios.append(slow / quick)
    return statistics.median(ratios)


def compile_for_tpu() -> None:
    """Compiles forward and backward for TPUs that need not be there; prints costs.

    Needs `pip install libtpu`. Nothing is run.
    """
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    scene = scenes.grid_scene(64, 16)
    shape = scene.vertices.shape

    def pull(draw):
        def run(vertices, cotangent):
            depth, vjp = jax.vjp(lambda v: draw(scene, v), vertices)
            return depth, vjp(cotangent)[0]

        return run

    programs = {
        "grid": pull(draw_grid),
        "mesh": pull(draw_mesh),
        "soft": pull(lambda s, v: draw_mesh(s, v, **SOFT)),
    }
    for generation in ("v5e:2x2", "v6e:2x2"):
        try:
            topology = topologies.get_topology_desc(
                platform="tpu", topology_name=generation
            )
        except RuntimeError as error:
            sys.exit(f"no TPU compiler (pip install libtpu): {error}")
        sharding = SingleDeviceSharding(topology.devices[0])
        arguments = [
            jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding)
            for s in (shape, scene.cotangent.shape)
        ]
        for name, program in programs.items():
            start = time.perf_counter()
            compiled = jax.jit(program).lower(*arguments).compile()
            seconds = time.perf_counter() - start
            costs = compiled.cost_analysis() or {}
            print(
                f"{generation} {name}: compiled in {seconds:.1f} s, "
                f"flops {costs.get('flops', float('nan')):.3g}, "
                f"bytes {costs.get('bytes accessed', float('nan')):.3g}, "
                f"optimal {costs.get('optimal_seconds', float('nan')):.3g} s, "
                f"temp {_scratch_mib(compiled):.1f} MiB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all sizes and batches")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gate", action="store_true", help="ratio to brute force")
    parser.add_argument("--tpu", action="store_true", help="compile only, for TPUs")
    parser.add_argument("--output", type=Path, help="JSON file; charts go beside it")
    flags = parser.parse_args()
    # Compilation is one of the figures.
    jax.config.update("jax_enable_compilation_cache", False)
    if flags.gate:
        ratio = gate()
        print(f"brute force / work list at 64 px: {ratio:.0f} (at least {GATE:.0f})")
        sys.exit(ratio < GATE)
    if flags.tpu:
        compile_for_tpu()
        return
    measure(full=flags.full, rounds=flags.rounds, output=flags.output)


if __name__ == "__main__":
    main()
