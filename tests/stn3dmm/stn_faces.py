"""Small analytic models for tests: a face-like bump, with random columns."""

import jax.numpy as jnp
import numpy as np

from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.types import GridModel

# Where landmarks lie on the grid, in [0, 1] from the left and from the top: five pairs
# and three on the line of symmetry.
_PAIRS = ((0.1, 0.3), (0.25, 0.3), (0.4, 0.32), (0.3, 0.75), (0.42, 0.55))
_MIDDLE = (0.3, 0.55, 0.8)


def face(grid=9, columns=4, *, seed=0, dtype=np.float32, amplitude=0.01):
    """A GridModel of a symmetric bump 0.16 wide and 0.2 high, in metres.

    The first half of the columns is symmetric, the second antisymmetric, so that a
    mirrored face has coefficients of the other sign there.
    """
    x, y = np.meshgrid(np.linspace(-1, 1, grid), np.linspace(1, -1, grid))
    spots = np.array(
        [p for a, b in _PAIRS for p in ((a, b), (1 - a, b))]
        + [(0.5, b) for b in _MIDDLE]
    )
    flip = np.array([k ^ 1 for k in range(2 * len(_PAIRS))] + [10, 11, 12])
    x = np.concatenate([x.ravel(), 2 * spots[:, 0] - 1])
    y = np.concatenate([y.ravel(), 1 - 2 * spots[:, 1]])
    nose = 0.03 * np.exp(-((x / 0.15) ** 2) - ((y + 0.1) / 0.3) ** 2)
    z = 0.06 * np.sqrt(np.maximum(2.2 - x**2 - y**2, 0.0)) + nose
    mean = np.stack([0.08 * x, 0.1 * y, z - 0.03], axis=-1)
    rng = np.random.default_rng(seed)
    basis = np.zeros((columns, len(x), 3))
    for k in range(columns):
        even = k < (columns + 1) // 2
        a, b, c = rng.uniform(0.5, 2.5, (3, 2))
        phase = rng.uniform(0, 6, 3)
        # An even and an odd function of x; x itself is odd under the mirror.
        of_x = [np.cos(a[0] * x), np.cos(b[0] * x), np.cos(c[0] * x)]
        odd_x = [np.sin(a[0] * x), np.sin(b[0] * x), np.sin(c[0] * x)]
        u = (odd_x[0] if even else of_x[0]) * np.cos(a[1] * y + phase[0])
        v = (of_x[1] if even else odd_x[1]) * np.cos(b[1] * y + phase[1])
        w = (of_x[2] if even else odd_x[2]) * np.cos(c[1] * y + phase[2])
        basis[k] = amplitude * np.stack([u, v, w], axis=-1)
    n = grid * grid
    signs = [1.0 if k < (columns + 1) // 2 else -1.0 for k in range(columns)]
    return GridModel(
        mean=jnp.asarray(mean[:n], dtype),
        basis=jnp.asarray(basis[:, :n], dtype),
        landmark_mean=jnp.asarray(mean[n:], dtype),
        landmark_basis=jnp.asarray(basis[:, n:], dtype),
        coefficient_mirror=jnp.asarray(np.diag(signs), dtype),
        landmark_flip=jnp.asarray(flip, jnp.int32),
        size=grid,
        num_identity=columns,
        unit=1.0,
    )


def camera(perspective=0.0, offset=(0.0, 0.0)):
    """The bump fills 75 % of the image's height."""
    return Camera(scale=7.5, offset=offset, perspective=perspective)


def thetas(count, columns=4, *, seed=0, turn=0.6, spread=0.2):
    """(count, 6 + columns) float64 random theta vectors, within sight."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            turn * rng.normal(size=(count, 3)),
            spread * rng.normal(size=(count, 3)),
            rng.normal(size=(count, columns)),
        ],
        axis=1,
    )
