"""What `test_shard_map` runs in a process of its own, which has two CPU devices.

Run: python -m tests.rasterizer.two_devices BACKEND [CASE ...]
"""

import json
import sys
import traceback
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import rasterizer
from tests.rasterizer import scenes

SIZE = (6, 7)
FACES = rasterizer.grid_faces(3, 3)
TEXTURE = np.random.default_rng(0).random((3, 4, 2), np.float32)


def colour(vertices, texture, *, backend, faces=FACES):
    """All the primitives, one after the other."""
    fragments = rasterizer.rasterize(vertices, faces, SIZE, backend=backend)
    values = rasterizer.interpolate(vertices / 8, faces, fragments)
    image = rasterizer.sample_texture(texture, values[..., :2])
    normals = rasterizer.vertex_normals(vertices, faces)
    image += rasterizer.interpolate(normals, faces, fragments)[..., :2]
    image = rasterizer.antialias(image, fragments, vertices, FACES)
    found = fragments.face_index >= 0
    return image.sum(-1) + jnp.where(found, fragments.depth, 0.0)


def hard(vertices, background, *, backend):
    options = {"background": background, "cull": "back", "backend": backend}
    return rasterizer.render_depth(vertices, FACES, SIZE, **options).depth


def grid(vertices, background, *, backend):
    vertices = vertices.reshape(*vertices.shape[:-2], 3, 3, 3)
    options = {"background": background, "supersample": 2, "backend": backend}
    return rasterizer.render_grid_depth(vertices, SIZE, **options).depth


def soft(vertices, background, *, backend):
    options = {"sigma": 0.2, "backend": backend}
    depth = rasterizer.render_depth(
        vertices, FACES, SIZE, background=background, gamma=0.1, **options
    ).depth
    return depth + rasterizer.render_silhouette(vertices, FACES, SIZE, **options)


def one_by_one(vertices, background, *, backend):
    return jax.vmap(partial(hard, backend=backend), (0, None))(vertices, background)


CASES = {
    "colour": (colour, TEXTURE),
    "hard": (hard, np.float32(2.0)),
    "grid": (grid, np.float32(2.0)),
    "soft": (soft, np.float32(2.0)),
    "vmap": (one_by_one, np.float32(2.0)),
}


def check(draw, shared, backend, *, run: bool) -> None:
    """Value and gradient of a batch, split over two devices and not; or whether JAX's
    checks pass, which are done before anything is compiled."""
    vertices = np.stack([scenes.warped_grid(s, 3, 3) * [2, 2, 1] for s in range(2)])
    vertices = vertices.reshape(2, 9, 3).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(2, *SIZE)).astype(np.float32)

    def whole(vertices, shared, weight):
        def loss(vertices, shared):
            image = draw(vertices, shared, backend=backend)
            return jnp.sum(weight * image), image

        gradients, image = jax.grad(loss, (0, 1), has_aux=True)(vertices, shared)
        return image, *gradients

    devices = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    split, same = jax.P("b"), jax.P()
    parts = jax.shard_map(
        whole,
        mesh=devices,
        in_specs=(split, same, split),
        out_specs=(split, split, same),
    )
    parts = jax.jit(parts).trace(vertices, shared, weight)
    if not run:
        return
    expected = jax.jit(whole)(vertices, shared, weight)
    assert all(np.abs(v).max() > 0 for v in expected)
    found = parts.lower().compile()(vertices, shared, weight)
    for got, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)


def main(backend: str, to_run: list[str]) -> None:
    """Prints a JSON object: what went wrong in each case, "" if nothing."""
    report = {}
    for name, (draw, shared) in CASES.items():
        try:
            check(draw, shared, backend, run=name in to_run)
            report[name] = ""
        except Exception:
            report[name] = traceback.format_exc()
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
