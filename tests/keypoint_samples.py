"""Photos of noise and keypoints on them, as files."""

import numpy as np
from PIL import Image

COUNT, K = 4, 5  # images, and keypoints of each


def points():
    rng = np.random.default_rng(0)
    uv = rng.uniform(10, 50, (COUNT, K, 2))
    return np.concatenate([uv, rng.uniform(0, 9, (COUNT, K, 1))], axis=-1)


def write_photo(path, seed=0, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (*size[::-1], 3)).astype(np.uint8)).save(path)


def write_csv(path, points, header=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(map(repr, map(float, row))) for row in points]
    path.write_text(header + "\n".join(lines) + "\n")
