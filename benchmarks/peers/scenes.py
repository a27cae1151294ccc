"""Meshes to measure with: depth maps seen from everywhere, and a head."""

import math

import numpy as np

import rasterizer
from benchmarks.peers.types import Scene

BACKGROUND = 1.1


def _rotation(axis: int, angle: float) -> np.ndarray:
    matrix = np.eye(3)
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


def grid_scene(size: int, batch: int, seed: int = 0) -> Scene:
    """Depth maps of one vertex a pixel, seen from random views.

    A dome with bumps whose two outer columns are pulled back, as the training clamps
    them, about a distance of 1; field of view 10 degrees, angles uniform in +-60
    degrees, shifts in +-0.01 (4 px at 64 px).
    """
    rng = np.random.default_rng(seed)
    half = (size - 1) / 2
    focal = half / math.tan(math.radians(5.0))
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    x, y = (u - half) / half, (v - half) / half
    views = []
    for _ in range(batch):
        depth = 1.03 - 0.05 * np.sqrt(np.maximum(0.0, 1.2 - x**2 - y**2))
        depth += 0.006 * np.sin(5 * x + rng.uniform(0, 6)) * np.cos(6 * y)
        depth[:, :2] = depth[:, -2:] = 1.04
        points = np.stack(
            [(u - half) / focal * depth, (v - half) / focal * depth, depth - 1.0], -1
        )
        angles = np.radians(rng.uniform(-60, 60, 3))
        turn = _rotation(2, angles[2]) @ _rotation(1, angles[1])
        points = points @ (turn @ _rotation(0, angles[0])).T
        points += rng.uniform(-0.01, 0.01, 3) + [0.0, 0.0, 1.0]
        screen = focal * points[..., :2] / points[..., 2:] + half
        views.append(np.concatenate([screen, points[..., 2:]], axis=-1))
    return Scene(
        name="grid",
        vertices=np.stack(views).reshape(batch, -1, 3).astype(np.float32),
        faces=np.asarray(rasterizer.grid_faces(size, size)),
        grid=(size, size),
        size=(size, size),
        background=BACKGROUND,
        cotangent=rng.normal(size=(batch, size, size)).astype(np.float32),
    )


def head_scene(size: int, batch: int, seed: int = 0) -> Scene:
    """The open face model's head (3,410 vertices), turned by up to 57 degrees, 0.9 of
    the image tall."""
    from unsup3d_jax.data.open_face import model

    head = model.load_model()
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(batch):
        points = head.rest @ _rotation(1, rng.uniform(-1, 1)).T
        low, high = points.min(axis=0), points.max(axis=0)
        scale = 0.9 * size / (high - low)[:2].max()
        screen = (points[:, :2] - (low + high)[:2] / 2) * scale * [1, -1]
        depth = 3.0 + (high[2] - points[:, 2:]) / (high - low)[1]
        views.append(np.concatenate([screen + (size - 1) / 2, depth], axis=-1))
    return Scene(
        name="head",
        vertices=np.stack(views).astype(np.float32),
        faces=head.faces,
        grid=None,
        size=(size, size),
        background=5.0,
        cotangent=rng.normal(size=(batch, size, size)).astype(np.float32),
    )
