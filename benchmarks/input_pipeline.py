"""How fast do training batches come, and would the device have to wait for them?

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --images=20000 --output=input.json

Three ways to the device, same examples in the same order: `resident`, the set as
uint8 in device memory and one gather a batch; `host`, decoded arrays sent ahead;
`files`, JPEG files of `--file_size` (CelebA's) read, decoded and scaled by one
thread a core. Nothing else runs: this is an upper limit, and the CPU seconds say
what a training step on the same cores would lose. Every figure is the median of
`--rounds`; the first batches are not counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import machine
from configs import default
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.load import load_split
from unsup3d_jax.data.source import TrainSource, train_source
from unsup3d_jax.engine import host_memory, parallel


def photo_folder(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Writes JPEG photos: smooth colours with some noise, as files compress."""
    rng = np.random.default_rng(0)
    w, h = size
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 5, 3), np.uint8)
        image = Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 6, (h, w, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.jpg", quality=90)


def in_memory(config: Any, count: int) -> ds.Dataset:
    """Noise as a decoded set."""
    size = config.data.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return ds.Dataset({"image": images}, ds.Report("noise", "train", "", count), "")


def source_of(config: Any, data: ds.Dataset) -> TrainSource:
    """The source that a run would have."""
    devices = parallel.local_devices(config)
    return train_source(data, config, fields=("image",), devices=devices, seed=0)


def measure(source: TrainSource, batches: int, rounds: int) -> dict:
    """Seconds a batch, with nothing else to do, and the host's part of them."""
    for _ in range(3):
        jax.block_until_ready(next(source))
    each, host = [], []
    for _ in range(rounds):
        busy, start = time.process_time(), time.perf_counter()
        for _ in range(batches):
            batch = next(source)
        jax.block_until_ready(batch)
        each.append((time.perf_counter() - start) / batches)
        host.append((time.process_time() - busy) / batches)
    return {
        "seconds_per_batch": statistics.median(each),
        "spread": [min(each), max(each)],
        "host_cpu_seconds_per_batch": statistics.median(host),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000, help="resident and host")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--file_size", type=int, nargs=2, default=(178, 218))
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    host_memory.keep_freed()  # as every command does
    config = default.get_config()
    config.data.image_size, config.train.batch_size = args.image_size, args.batch
    config.data.workers = machine.cpu_cores()
    rows = {}
    decoded = in_memory(config, args.images)
    rows["resident"] = measure(source_of(config, decoded), args.batches, args.rounds)
    config.data.device_memory_mib = 0
    rows["host"] = measure(source_of(config, decoded), args.batches, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        photo_folder(Path(folder), args.files, tuple(args.file_size))
        config.data.path, config.data.cache_dir = folder, f"{folder}/.cache"
        config.data.split, config.data.hash_split_percent = "hash", (100, 0, 0)
        files = source_of(config, load_split(config, "train"))
        rows["files"] = measure(files, args.batches, args.rounds)
    for name, row in rows.items():
        row["images_per_second"] = args.batch / row["seconds_per_batch"]
        print(
            f"{name:9} {row['images_per_second']:10.0f} images/s"
            f"  {1e3 * row['seconds_per_batch']:8.2f} ms a batch"
            f"  {1e3 * row['host_cpu_seconds_per_batch']:8.2f} ms of CPU"
        )
    if args.output:
        content = {
            "question": "how fast do training batches come",
            "machine": machine.describe("grain"),
            "settings": vars(args) | {"output": str(args.output)},
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
