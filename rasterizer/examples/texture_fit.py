"""Finds the texture of a square that is seen at a slant.

Run: python -m rasterizer.examples.texture_fit
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import (
    grid_faces,
    interpolate,
    look_at,
    perspective_camera,
    project,
    rasterize,
    sample_texture,
    slopes_at,
)

SIZE = (40, 40)
FACES = grid_faces(2, 2)
UV = jnp.array([[0, 0], [1, 0], [0, 1], [1, 1]], jnp.float32)
POINTS = np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]], np.float32)


def draw(texture):
    """Texture (h, w, 3) on the square, seen from below its right: (40, 40, 3)."""
    pose = look_at([0.8, 0.9, -2.5], [0.0, 0.0, 0.0])
    camera = perspective_camera(SIZE, fov_deg=50.0, pose=pose)
    vertices = project(POINTS, camera)
    found = rasterize(vertices, FACES, SIZE)
    uv = interpolate(UV, FACES, found)
    slopes = slopes_at(UV, vertices, FACES, found)
    colour = sample_texture(texture, uv, slopes=slopes)
    return jnp.where((found.face_index >= 0)[..., None], colour, 0.0)


def fit(target, texture, steps=200):
    """Gradient descent on the squared error; the texture, and the loss of each step."""

    def step(texture, _):
        error, slope = jax.value_and_grad(
            lambda t: 0.5 * jnp.sum((draw(t) - target) ** 2)
        )(texture)
        return texture - 0.05 * slope, error

    return jax.jit(lambda t: jax.lax.scan(step, t, length=steps))(texture)


if __name__ == "__main__":
    truth = jax.random.uniform(jax.random.key(0), (8, 8, 3))
    texture, losses = fit(draw(truth), jnp.full((8, 8, 3), 0.5))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.6f}", jnp.abs(texture - truth).max())
