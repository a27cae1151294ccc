"""How long is one training step, where does the time go, and what did the
authors' PyTorch step take on the same machine in the same minute?

    python -m benchmarks.train_step --output=step.json
    python -m benchmarks.train_step --authors=PATH_TO_A_CLONE_OF_THEIR_REPOSITORY

`--authors` needs `torch` (CPU). Their CUDA renderer is replaced by one that
returns the vertices' own depth, and their VGG16 weights by random ones; neither
changes the work done by the rest of their step. Ours includes the rasterizer.
Rounds alternate, so that other load on the machine falls on both alike. Their step
has a process of its own, as nobody trains both in one: in one process, ours took up
to three times as long, unevenly, after each of theirs.

FLOP are counted for convolutions alone, two per multiply-add: 20.97 GFLOP an
image is what the method needs at 64 px and full width (VGG16 once without
gradient, twice with); the authors' step spends 28.56. The parts' budget counts all
operations of the program as written, and the bytes that the compiled program reads
and writes, as XLA tells them: the body of a loop once, so weight gradients summed
image by image count for one image, and nothing of the rasterizer's compiled loops.
"""

import argparse
import contextlib
import functools
import importlib
import json
import multiprocessing
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from configs import default
from unsup3d_jax import model, networks, perceptual, train, train_state
from unsup3d_jax.types import Batch

NECESSARY_GFLOP = 20.97  # an image, forward and backward
AUTHORS_GFLOP = 28.56

Step = Callable[[], None]


class Part:
    """One jitted function and its arguments; calling it runs it to the end."""

    def __init__(self, function: Callable, *args: Any):
        lowered = jax.jit(function).lower(*args)
        # Operations as written: what XLA hands to a convolution library has none.
        self.gflop = (lowered.cost_analysis() or {}).get("flops", 0.0) / 1e9
        self._compiled, self._args = lowered.compile(), args
        cost = self._compiled.cost_analysis() or {}
        self.megabytes = cost.get("bytes accessed", 0.0) / 1e6

    def __call__(self) -> None:
        jax.block_until_ready(self._compiled(*self._args))


def _timed(call: Step) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _random_vgg() -> list[dict[str, np.ndarray]]:
    """He-initialised weights: the time of a step does not depend on them."""
    rng = np.random.default_rng(0)
    shapes = perceptual.kernel_shapes()
    return [
        {
            "kernel": rng.normal(0, (2 / (9 * s[2])) ** 0.5, s).astype(np.float32),
            "bias": np.zeros(s[-1], np.float32),
        }
        for s in shapes
    ]


class Ours:
    """The pmapped step of `train.parallel_step` on one device, state donated."""

    def __init__(self, config, images: np.ndarray):
        self.config = config
        self.options = model.options_from_config(config)
        self.constants: dict[str, Any] = {}
        if config.loss.perceptual > 0:
            self.constants = {"vgg": jax.tree.map(jnp.asarray, _random_vgg())}
        self.devices = train.local_devices(config)
        self.optimizer = train_state.make_optimizer(config)
        options = self.options

        self.task = train.Task(
            init=lambda key: model.init_params(key, options),
            objective=functools.partial(model.objective, options=options),
            weights_at=lambda step: model.loss_weights(config, step),
            constants=self.constants,
            make_source=lambda devices: None,
        )
        params = self.task.init(jax.random.key(0))
        key = jax.random.key(1)
        state = train_state.create(key, params, self.optimizer)
        n = len(self.devices)
        self.images = jnp.asarray(images)
        split = images.reshape(n, -1, *images.shape[1:])
        self.batch = Batch(image=jnp.asarray(split))
        self.schedule = train_state.schedule_from_config(config)
        # A copy: the step may donate the very buffers that it was given.
        self.params = jax.tree.map(jnp.copy, params)
        self.state = train.replicate(state, self.devices)
        self.step = train.parallel_step(self.task, self.optimizer, self.devices)
        self.metrics: dict[str, Any] = {}

    def __call__(self) -> None:
        self.state, self.metrics = self.step(
            self.state, self.batch, self.constants, self.schedule
        )
        jax.block_until_ready((self.state.params, self.metrics))


def parts(ours: Ours) -> dict[str, Part]:
    """Each part of the step alone, forward and backward."""
    options, images, params = ours.options, ours.images, ours.params

    def energy(tree: Any) -> Any:
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))

    result: dict[str, Part] = {}
    for name, net in model.build_networks(options).items():

        def gradient(p, x, net: networks.nn.Module = net):
            return jax.grad(lambda p: energy(net.apply({"params": p}, x)))(p)

        result[f"network {name}"] = Part(gradient, params[name], 2 * images - 1)

    if ours.constants:

        def encode(vgg, image, shown):
            target = perceptual.features(vgg, image)
            seen = perceptual.features(vgg, shown)
            return energy(seen[: len(image)] - jax.lax.stop_gradient(target)) + energy(
                seen[len(image) :] - jax.lax.stop_gradient(target)
            )

        shown = jnp.concatenate([images, 0.9 * images])
        result["VGG16"] = Part(
            jax.grad(encode, argnums=2), ours.constants["vgg"], images, shown
        )

    factors = jax.jit(lambda p: model.decompose(p, images, options))(params)

    def image_formation(factors):
        both = model.reconstruct(factors, options)
        return energy((both.plain.image, both.flip.image))

    result["shading, rasterizer, sampling"] = Part(jax.grad(image_formation), factors)

    state = ours.optimizer.init(params)
    result["optimizer"] = Part(ours.optimizer.update, params, state, params)
    return result


# --- the authors' step ----------------------------------------------------------


def _stub_modules(torch: Any) -> dict[str, types.ModuleType]:
    """Stand-ins for what their code imports and a CPU step does not need."""

    class Renderer:
        def __init__(self, **settings):
            self.size = settings["image_size"]

        def render_depth(self, vertices, faces):
            return vertices[..., 2].reshape(len(vertices), self.size, self.size)

    def vgg16(**_):
        nn = torch.nn
        layers: list[Any] = []
        channels = 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512):
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(True)]
            channels = width
        return types.SimpleNamespace(features=nn.Sequential(*layers))

    renderer = types.ModuleType("neural_renderer")
    renderer.Renderer = Renderer  # type: ignore[attr-defined]
    vision = types.ModuleType("torchvision")
    vision.models = types.SimpleNamespace(vgg16=vgg16)  # type: ignore[attr-defined]
    stubs = {"neural_renderer": renderer, "torchvision": vision}
    for name in ("cv2", "yaml"):
        stubs.setdefault(name, types.ModuleType(name))
    return stubs


def authors_model(clone: Path) -> Any:
    """Builds the authors' model out of a local clone, five networks on CPU."""
    import torch

    for name, stub in _stub_modules(torch).items():
        sys.modules[name] = stub
    # An empty package of that name: their __init__ imports loaders and loggers.
    package = types.ModuleType("unsup3d")
    package.__path__ = [str(clone / "unsup3d")]
    sys.modules["unsup3d"] = package
    theirs = importlib.import_module("unsup3d.model").Unsup3D(
        {"z_translation_range": 0}
    )
    theirs.trainer = types.SimpleNamespace(current_epoch=0)
    theirs.init_optimizers()
    theirs.set_train()
    return theirs


def _serve_authors(orders: Any, clone: Path, images: np.ndarray, threads: int) -> None:
    """Process of the authors' step: runs one whenever it is told to."""
    import torch

    torch.set_num_threads(threads)
    theirs = authors_model(clone)
    batch = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    while orders.recv():
        theirs.forward(batch)
        theirs.backward()
        orders.send(None)


@contextlib.contextmanager
def authors_step(clone: Path, images: np.ndarray, threads: int) -> Iterator[Step]:
    """The authors' step as a call that ends when their process has done it."""
    if not (clone / "unsup3d" / "model.py").is_file():
        sys.exit(f"--authors={clone}: no unsup3d/model.py in there.")
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(
        target=_serve_authors, args=(there, clone, images, threads), daemon=True
    )
    process.start()
    there.close()  # so that recv fails, not waits, if the process dies

    def step() -> None:
        here.send(True)
        here.recv()

    try:
        yield step
    finally:
        here.close()
        process.terminate()
        process.join()


# --- measurement ----------------------------------------------------------------


def measure(
    config, *, rounds: int, authors: Path | None, with_parts: bool
) -> dict[str, Any]:
    """Runs the benchmark; seconds unless a name says otherwise."""
    size, b = config.data.image_size, config.train.batch_size
    images = np.random.default_rng(0).uniform(size=(b, size, size, 3))
    images = images.astype(np.float32)
    ours = Ours(config, images)
    first = _timed(ours)
    with contextlib.ExitStack() as stack:
        calls: dict[str, Step] = {"ours": ours}
        if authors is not None:
            theirs = authors_step(authors, images, machine.cpu_cores())
            calls["authors"] = stack.enter_context(theirs)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for warm in (True, *[False] * rounds):
            for name, step in calls.items():
                seconds = _timed(step)
                if not warm:
                    times[name].append(seconds)
    if not np.isfinite(float(ours.metrics["total"])):
        sys.exit("the loss is not finite; the timing means nothing.")

    report: dict[str, Any] = {
        "batch_size": b,
        "image_size": size,
        "width": config.model.width,
        "rounds": rounds,
        "compile_s": first - statistics.median(times["ours"]),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    standard = size == 64 and config.model.width == 64 and config.loss.perceptual > 0
    for name, seconds in times.items():
        median = statistics.median(seconds)
        gflop = {"ours": NECESSARY_GFLOP, "authors": AUTHORS_GFLOP}[name]
        report[name] = {
            "step_s": median,
            "step_s_all": seconds,
            "images_per_s": b / median,
            "gflop_per_s": gflop * b / median if standard else None,
        }
    if authors is not None:
        ratios = [a / o for o, a in zip(times["ours"], times["authors"], strict=True)]
        report["images_per_s_ratio"] = statistics.median(ratios)
        report["images_per_s_ratio_all"] = ratios
    if with_parts:
        report["parts"] = _measure_parts(ours, rounds)
    report["machine"] = machine.describe("numba", "torch")
    return report


def _measure_parts(ours: Ours, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each part, its share of the step beside it, its budget."""
    alone = parts(ours)
    for call in alone.values():
        call()
    calls: dict[str, Step] = {"step": ours, **alone}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_timed(call))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    whole = medians.pop("step")
    result = {
        name: {
            "s": seconds,
            "share": seconds / whole,
            "gflop": alone[name].gflop,
            "megabytes": alone[name].megabytes,
        }
        for name, seconds in medians.items()
    }
    rest = whole - sum(medians.values())
    result["losses and the rest"] = {"s": rest, "share": rest / whole}
    return result


def _print(report: dict[str, Any]) -> None:
    print(
        f"batch {report['batch_size']}, {report['image_size']} px, width "
        f"{report['width']}, {report['machine']['platform']}, "
        f"{report['machine']['cpu_cores']} cores; median of {report['rounds']} rounds"
    )
    print(f"compile      {report['compile_s']:8.1f} s")
    for name in ("ours", "authors"):
        if name in report:
            line = report[name]
            rate = line["gflop_per_s"]
            print(
                f"{name:12s} {line['step_s'] * 1e3:8.0f} ms/step "
                f"{line['images_per_s']:8.2f} images/s"
                + (f" {rate:8.0f} GFLOP/s" if rate else "")
            )
    if "authors" in report:
        print(f"ours / authors, images/s: {report['images_per_s_ratio']:.2f}")
    for name, part in report.get("parts", {}).items():
        line = f"  {name:32s} {part['s'] * 1e3:8.1f} ms {part['share']:7.1%}"
        if "gflop" in part:
            line += f" {part['gflop']:8.2f} GFLOP {part['megabytes']:8.0f} MB"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-perceptual", action="store_true")
    parser.add_argument("--no-parts", action="store_true", help="whole step only")
    parser.add_argument("--authors", type=Path, help="clone of their repository")
    parser.add_argument("--output", type=Path, help="JSON file")
    flags = parser.parse_args()
    if flags.authors and (flags.size, flags.width, flags.no_perceptual) != (
        64,
        64,
        False,
    ):
        parser.error("--authors compares at 64 px, full width, perceptual loss on.")
    config = default.get_config()
    config.train.devices = 1
    config.train.batch_size = flags.batch
    config.data.image_size = flags.size
    config.model.width = flags.width
    if flags.no_perceptual:
        config.loss.perceptual = 0.0
    report = measure(
        config,
        rounds=flags.rounds,
        authors=flags.authors,
        with_parts=not flags.no_parts,
    )
    _print(report)
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        flags.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
