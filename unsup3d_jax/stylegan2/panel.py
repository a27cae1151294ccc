"""Grids of samples: of a training run, and of mode sample."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.nets import stylegan2 as nets
from unsup3d_jax.nets.stylegan2 import GanOptions

_AT_ONCE = 64


def panel(
    generator: Any, options: GanOptions, *, count: int, seed: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Samples of fixed latents as one picture, as square as their number allows.

    Args:
        generator: {"mapping", "synthesis"}.
        seed: of the latents and the noise; the same ones whatever the parameters.
    """
    z = fixed_latents(options, count, seed)
    return grid(samples(generator, map_all(generator, z, options), options, seed=seed))


def fixed_latents(
    options: GanOptions, count: int, seed: int
) -> Float[np.ndarray, "n s"]:
    """Unit normals, the same on every device and under every version of JAX."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, count])))
    return rng.standard_normal((count, options.style)).astype(np.float32)


def map_all(
    generator: Any, z: Float[AnyArray, "n s"], options: GanOptions
) -> Float[np.ndarray, "n s"]:
    """w of each z."""
    return np.asarray(_mapped(generator["mapping"], jnp.asarray(z), options))


def samples(
    generator: Any,
    w: Float[AnyArray, "n s"],
    options: GanOptions,
    *,
    seed: int,
) -> Float[np.ndarray, "n h w 3"]:
    """Images in [0, 1] of latents, with noise maps that all of them share."""
    noise = _noise(options, seed)
    parts = []
    for start in range(0, len(w), _AT_ONCE):
        part = np.asarray(w[start : start + _AT_ONCE], np.float32)
        lacking = _AT_ONCE - len(part)  # one shape, one program
        padded = np.pad(part, [(0, lacking), (0, 0)])
        images = np.asarray(_images(generator["synthesis"], padded, noise, options))
        parts.append(images[: len(part)])
    return np.concatenate(parts)


def grid(
    images: Float[np.ndarray, "n h w 3"], columns: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Images side by side, row after row; what lacks in the last row is black."""
    n, h, w, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, h, w, 3), np.float32)
    cells[:n] = images
    cells = cells.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4)
    return np.floor(
        255.0 * np.clip(cells, 0.0, 1.0).reshape(rows * h, columns * w, 3) + 0.5
    ).astype(np.uint8)


def _noise(options: GanOptions, seed: int) -> tuple[Array, ...] | None:
    if not options.noise:
        return None
    return nets.fixed_noise(jax.random.key(seed), options)


@functools.partial(jax.jit, static_argnames="options")
def _mapped(mapping: Any, z: Array, options: GanOptions) -> Array:
    return nets.map_latent(mapping, z, options)


@functools.partial(jax.jit, static_argnames="options")
def _images(synthesis: Any, w: Array, noise: Any, options: GanOptions) -> Array:
    signed = nets.synthesise(synthesis, w, noise, options)
    return jnp.clip(0.5 * signed + 0.5, 0.0, 1.0)
