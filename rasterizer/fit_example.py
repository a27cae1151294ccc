"""Fits a mesh to an image: a square of unknown place, size and colour, on black.

Run: python -m rasterizer.fit_example, in a checkout; installed it is
python -m unsup3d_jax.rasterizer.fit_example.
"""

import jax
import jax.numpy as jnp

from . import antialias, grid_faces, rasterize

FACES = grid_faces(2, 2)


def draw(corners, colour):
    """Corners (4, 2) in pixels, colour (3,): a 32 px image (32, 32, 3)."""
    vertices = jnp.concatenate([corners, jnp.ones((4, 1))], axis=-1)
    fragments = rasterize(vertices, FACES, (32, 32))
    image = (fragments.face_index >= 0)[..., None] * colour
    return antialias(image, fragments, vertices, FACES)


def fit(target, corners, colour, steps=150):
    """Gradient descent on the squared error; the loss of every step, and the fit."""

    def loss(corners, colour):
        return jnp.sum((draw(corners, colour) - target) ** 2)

    def step(state, _):
        error, (down, tint) = jax.value_and_grad(loss, (0, 1))(*state)
        return (state[0] - 0.02 * down, state[1] - 0.0005 * tint), error

    return jax.jit(lambda s: jax.lax.scan(step, s, length=steps))((corners, colour))


def square(left, top, right, bottom):
    """Corners of a square, in the order of FACES."""
    return jnp.array([[left, top], [right, top], [left, bottom], [right, bottom]])


if __name__ == "__main__":
    target = draw(square(8.3, 6.1, 24.6, 20.7), jnp.array([0.9, 0.5, 0.2]))
    (corners, colour), losses = fit(
        target, square(5.0, 9.0, 20.0, 26.0), jnp.array([0.5, 0.5, 0.5])
    )
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.5f}", corners, colour, sep="\n")
