"""Small sets for the tests of data."""

import numpy as np
from PIL import Image

from configs import default

COUNT, SIZE, BATCH = 11, 8, 4  # the batch does not divide the set


def write_photos(folder):
    """Image i is red = i on its left half, green = i on its right half."""
    root = folder / "train"
    root.mkdir()
    for i in range(COUNT):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[:, : SIZE // 2, 0] = pixels[:, SIZE // 2 :, 1] = i + 1
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    (root / "05_broken.png").write_bytes(b"")
    return folder


def make_config(photos, tmp_path):
    config = default.get_config()
    config.data.path, config.data.split = str(photos), "folder"
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size, config.data.min_images = SIZE, 1
    config.train.batch_size = BATCH
    return config


def unit(pixels):
    return pixels.astype(np.float32) * np.float32(1 / 255)


def faces(count, *, size=SIZE, **_):
    """Arrays as a rendered set gives them."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        "depth": rng.uniform(0.9, 1.1, (count, size, size)).astype(np.float32),
        "mask": rng.random((count, size, size)) < 0.5,
        "view": rng.uniform(-0.5, 0.5, (count, 6)).astype(np.float32),
        "light": rng.uniform(-0.5, 0.5, (count, 5)).astype(np.float32),
        "normal": rng.random((count, size, size, 3)).astype(np.float32),
    }


def truth_config(tmp_path):
    config = default.get_config()
    config.data.name, config.data.image_size = "open_faces", SIZE
    config.data.cache_dir = str(tmp_path)
    config.train.batch_size = BATCH
    return config
