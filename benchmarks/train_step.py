"""How long is one training step, where does the time go, and what did the
authors' PyTorch step take on the same machine in the same minute?

    python -m benchmarks.train_step --output=step.json
    python -m benchmarks.train_step --authors=PATH_TO_A_CLONE_OF_THEIR_REPOSITORY

`--authors` needs `torch`; `benchmarks/authors.py` says what is replaced in theirs.
Ours includes the rasterizer. Rounds alternate, so that other load on the machine
falls on both alike; a pause before each lets the other's threads sleep. Parts are
timed afterwards, beside a step of their own (`parts_step_s`), without pauses.

Operations are those that the method needs (`benchmarks/operations.py`), the
optimizer's those that XLA counts. Bytes are what XLA says that the compiled program
reads and writes: the body of a loop once, so weight gradients summed image by image
count for one image, and nothing of the rasterizer's compiled loops. Peak is the best
rate of one large matrix product in the same run, same type of numbers.
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import authors, input_pipeline, machine, operations
from configs import default
from unsup3d_jax.engine import host_memory, optimizer, parallel
from unsup3d_jax.engine.task import initial_state
from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.nets import vgg16
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import options_from_config
from unsup3d_jax.unsup3d.task import model_task

Step = Callable[[], object]
# Seconds until the threads of the other program sleep, not spin.
PAUSE = 0.5


class Part:
    """One jitted function and its arguments; calling it runs it to the end.

    Args:
        gflop: that it needs; None: as XLA counts them.
    """

    def __init__(self, function: Callable, *args: Any, gflop: float | None = None):
        lowered = jax.jit(function).lower(*args)
        if gflop is None:
            # As written: what XLA hands to a convolution library has none.
            gflop = (lowered.cost_analysis() or {}).get("flops", 0.0) / 1e9
        self.gflop = gflop
        self._compiled, self._args = lowered.compile(), args
        cost = self._compiled.cost_analysis() or {}
        self.megabytes = cost.get("bytes accessed", 0.0) / 1e6

    def __call__(self) -> None:
        jax.block_until_ready(self._compiled(*self._args))


def _timed(call: Step) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _energy(tree: Any) -> Any:
    """A scalar of everything, to take gradients of."""
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def _random_vgg() -> list[dict[str, np.ndarray]]:
    """He-initialised weights: the time of a step does not depend on them."""
    rng = np.random.default_rng(0)
    shapes = vgg16.kernel_shapes("relu3_3")
    return [
        {
            "kernel": rng.normal(0, (2 / (9 * s[2])) ** 0.5, s).astype(np.float32),
            "bias": np.zeros(s[-1], np.float32),
        }
        for s in shapes
    ]


class Ours:
    """The pmapped step of `parallel.parallel_step` on one device, state donated.

    Attributes:
        trace_s, compile_s: seconds until the program was there.
        memory_mib: of the program: its arguments and what it needs beside them.
    """

    def __init__(self, config, images: np.ndarray):
        self.config = config
        self.options = options_from_config(config)
        self.constants: dict[str, Any] = {}
        if config.loss.perceptual > 0:
            self.constants = {"vgg": jax.tree.map(jnp.asarray, _random_vgg())}
        self.devices = parallel.local_devices(config)
        self.task = model_task(config, lambda split: None, self.constants)
        state = initial_state(self.task, 0)
        n = len(self.devices)
        self.images = jnp.asarray(images)
        split = images.reshape(n, -1, *images.shape[1:])
        self.batch = Batch(image=jnp.asarray(split))
        # A copy: the step may donate the very buffers that it was given.
        self.params = jax.tree.map(jnp.copy, state.parts["params"])
        self.state, self.constants, self.schedule = parallel.replicate(
            (state, self.constants, self.task.schedule), self.devices
        )
        step = parallel.parallel_step(self.task, self.devices)
        start = time.perf_counter()
        lowered = step.lower(self.state, self.batch, self.constants, self.schedule)
        self.trace_s = time.perf_counter() - start
        self._compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start - self.trace_s
        memory: Any = self._compiled.memory_analysis()
        self.memory_mib = {
            "arguments": memory.argument_size_in_bytes / 2**20,
            "temporary": memory.temp_size_in_bytes / 2**20,
        }
        self.metrics: dict[str, Any] = {}

    def __call__(self) -> None:
        self.state, self.metrics = self._compiled(
            self.state, self.batch, self.constants, self.schedule
        )
        jax.block_until_ready((self.state.parts, self.metrics))

    def text(self) -> str:
        """The compiled program."""
        return self._compiled.as_text() or ""


def parts(ours: Ours) -> dict[str, Part]:
    """Each part of the step alone, forward and backward."""
    options, images, params = ours.options, ours.images, ours.params
    size, billion = images.shape[1], len(images) / 1e9
    needed = operations.layers(options, size)
    result: dict[str, Part] = {}
    for name, net in model.build_networks(options).items():

        def gradient(p, x, net: nn.Module = net):
            return jax.grad(lambda p: _energy(net.apply({"params": p}, x)))(p)

        flop = sum(layer.training_flop for layer in needed if layer.network == name)
        result[f"network {name}"] = Part(
            gradient, params[name], 2 * images - 1, gflop=flop * billion
        )

    if ours.constants:

        def encode(vgg, image, shown):
            target = vgg16.features(vgg, image, layer="relu3_3")
            seen = vgg16.features(vgg, shown, layer="relu3_3")
            return _energy(
                seen[: len(image)] - jax.lax.stop_gradient(target)
            ) + _energy(seen[len(image) :] - jax.lax.stop_gradient(target))

        result["VGG16"] = Part(
            jax.grad(encode, argnums=2),
            ours.constants["vgg"],
            images,
            jnp.concatenate([images, 0.9 * images]),
            gflop=operations.vgg_flop(size) * billion,
        )

    factors = jax.jit(lambda p: model.decompose(p, images, options))(params)
    depth, albedo = (
        jnp.concatenate([x, jnp.flip(x, axis=2)])
        for x in (factors.canon_depth, factors.canon_albedo)
    )
    light, view = (jnp.concatenate([x, x]) for x in (factors.light, factors.view))
    scene = options.scene

    def warp(depth, view):
        return _energy(reprojection.warp_depth(depth, view, scene)[0])

    def colour(albedo, depth, light, view, warped):
        canonical = reprojection.shade_canonical(albedo, depth, light, scene)
        image = reprojection.sample_canonical(canonical.image, warped, view, scene)
        return _energy(image)

    result["rasterizer"] = Part(jax.grad(warp, (0, 1)), depth, view)
    result["shading, sampling"] = Part(
        jax.grad(colour, (0, 1, 2, 3, 4)), albedo, depth, light, view, depth
    )
    update = optimizer.make_optimizer(ours.config)
    result["optimizer"] = Part(update.update, params, update.init(params), params)
    return result


def layer_parts(ours: Ours) -> list[tuple[operations.Layer, Part]]:
    """Each convolution of the networks alone, forward and backward; equal ones once.

    The rest of a network is normalisation and activations.
    """
    options, count = ours.options, len(ours.images)
    made: dict[Any, Part] = {}
    result = []
    for layer in operations.layers(options, ours.images.shape[1]):
        known = (layer.module, layer.inputs, layer.first)
        if known not in made:
            x = jax.random.normal(jax.random.key(0), (count, *layer.inputs))
            params = layer.module.init(jax.random.key(1), x)

            def gradient(params, x, layer: operations.Layer = layer):
                x = x.astype(layer.module.dtype)
                return jax.grad(
                    lambda p, x: _energy(layer.module.apply(p, x).astype(jnp.float32)),
                    argnums=(0,) if layer.first else (0, 1),
                )(params, x)

            flop = layer.training_flop * count / 1e9
            made[known] = Part(gradient, params, x, gflop=flop)
        result.append((layer, made[known]))
    return result


# --- measurement ----------------------------------------------------------------


def matmul_rate(dtype: str, rounds: int) -> float:
    """GFLOP/s of a product of large square matrices: the peak that can be had."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), dtype)
    product = Part(lambda x: x @ x, x, gflop=2 * n**3 / 1e9)
    product()
    return product.gflop / min(_timed(product) for _ in range(rounds))


def dispatch_seconds(ours: Ours, calls: int = 20) -> float:
    """Seconds of the host to start a program that takes and gives the state."""
    start_one = jax.pmap(
        lambda state, batch, constants, schedule: state,
        axis_name=parallel.AXIS,
        in_axes=(None, 0, None, None),
        out_axes=None,
        donate_argnums=0,
        devices=ours.devices,
    )
    arguments = ours.batch, ours.constants, ours.schedule
    state = start_one(jax.tree.map(jnp.copy, ours.state), *arguments)
    start = time.perf_counter()
    for _ in range(calls):
        state = start_one(state, *arguments)
    seconds = time.perf_counter() - start
    jax.block_until_ready(state)
    return seconds / calls


def measure(
    config,
    *,
    rounds: int,
    clone: Path | None,
    authors_device: str = "cpu",
    authors_precisions: Sequence[str] = ("float32",),
    authors_keep_freed: bool = False,
    with_parts: bool,
) -> dict[str, Any]:
    """Runs the benchmark; seconds unless a name says otherwise.

    Args:
        authors_precisions: a process of theirs for each; the first is "authors" in the
            report, others have their precision in their names.
    """
    size, b = config.data.image_size, config.train.batch_size
    images = np.random.default_rng(0).uniform(size=(b, size, size, 3))
    images = images.astype(np.float32)
    ours = Ours(config, images)
    # At once: whoever ends the program before its time knows that much.
    print(f"compiled in {ours.compile_s:.1f} s", flush=True)
    with contextlib.ExitStack() as stack:
        calls: dict[str, Step] = {"ours": ours}
        theirs: dict[str, authors.Step] = {}
        for k, precision in enumerate(authors_precisions if clone else ()):
            assert clone is not None
            step = authors.step(
                clone,
                images,
                threads=machine.cpu_cores(),
                device=authors_device,
                precision=precision,
                keep_freed=authors_keep_freed,
            )
            name = f"authors, {precision}" if k else "authors"
            theirs[name] = stack.enter_context(step)
            print(f"{name} are there", flush=True)
            calls[name] = theirs[name].run
        times: dict[str, list[float]] = {name: [] for name in calls}
        for warm in (True, *[False] * rounds):
            for name, step in calls.items():
                time.sleep(PAUSE)
                seconds = _timed(step)
                if not warm:
                    times[name].append(seconds)
    if not np.isfinite(float(ours.metrics["total"])):
        sys.exit("the loss is not finite; the timing means nothing.")

    flop = operations.training_flop(ours.options, size, bool(ours.constants))
    gflop = {"ours": flop / 1e9, "authors": authors.GFLOP}
    dtype = config.model.compute_dtype
    peak = matmul_rate(dtype, rounds)
    statistics_of = ours.devices[0].memory_stats() or {}
    report: dict[str, Any] = {
        "batch_size": b,
        "image_size": size,
        "width": config.model.width,
        "compute_dtype": dtype,
        "rounds": rounds,
        "gflop_per_image": gflop["ours"],
        "trace_s": ours.trace_s,
        "compile_s": ours.compile_s,
        "memory_mib": ours.memory_mib,
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "device_peak_mib": statistics_of.get("peak_bytes_in_use", 0) // 2**20 or None,
        "matmul_gflop_per_s": peak,
        "dispatch_s": dispatch_seconds(ours),
        "input_s": _input_seconds(config, rounds),
    }
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rate = gflop[name.split(",")[0]] * b / median
        report[name] = {
            "step_s": median,
            "step_s_all": seconds,
            "images_per_s": b / median,
            "gflop_per_s": rate,
            "share_of_matmul": rate / peak,
        }
    for name, step in theirs.items():
        ratios = [a / o for o, a in zip(times["ours"], times[name], strict=True)]
        ratio = {
            "images_per_s_ratio": statistics.median(ratios),
            "images_per_s_ratio_all": ratios,
        }
        report[name] |= step.about | {"keep_freed": authors_keep_freed} | ratio
        if name == "authors":
            report |= ratio
    if with_parts:
        report |= _measure_parts(ours, rounds)
    report["machine"] = machine.describe("numba", "torch")
    return report


def _input_seconds(config, rounds: int) -> float:
    """Of a batch of images that lie in device memory, with nothing else to do."""
    data = input_pipeline.in_memory(config, max(1000, config.train.batch_size))
    source = input_pipeline.source_of(config, data)
    return input_pipeline.measure(source, 10, rounds)["seconds_per_batch"]


def _measure_parts(ours: Ours, rounds: int) -> dict[str, Any]:
    """Median seconds of each part, its share of the step beside it, its budget.

    Returns:
        `parts` of the step, which add up to `parts_step_s`, the step timed beside
        them; and `layers`, the convolutions of the networks by stage.
    """
    alone, single = parts(ours), layer_parts(ours)
    calls: dict[Any, Step] = {"step": ours, **alone}
    calls |= {id(part): part for _, part in single}
    for call in calls.values():
        call()
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_timed(call))
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    whole = median["step"]

    def row(seconds: float, gflop: float, megabytes: float) -> dict[str, float]:
        share = seconds / whole
        return dict(s=seconds, share=share, gflop=gflop, megabytes=megabytes)

    by_part = {
        name: row(median[name], part.gflop, part.megabytes)
        for name, part in alone.items()
    }
    by_stage = {}
    for stage in (operations.ENCODER, operations.DECODER, operations.FIVE):
        mine = [part for layer, part in single if layer.stage == stage]
        by_stage[stage] = row(
            sum(median[id(part)] for part in mine),
            sum(part.gflop for part in mine),
            sum(part.megabytes for part in mine),
        )
    rest = whole - sum(part["s"] for part in by_part.values())
    by_part["losses and the rest"] = {"s": rest, "share": rest / whole}
    return {"parts": by_part, "layers": by_stage, "parts_step_s": whole}


def _print(report: dict[str, Any]) -> None:
    print(
        f"batch {report['batch_size']}, {report['image_size']} px, width "
        f"{report['width']}, {report['compute_dtype']}, "
        f"{report['machine']['device']}, {report['machine']['cpu_cores']} CPU cores; "
        f"median of {report['rounds']} rounds"
    )
    memory = report["memory_mib"]
    print(
        f"compile {report['compile_s']:.1f} s, tracing {report['trace_s']:.1f} s; "
        f"memory {memory['arguments']:.0f} MiB of arguments, "
        f"{memory['temporary']:.0f} MiB beside them; "
        f"{report['gflop_per_image']:.2f} GFLOP an image; "
        f"matrix product {report['matmul_gflop_per_s']:.0f} GFLOP/s; "
        f"dispatch {1e3 * report['dispatch_s']:.2f} ms, "
        f"input {1e3 * report['input_s']:.2f} ms"
    )
    for name in report:
        if name.split(",")[0] in ("ours", "authors"):
            line = report[name]
            print(
                f"{name:18s} {line['step_s'] * 1e3:8.1f} ms/step "
                f"{line['images_per_s']:8.2f} images/s "
                f"{line['gflop_per_s']:8.0f} GFLOP/s "
                f"{line['share_of_matmul']:6.1%} of the matrix product's"
            )
            if name != "ours":
                print(
                    f"{'':18s} ours / theirs, images/s: "
                    f"{line['images_per_s_ratio']:.2f}; {line['precision']}, "
                    f"renderer: {line['renderer']}"
                )
    tables = {
        "part, alone": report.get("parts", {}),
        "the networks' convolutions, one by one": report.get("layers", {}),
    }
    for title, rows in tables.items():
        if rows:
            print(f"{title} (the step beside them: {report['parts_step_s']:.3f} s)")
        for name, part in rows.items():
            line = f"  {name:32s} {part['s'] * 1e3:8.1f} ms {part['share']:7.1%}"
            if "gflop" in part:
                line += f" {part['gflop']:8.2f} GFLOP {part['megabytes']:8.0f} MB"
                line += f" {part['gflop'] / part['s']:6.0f} GFLOP/s"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--compute_dtype", default="float32", help="or bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-perceptual", action="store_true")
    parser.add_argument("--no-parts", action="store_true", help="whole step only")
    parser.add_argument("--authors", type=Path, help="clone of their repository")
    parser.add_argument("--authors_device", default="cpu", help="or cuda")
    parser.add_argument(
        "--authors_precisions",
        default="float32",
        help=f"of {', '.join(authors.PRECISIONS)}; several by commas",
    )
    parser.add_argument(
        "--authors_keep_freed",
        action="store_true",
        help="give theirs the allocator's setting that our program makes",
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    flags = parser.parse_args()
    if flags.authors and (flags.size, flags.width, flags.no_perceptual) != (
        64,
        64,
        False,
    ):
        parser.error("--authors compares at 64 px, full width, perceptual loss on.")
    precisions = flags.authors_precisions.split(",")
    if not set(precisions) <= set(authors.PRECISIONS):
        parser.error(f"--authors_precisions takes {', '.join(authors.PRECISIONS)}.")
    host_memory.keep_freed()  # as every command does
    config = default.get_config()
    config.train.devices = 1
    config.train.batch_size = flags.batch
    config.data.image_size = flags.size
    config.model.width = flags.width
    config.model.compute_dtype = flags.compute_dtype
    if flags.no_perceptual:
        config.loss.perceptual = 0.0
    report = measure(
        config,
        rounds=flags.rounds,
        clone=flags.authors,
        authors_device=flags.authors_device,
        authors_precisions=precisions,
        authors_keep_freed=flags.authors_keep_freed,
        with_parts=not flags.no_parts,
    )
    _print(report)
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        flags.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
