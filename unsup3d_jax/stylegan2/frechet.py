"""How far two sets of images are apart: a Frechet distance without a trained network.

Heusel et al., NeurIPS 2017, take the features of a classifier that nobody can rebuild
here. These are of a convolutional net with random weights, the same for ever: its
distances compare with one another, and with that of two sets of real images of the same
number (the floor), never with published ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unsup3d_jax.nets.convolution import plain_convolve

SEED = 20211  # of the weights; another one is another measure
_WIDTHS = (16, 32, 48)
_AT_ONCE = 250


def weights() -> tuple[Float[np.ndarray, "3 3 i o"], ...]:
    """Kernels of unit gain, (3, 3, in, out); the same under every version of JAX."""
    rng = np.random.Generator(np.random.Philox(SEED))
    kernels, inputs = [], 3
    for width in _WIDTHS:
        normal = rng.standard_normal((3, 3, inputs, width)) * np.sqrt(2 / (9 * inputs))
        kernels.append(normal.astype(np.float32))
        inputs = width
    return tuple(kernels)


def features(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n f"]:
    """Features of images: means of two layers, and of the quarters of a third one.

    Args:
        images: 8-bit, of at least 16 px; h = w.
    """
    kernels, parts = weights(), []
    for start in range(0, len(images), _AT_ONCE):
        part = images[start : start + _AT_ONCE]
        padded = np.pad(part, [(0, _AT_ONCE - len(part)), (0, 0), (0, 0), (0, 0)])
        parts.append(np.asarray(_features(padded, kernels))[: len(part)])
    return np.concatenate(parts)


@jax.jit
def _features(images: Array, kernels: tuple[Array, ...]) -> Array:
    x = images.astype(jnp.float32) / 127.5 - 1.0
    found = []
    for kernel in kernels:
        x = jax.nn.relu(plain_convolve(x, kernel, 2, 1))
        found.append(x.mean((1, 2)))
    b, h, w, c = x.shape
    quarters = x.reshape(b, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(b, -1)
    return jnp.concatenate([*found[:-1], quarters], axis=1)


def distance(
    first: Float[np.ndarray, "n f"],
    second: Float[np.ndarray, "m f"],
    scale: Float[np.ndarray, " f"],
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), means and covariances of features.

    Few images make it larger: compare distances of as many.

    Args:
        scale: what each feature is divided by, its spread over real images.
    """
    parts = [np.asarray(x, np.float64) / scale for x in (first, second)]
    means = [x.mean(0) for x in parts]
    covariances = [np.cov(x, rowvar=False) for x in parts]
    root = _root(covariances[0])
    middle = np.linalg.eigvalsh(root @ covariances[1] @ root)
    trace = 2.0 * np.sum(np.sqrt(np.maximum(middle, 0.0)))
    apart = np.sum(np.square(means[0] - means[1]))
    return float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - trace)


def spread(found: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " f"]:
    """Standard deviation of each feature, float64; 1 where there is none."""
    deviation = np.asarray(found, np.float64).std(0)
    return np.where(deviation > 1e-6, deviation, 1.0)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
