"""Random turns, and their matrices and angles in numpy, for tests of viewpoints."""

import jax
import jax.numpy as jnp
import numpy as np

from unsup3d_jax.formation import geometry

# One small program: operation by operation it compiles for longer.
rotation_matrix = jax.jit(geometry.rotation_matrix)


def rotations(rng, n, spread):
    view = np.zeros((n, 6), np.float32)
    view[:, :3] = rng.normal(0, spread, (n, 3))
    return view


def matrix(view):
    return np.asarray(rotation_matrix(jnp.asarray(view[:3])), np.float64)


def angles(rotation):
    """Angles about x, y, z of Rz Ry Rx."""
    return np.array(
        [
            np.arctan2(rotation[2, 1], rotation[2, 2]),
            np.arcsin(-rotation[2, 0]),
            np.arctan2(rotation[1, 0], rotation[0, 0]),
        ]
    )


def angle_deg(a, b):
    cosine = (np.trace(a.T @ b) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
