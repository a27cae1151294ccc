"""A tiny data set with known truth, for tests of evaluations: balls in a room."""

import numpy as np

from unsup3d_jax.data.dataset import Dataset, Report


def make(count: int, size: int) -> dict[str, np.ndarray]:
    """Balls of different place, size and depth on a background at 1.1."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:size, :size]
    depth, mask = [], []
    for _ in range(count):
        row, column, radius = (
            rng.uniform(13, 18),
            rng.uniform(13, 18),
            rng.uniform(9, 12),
        )
        height = 1 - ((v - row) ** 2 + (u - column) ** 2) / radius**2
        mask.append(height > 0)
        near = rng.uniform(0.02, 0.08)
        depth.append(
            np.where(mask[-1], 1.0 - near * np.sqrt(np.maximum(height, 0)), 1.1)
        )
    return {
        "image": rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8),
        "depth": np.stack(depth).astype(np.float32),
        "mask": np.stack(mask),
        "view": rng.uniform(-0.5, 0.5, (count, 6)).astype(np.float32),
        "light": np.tile(np.float32([0.5, 0.5, 0, 0, 1]), (count, 1)),
    }


def dataset_of(arrays, **changes):
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    return Dataset(arrays, Report("balls", "test", "", len(arrays["image"])), "digest")
