"""How many images a second do the layers of the 3DMM-STN pose, flatten and mask?

    python -m benchmarks.stn3dmm_layers
    python -m benchmarks.stn3dmm_layers --output=layers.json

From theta to flattened face and mask, without a localiser, at the paper's sizes (a grid
of 112, images of 224 px): forward; and forward and backward, the gradient of flattened
face and landmarks with respect to theta. Beside it a plain NumPy program, one image
after the other, forward only, with the mask of the paper (normals). Both must agree
before anything is timed. Rounds alternate; medians.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from rasterizer import grid_faces
from unsup3d_jax.stn3dmm import layers, morphable
from unsup3d_jax.stn3dmm.flattening import flatten

MODES = ("facing", "zbuffer", "none")
MOST_OFF = 1e-3  # colours in [0, 1], float32 against float64


def inputs(model: Any, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of smooth noise, and faces turned by up to about 60 degrees."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(batch, 6 + len(model.basis)))
    theta[:, :3] *= [0.1, 0.5, 0.1]
    theta[:, 3:6] *= 0.03
    coarse = rng.uniform(size=(batch, size // 8, size // 8, 3))
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return images.astype(np.float32), theta.astype(np.float32)


def programs(model: Any, camera: layers.Camera, mode: str):
    """(forward, forward and backward), compiled for (images, theta)."""

    def forward(images: jax.Array, vectors: jax.Array):
        found = flatten(model, vectors, images, camera, mode=mode)
        return (
            found.faces * found.seen[..., None],
            found.seen,
            found.posed.landmarks,
        )

    def loss(vectors: jax.Array, images: jax.Array):
        flat, _, landmarks = forward(images, vectors)
        return jnp.sum(flat**2) + jnp.sum(landmarks**2)

    def both(images: jax.Array, vectors: jax.Array):
        return jax.value_and_grad(loss)(vectors, images)

    return jax.jit(forward), jax.jit(both)


# --- plain NumPy ----------------------------------------------------------------------


def rotation(r: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(r)
    x, y, z = r / max(angle, 1e-12)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def bilinear(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    h, w, channels = image.shape
    padded = np.zeros((h + 2, w + 2, channels))
    padded[1:-1, 1:-1] = image
    u, v = np.clip(u, -1, w) + 1, np.clip(v, -1, h) + 1
    u0 = np.minimum(u.astype(int), w)
    v0 = np.minimum(v.astype(int), h)
    fu, fv = (u - u0)[:, None], (v - v0)[:, None]
    above = padded[v0, u0] * (1 - fu) + padded[v0, u0 + 1] * fu
    below = padded[v0 + 1, u0] * (1 - fu) + padded[v0 + 1, u0 + 1] * fu
    return above * (1 - fv) + below * fv


def facing(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Whether the sum of the angle-weighted normals around a vertex has z >= 0."""
    corners = points[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(points)
    for k in range(3):
        ahead = corners[:, (k + 1) % 3] - corners[:, k]
        back = corners[:, (k + 2) % 3] - corners[:, k]
        cosine = (ahead * back).sum(1)
        cosine /= np.linalg.norm(ahead, axis=1) * np.linalg.norm(back, axis=1)
        angle = np.arccos(np.clip(cosine, -1, 1))
        np.add.at(total, faces[:, k], angle[:, None] * normal)
    return total[:, 2] >= 0


class Naive:
    """The same for orthographic cameras, in float64, one image at a time."""

    def __init__(self, model: Any, camera: layers.Camera, size: int):
        self.mean = np.asarray(model.mean, np.float64)
        self.basis = np.asarray(model.basis, np.float64)
        self.camera, self.size, self.grid = camera, size, model.size
        self.faces = grid_faces(model.size, model.size)

    def __call__(self, images: np.ndarray, vectors: np.ndarray) -> list:
        return [self.one(*pair) for pair in zip(images, vectors, strict=True)]

    def one(self, image: np.ndarray, vector: np.ndarray):
        vector = vector.astype(np.float64)
        shape = self.mean + np.tensordot(vector[6:], self.basis, axes=1)
        turned = shape @ rotation(vector[:3]).T
        scale = self.camera.scale * np.exp(vector[5])
        plane = scale * turned[:, :2] + vector[3:5] + self.camera.offset
        half = (self.size - 1) / 2
        flat = bilinear(image, half * (1 + plane[:, 0]), half * (1 - plane[:, 1]))
        seen = facing(turned, self.faces)
        side = (self.grid, self.grid)
        return (flat * seen[:, None]).reshape(*side, -1), seen.reshape(side)


# --- measuring ------------------------------------------------------------------------


def check(ours: Any, naive: list) -> dict[str, float]:
    """How far the two are apart; on masks they may differ where a normal lies flat."""
    flat, mask, _ = jax.device_get(ours)
    expected, seen = (np.stack(parts) for parts in zip(*naive, strict=True))
    same = (mask > 0.5) == seen
    worst = float(np.abs(flat - expected)[same].max())
    # Steps of the image between pixels magnify the rounding of positions.
    typical = float(np.abs(flat - expected)[same].mean())
    if typical > MOST_OFF or same.mean() < 0.999:
        raise SystemExit(f"they disagree: {typical=:.2g}, masks {same.mean():.4f}")
    return {"mean": typical, "most": worst, "masks_equal": float(same.mean())}


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=int, default=112)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--coefficients", type=int, nargs=2, default=(70, 24))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    identity, expression = args.coefficients
    model = jax.tree.map(
        jnp.asarray,
        morphable.grid_model(
            morphable.load_model("open"),
            args.grid,
            identity=identity,
            expression=expression,
        ),
    )
    camera = morphable.default_camera(model)
    images, theta = inputs(model, args.batch, args.image_size)
    naive = Naive(model, camera, args.image_size)
    on_device = (jnp.asarray(images), jnp.asarray(theta))
    calls: dict[str, Callable[[], Any]] = {
        "numpy facing forward": functools.partial(naive, images, theta)
    }
    agreement = {}
    for mode in MODES:
        forward, both = programs(model, camera, mode)
        calls[f"{mode} forward"] = functools.partial(forward, *on_device)
        calls[f"{mode} forward + backward"] = functools.partial(both, *on_device)
        found = jax.block_until_ready(forward(*on_device))
        jax.block_until_ready(both(*on_device))
        if mode == "facing":
            agreement = check(found, naive(images, theta))
    rows = {}
    for name, seconds in medians(calls, args.rounds).items():
        middle = statistics.median(seconds)
        rows[name] = {
            "seconds": middle,
            "spread": [min(seconds), max(seconds)],
            "images_per_second": args.batch / middle,
        }
        print(f"{name:28} {args.batch / middle:10.1f} images/s")
    if args.output:
        content = {
            "question": "how many images a second do the layers of the 3DMM-STN do",
            "machine": machine.describe("numba"),
            "settings": {k: v for k, v in vars(args).items() if k != "output"},
            "agreement": agreement,
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
