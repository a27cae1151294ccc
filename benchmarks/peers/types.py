"""What a benchmark hands to a renderer, and what it gets back."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Unavailable(Exception):
    """The peer cannot run here; the message says why, in a line."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A batch of meshes to draw, and the cotangent of its depth images.

    Attributes:
        name: what the mesh is.
        vertices: (B, V, 3) float32: x, y in pixels, centres on integers; z depth > 0.
        faces: (F, 3) int32.
        grid: (rows, columns) of the vertices when the faces are those of
            `rasterizer.grid_faces`, else None.
        size: (height, width), pixels.
        background: depth of uncovered pixels.
        cotangent: (B, height, width) float32, d loss / d depth.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    grid: tuple[int, int] | None
    size: tuple[int, int]
    background: float
    cotangent: np.ndarray

    @property
    def batch(self) -> int:
        return len(self.vertices)

    def only(self, count: int) -> "Scene":
        """The first `count` members of the batch; slow peers need no more."""
        return dataclasses.replace(
            self, vertices=self.vertices[:count], cotangent=self.cotangent[:count]
        )


class Queue(NamedTuple):
    """Calls that start work on a device and return before it is done.

    Nothing is copied to or from the host, and the work of several calls is done in
    order.

    Attributes:
        forward, gradient: start what those of `Calls` do, and return something to wait
            for. A peer that takes other coordinates than ours has them ready, and
            leaves its gradient in them.
        wait: returns when what it is given is there.
    """

    forward: Callable[[], Any]
    gradient: Callable[[], Any]
    wait: Callable[[Any], object]


@dataclasses.dataclass(frozen=True)
class Calls:
    """A scene made ready: calls that return when the results are there.

    Attributes:
        forward: () -> (B, H, W) depth, `background` where uncovered.
        gradient: () -> (depth, (B, V, 3) d loss / d vertices); forward and backward.
            None where the peer has no backward pass.
        queue: the same without waiting, where that can be; else None.
        costs: what making it ready took, for the report: seconds, MiB.
    """

    forward: Callable[[], np.ndarray]
    gradient: Callable[[], tuple[np.ndarray, np.ndarray]] | None
    queue: Queue | None = None
    costs: dict[str, float] = dataclasses.field(default_factory=dict)


class Peer(NamedTuple):
    """A renderer that can run here.

    Attributes:
        name, version: as published.
        device: where it runs.
        prepare: makes a scene ready, outside of what is timed.
        differs: what it computes otherwise than we do, in a few words; "" if nothing.
        comparable: whether its depth images should equal ours, but for a few pixels.
    """

    name: str
    version: str
    device: str
    prepare: Callable[[Scene], Calls]
    differs: str = ""
    comparable: bool = True
