"""Fits an ellipse to a silhouette: place and radii, by soft coverage.

Run: python -m rasterizer.examples.silhouette_fit
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import render_silhouette

ANGLES = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
RIM = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1).astype(np.float32)
FACES = np.array([[24, k, (k + 1) % 24] for k in range(24)])  # round the middle


def draw(ellipse, sigma=0.5):
    """Ellipse (4,): x and y of its centre, both radii, pixels; to (32, 32)."""
    flat = jnp.concatenate([RIM * ellipse[2:], jnp.zeros((1, 2))]) + ellipse[:2]
    vertices = jnp.concatenate([flat, jnp.ones((25, 1))], axis=-1)
    return render_silhouette(vertices, FACES, (32, 32), sigma=sigma)


def fit(target, ellipse, steps=120):
    """Steps of known length down the squared error, from 1 px to 0.01 px."""

    def step(ellipse, length):
        slope = jax.grad(lambda e: jnp.sum((draw(e) - target) ** 2))(ellipse)
        return ellipse - length * slope / (jnp.linalg.norm(slope) + 1e-6), None

    lengths = jnp.geomspace(1.0, 0.01, steps)
    return jax.jit(lambda e: jax.lax.scan(step, e, lengths)[0])(ellipse)


if __name__ == "__main__":
    truth = jnp.array([18.3, 13.6, 9.2, 6.1])
    print(truth, fit(draw(truth), jnp.array([12.0, 18.0, 5.0, 5.0])), sep="\n")
