"""Does the training step compile for TPUs, what does it cost there, and what
crosses chips? Needs no TPU: package `libtpu` compiles for a described topology.

    pip install libtpu
    python -m benchmarks.tpu_compile --output=benchmarks/results/tpu_compile.json
    python -m benchmarks.tpu_compile --topologies=v5e:16x16 --images_per_chip=16

The program is `parallel.parallel_step`, rasterizer included, at full width unless
`--width` says otherwise. Times and FLOP are the compiler's estimates, per chip;
nothing was run. Only gradients and metrics may cross chips: any collective but
an all-reduce of at most the parameters' size plus a few numbers is an error.

`v5e:1` is one chip. With libtpu outside site-packages set TPU_LIBRARY_PATH to its
libtpu.so. A program takes 5 to 30 minutes on one CPU core;
JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 makes the compiler try less.
"""

import argparse
import importlib.metadata
import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import machine
from configs import default
from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.task import initial_state
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.nets import vgg16
from unsup3d_jax.unsup3d.task import model_task

# Asks libtpu for the final program as text, and for nothing else: its default is
# hundreds of files a fusion.
LIBTPU_TEXT = "--xla_jf_dump_to={} --xla_jf_dump_llo_pass_label_regex=none"
# Bytes that may cross chips beside the gradients: loss terms, statistics,
# denominators of the losses' means.
SMALL = 4096
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


def chips(name: str) -> list[Any]:
    """Described devices: "v5e:16x16", or "v5e:1" for one chip of a small slice."""
    kind, _, shape = name.partition(":")
    if shape in ("1", "1x1"):
        # Slices have at least the chips of one host; one of them is used.
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:2x2"
        ).devices[:1]
    return list(
        topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    )


def abstract_step(config: Any, devices: list[Any]) -> tuple[Any, tuple]:
    """The pmapped step for these devices and its arguments as shapes."""
    vgg = [
        {"kernel": jnp.zeros(s, jnp.float32), "bias": jnp.zeros(s[-1], jnp.float32)}
        for s in vgg16.kernel_shapes("relu3_3")
    ]
    constants: Any = {"vgg": vgg} if config.loss.perceptual > 0 else {}
    task = model_task(config, lambda split: None, constants)
    state = jax.eval_shape(lambda: initial_state(task, config.seed))
    count, size = len(devices), config.data.image_size
    shape = (count, config.train.batch_size // count, size, size, 3)
    image: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    constants, schedule = jax.eval_shape(lambda: (task.constants, task.schedule))
    step = parallel.parallel_step(task, devices)
    return step, (state, Batch(image=image), constants, schedule)


def collectives(text: str) -> list[dict]:
    """Collectives of a compiled module's text: kind, operands, bytes in all."""
    found = []
    names = "|".join(COLLECTIVES)
    pattern = rf"= (\(?[^=]*?\)?) ({names})(?:-start)?\("
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():  # "/*index=5*/"
        match = re.search(pattern, line)
        if match is None:
            continue
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        if f"{match[2]}-start(" in line and len(arrays) > 1:
            arrays = arrays[len(arrays) // 2 :]  # operands, then results
        sizes = [
            BYTES.get(kind, 8) * math.prod(int(n) for n in dims.split(",") if n)
            for kind, dims in arrays
        ]
        found.append({"kind": match[2], "arrays": len(sizes), "bytes": sum(sizes)})
    return found


def measure(
    config: Any, name: str, *, written: Path, folder: Path | None = None
) -> dict:
    """Compiles for one topology and reads what the compiler says.

    Args:
        written: where libtpu was told to write programs (`LIBTPU_TEXT`).
        folder: where the compiled program is kept as text.
    """
    devices = chips(name)
    step, args = abstract_step(config, devices)
    start = time.perf_counter()
    lowered = step.lower(*args)
    lower = time.perf_counter() - start
    known = set(written.iterdir())
    compiled = lowered.compile()
    whole = time.perf_counter() - start
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    # Negative where the program has parts that the compiler cannot estimate.
    seconds = cost.get("optimal_seconds", -1.0)
    text, unread = program_text(compiled, set(written.iterdir()) - known)
    if folder is not None and text is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name.replace(':', '_')}.txt").write_text(text)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(args[0].params))
    ours = {
        "topology": name,
        "chips": len(devices),
        "device_kind": devices[0].device_kind,
        "batch_size": config.train.batch_size,
        "images_per_chip": config.train.batch_size // len(devices),
        "width": config.model.width,
        "compute_dtype": config.model.compute_dtype,
        "parameters": parameters,
        "lower_seconds": lower,
        "compile_seconds": whole - lower,
        "memory_bytes": {
            "arguments": memory.argument_size_in_bytes,
            "output": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "total": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes,
        },
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "estimated_seconds": seconds if seconds > 0 else None,
    }
    if text is None:
        return ours | {"collectives": None, "unread": unread}
    return ours | {
        "collectives": collectives(text),
        "scatters": len(re.findall(r" scatter\(", text)),
        "sorts": len(re.findall(r" sort\(", text)),
        "while_loops": len(re.findall(r" while\(", text)),
        "host_calls": len(re.findall(r"custom_call_target=\"[^\"]*callback", text)),
    }


def program_text(compiled: Any, files: set[Path]) -> tuple[str | None, str | None]:
    """The compiled program as text; or None, and why it cannot be read.

    A libtpu newer than jaxlib writes instructions that jaxlib does not know. Then
    the text is what libtpu itself wrote, among `files`.
    """
    try:
        return compiled.as_text(), None
    except jax.errors.JaxRuntimeError as error:
        programs = [path for path in files if path.name.endswith("-hlo.txt")]
        if len(programs) == 1:
            return programs[0].read_text(), None
        return None, f"{error}; libtpu wrote {len(programs)} programs as text, not 1"


def wrong_crossings(row: dict) -> list[str]:
    """What crosses chips and must not, or cannot be told."""
    if row["collectives"] is None:
        return [f"what crosses chips in {row['topology']} is unknown: {row['unread']}"]
    kinds = {c["kind"] for c in row["collectives"]} - {"all-reduce"}
    wrong = [f"{kind} in {row['topology']}" for kind in sorted(kinds)]
    total = sum(c["bytes"] for c in row["collectives"])
    if total > 4 * row["parameters"] + SMALL:
        wrong.append(
            f"{total} bytes cross chips in {row['topology']}, the gradients have "
            f"{4 * row['parameters']}"
        )
    return wrong


def table(rows: list[dict]) -> str:
    """Rows as a table of one line each."""
    head = "topology      images/chip  memory GB  TFLOP  GB moved  est. ms  crossing MB"
    lines = [head]
    for r in rows:
        seconds = r["estimated_seconds"]
        found = r["collectives"]
        crossing = "unknown"
        if found is not None:
            crossing = f"{sum(c['bytes'] for c in found) / 1e6:.1f} in {len(found)}"
        lines.append(
            f"{r['topology']:12}  {r['images_per_chip']:11}"
            f"  {r['memory_bytes']['total'] / 1e9:9.2f}"
            f"  {(r['flops'] or 0) / 1e12:5.2f}"
            f"  {(r['bytes_accessed'] or 0) / 1e9:8.1f}"
            f"  {1e3 * seconds if seconds else float('nan'):7.1f}"
            f"  {crossing:>11}"
        )
    return "\n".join(lines)


def crossings(row: dict) -> str:
    """The collectives of a row, one a line."""
    if row["collectives"] is None:
        return f"  collectives unknown: {row['unread']}"
    lines = [
        f"  {found['kind']} of {found['arrays']} arrays, {found['bytes']:,} bytes"
        for found in row["collectives"]
    ]
    return "\n".join(lines or ["  no collectives"])


def _libtpu_version() -> str:
    """Version of the package, or of the one that TPU_LIBRARY_PATH lies in."""
    if path := os.environ.get("TPU_LIBRARY_PATH"):
        for folder in Path(path).resolve().parent.parent.glob("libtpu-*.dist-info"):
            return folder.name.removeprefix("libtpu-").removesuffix(".dist-info")
        return "unknown"
    return importlib.metadata.version("libtpu")


def measure_all(args: argparse.Namespace, written: Path) -> list[dict]:
    """`measure` for each topology; written to `args.output` after each."""
    rows = []
    for name in args.topologies.split(","):
        config = default.get_config()
        config.model.width = args.width
        config.model.compute_dtype = args.compute_dtype
        config.train.batch_size = args.images_per_chip * len(chips(name))
        rows.append(measure(config, name, written=written, folder=args.text))
        print(f"{table(rows[-1:])}\n{crossings(rows[-1])}", flush=True)
        if args.output:  # after each: a compilation takes minutes
            content = {
                "question": "the training step compiled for TPUs, without one",
                "machine": machine.describe(),
                "libtpu": _libtpu_version(),
                "optimization_effort": jax.config.values[
                    "jax_exec_time_optimization_effort"
                ],
                "rows": rows,
            }
            args.output.write_text(json.dumps(content, indent=1) + "\n")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topologies", default="v5e:1,v5e:16x16,v6e:16x16")
    parser.add_argument("--images_per_chip", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--compute_dtype", default="bfloat16")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--text", type=Path, help="folder for the compiled programs")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # the TPU is a description only
    # No Google Cloud machine: libtpu must not ask one what it is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    with tempfile.TemporaryDirectory(prefix="tpu_compile_") as written:
        # Read by libtpu when it is loaded, with the first topology.
        flags = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {LIBTPU_TEXT.format(written)}"
        rows = measure_all(args, Path(written))
    print(table(rows))
    wrong = [text for row in rows for text in wrong_crossings(row)]
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
