"""The authors' PyTorch training step, from a local clone of their repository.

On CUDA it draws by their renderer, neural_renderer, where that is installed; elsewhere
by one that returns the vertices' own depth. Their VGG16 weights are replaced by random
ones. Neither changes the work done by the rest of the step. It has a process of its
own, as nobody trains both in one: in one process, ours took up to three times as long,
unevenly, after each of theirs.

Their code is of 2020. What has changed in PyTorch since: `grid_sample` takes corners
otherwise unless told (a warning; the same work), and convolutions on CUDA use TF32
unless told. `PRECISIONS` says what is asked for here.
"""

import contextlib
import importlib
import multiprocessing
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unsup3d_jax.engine import host_memory

# An image, forward and backward, at 64 px: VGG16 on four images, with a block
# behind relu3_3 that nothing uses.
GFLOP = 28.56

# What products are computed in. float32 is what their code asked for in 2020; tf32 lets
# convolutions and matrix products be; bfloat16 is autocast around the networks, with
# float32 everywhere else, as neural_renderer takes nothing else.
PRECISIONS = ("float32", "tf32", "bfloat16")


def _renderer_module(device: str) -> tuple[types.ModuleType, str]:
    """Their renderer, or what stands in for it, and which of them it is."""
    if device.startswith("cuda"):
        try:
            module = importlib.import_module("neural_renderer")
            return module, f"neural_renderer {getattr(module, '__version__', '')}"
        except Exception as error:  # not installed, or built for another PyTorch
            why = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        why = "neural_renderer needs CUDA"

    class Renderer:
        def __init__(self, **settings):
            self.size = settings["image_size"]

        def render_depth(self, vertices, faces):
            return vertices[..., 2].reshape(len(vertices), self.size, self.size)

    stub = types.ModuleType("neural_renderer")
    stub.Renderer = Renderer  # type: ignore[attr-defined]
    return stub, f"none, vertices' own depth ({why})"


def _stub_modules(torch: Any) -> dict[str, types.ModuleType]:
    """Stand-ins for what their code imports and the step does not need."""

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

    vision = types.ModuleType("torchvision")
    vision.models = types.SimpleNamespace(vgg16=vgg16)  # type: ignore[attr-defined]
    stubs = {"torchvision": vision}
    for name in ("cv2", "yaml"):
        stubs.setdefault(name, types.ModuleType(name))
    return stubs


def _set_precision(torch: Any, theirs: Any, precision: str, device: str) -> None:
    """See `PRECISIONS`; on a CPU, float32 and tf32 are the same."""
    tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if precision != "bfloat16":
        return

    def autocast(forward):
        def call(*args, **kwargs):
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                out = forward(*args, **kwargs)
            if isinstance(out, tuple):
                return tuple(x.float() for x in out)
            return out.float()

        return call

    for name in theirs.network_names:
        network = getattr(theirs, name)
        network.forward = autocast(network.forward)
    theirs.PerceptualLoss = autocast(theirs.PerceptualLoss)


def build(clone: Path, device: str, precision: str) -> tuple[Any, dict[str, Any]]:
    """Their model, five networks and optimizers, ready to train; what it runs on."""
    import torch

    renderer, name_of_renderer = _renderer_module(device)
    sys.modules["neural_renderer"] = renderer
    for name, stub in _stub_modules(torch).items():
        sys.modules[name] = stub
    # An empty package of that name: their __init__ imports loaders and loggers.
    package = types.ModuleType("unsup3d")
    package.__path__ = [str(clone / "unsup3d")]
    sys.modules["unsup3d"] = package
    theirs = importlib.import_module("unsup3d.model").Unsup3D(
        {"z_translation_range": 0, "device": device}
    )
    theirs.trainer = types.SimpleNamespace(current_epoch=0)
    theirs.to_device(device)
    theirs.init_optimizers()
    theirs.set_train()
    # As theirs sets it; their cudnn.deterministic only costs time, and is left out.
    torch.backends.cudnn.benchmark = True
    _set_precision(torch, theirs, precision, device)
    about = {
        "device": device,
        "precision": precision,
        "renderer": name_of_renderer,
        "torch": torch.__version__,
        "cudnn_benchmark": True,
    }
    if device.startswith("cuda"):
        about["device_name"] = torch.cuda.get_device_name()
    return theirs, about


def _serve(
    orders: Any,
    clone: Path,
    images: np.ndarray,
    threads: int,
    device: str,
    precision: str,
    keep_freed: bool,
) -> None:
    """Process of the step: tells what it is, then runs one whenever it is told to."""
    if keep_freed:
        host_memory.keep_freed()
    import torch

    torch.set_num_threads(threads)
    theirs, about = build(clone, device, precision)
    batch = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)
    orders.send(about)
    while orders.recv():
        theirs.forward(batch)
        theirs.backward()
        if device != "cpu":
            torch.cuda.synchronize()
        orders.send(float(theirs.loss_total.detach()))


class Step(NamedTuple):
    """Their training step.

    Attributes:
        run: does one, ends when their process has done it, and gives the loss.
        about: their device, precision, renderer and PyTorch, for the report.
    """

    run: Callable[[], float]
    about: dict[str, Any]


@contextlib.contextmanager
def step(
    clone: Path,
    images: np.ndarray,
    *,
    threads: int,
    device: str,
    precision: str = "float32",
    keep_freed: bool = False,
) -> Iterator[Step]:
    """Their training step, in a process that ends with the context.

    Args:
        images: (b, 64, 64, 3), float32 in [0, 1].
        device: PyTorch's name of it.
        precision: one of `PRECISIONS`.
        keep_freed: give their process the setting of the allocator that ours has;
            their own program does not.
    """
    if not (clone / "unsup3d" / "model.py").is_file():
        sys.exit(f"--authors={clone}: no unsup3d/model.py in there.")
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(
        target=_serve,
        args=(there, clone, images, threads, device, precision, keep_freed),
        daemon=True,
    )
    process.start()
    there.close()  # so that recv fails, not waits, if the process dies

    def run() -> float:
        here.send(True)
        return here.recv()

    try:
        yield Step(run, here.recv())
    finally:
        here.close()
        process.terminate()
        process.join()
