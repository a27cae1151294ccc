"""Small meshes for the tests of the rasterizer."""

import numpy as np

import rasterizer


def grid(height: int, width: int, depth: float = 1.0) -> np.ndarray:
    """The depth-map mesh at the identity view, (h, w, 3) float32."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.full(x.shape, depth)], -1).astype(np.float32)


def warped_grid(seed: int, height: int, width: int) -> np.ndarray:
    """A grid that was turned, jittered and folded, with a few long cells."""
    rng = np.random.default_rng(seed)
    vertices = grid(height, width)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    angle = rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = (vertices[..., :2] - centre) @ turn.T * rng.uniform(0.5, 1.1, 2) + centre
    xy += rng.normal(0, 0.3, xy.shape)
    xy[:, -1] += [4.0, 1.0]
    vertices[..., :2] = xy
    vertices[..., 2] = 1.0 + 0.5 * rng.random((height, width))
    return vertices


def soup(seed: int, *, count: int, size: tuple[int, int]):
    """`count` triangles of all sizes, some off screen: vertices and faces."""
    rng = np.random.default_rng(seed)
    height, width = size
    middle = rng.uniform([-2, -2], [width + 2, height + 2], (count, 1, 2))
    spread = np.exp(rng.uniform(-1.5, 2.5, (count, 1, 1)))
    xy = middle + spread * rng.normal(size=(count, 3, 2))
    z = rng.uniform(0.5, 3.0, (count, 3, 1))
    vertices = np.concatenate([xy, z], -1).astype(np.float32).reshape(-1, 3)
    return vertices, np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def flatten(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid vertices (h, w, 3) as a general mesh."""
    return vertices.reshape(-1, 3), rasterizer.grid_faces(*vertices.shape[:2])
