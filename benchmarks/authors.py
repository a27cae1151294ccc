"""The authors' PyTorch training step, from a local clone of their repository.

Their CUDA renderer is replaced by one that returns the vertices' own depth, and
their VGG16 weights by random ones; neither changes the work done by the rest of
the step. It has a process of its own, as nobody trains both in one: in one process,
ours took up to three times as long, unevenly, after each of theirs.
"""

import contextlib
import importlib
import multiprocessing
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.engine import host_memory

# An image, forward and backward, at 64 px: VGG16 on four images, with a block
# behind relu3_3 that nothing uses.
GFLOP = 28.56


def _stub_modules(torch: Any) -> dict[str, types.ModuleType]:
    """Stand-ins for what their code imports and the step does not need."""

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


def build(clone: Path, device: str) -> Any:
    """Their model, five networks and optimizers, ready to train."""
    import torch

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
    return theirs


def _serve(
    orders: Any,
    clone: Path,
    images: np.ndarray,
    threads: int,
    device: str,
    keep_freed: bool,
) -> None:
    """Process of the step: runs one whenever it is told to."""
    if keep_freed:
        host_memory.keep_freed()
    import torch

    torch.set_num_threads(threads)
    theirs = build(clone, device)
    batch = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)
    while orders.recv():
        theirs.forward(batch)
        theirs.backward()
        if device != "cpu":
            torch.cuda.synchronize()
        orders.send(None)


@contextlib.contextmanager
def step(
    clone: Path,
    images: np.ndarray,
    *,
    threads: int,
    device: str,
    keep_freed: bool = False,
) -> Iterator[Callable[[], None]]:
    """One training step as a call that ends when their process has done it.

    Args:
        images: (b, 64, 64, 3), float32 in [0, 1].
        device: PyTorch's name of it.
        keep_freed: give their process the setting of the allocator that ours has;
            their own program does not.
    """
    if not (clone / "unsup3d" / "model.py").is_file():
        sys.exit(f"--authors={clone}: no unsup3d/model.py in there.")
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(
        target=_serve,
        args=(there, clone, images, threads, device, keep_freed),
        daemon=True,
    )
    process.start()
    there.close()  # so that recv fails, not waits, if the process dies

    def call() -> None:
        here.send(True)
        here.recv()

    try:
        yield call
    finally:
        here.close()
        process.terminate()
        process.join()
