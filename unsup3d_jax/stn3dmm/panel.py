"""The panel of a training run: what is localised in a few photos, a row for each."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.stn3dmm import layers, localiser, pictures
from unsup3d_jax.stn3dmm.flattening import flatten
from unsup3d_jax.stn3dmm.localiser import LocaliserOptions
from unsup3d_jax.stn3dmm.morphable import GridModel


def panel(
    params: Any,
    images: UInt8[AnyArray, "b h w 3"],
    model: GridModel,
    camera: layers.Camera,
    options: LocaliserOptions,
    *,
    mode: str,
    truth: Float[AnyArray, "b l 2"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Photos with their landmarks and mesh, flattened faces and masks, as a picture.

    Args:
        params: of the localiser.
        images: of the size it takes.
        model, camera: of its theta.
        options: static.
        mode: of `visibility`; static.
        truth: known landmarks, (u, v), NaN where they are not.
    """
    floats = np.asarray(images, np.float32) / 255.0
    shown = jax.device_get(_maps(params, floats, model, camera, options, mode))
    return pictures.training_panel(floats, *shown, truth=truth)


@functools.partial(jax.jit, static_argnames=("camera", "options", "mode"))
def _maps(
    params: Any,
    images: Float[AnyArray, "b h w 3"],
    model: GridModel,
    camera: layers.Camera,
    options: LocaliserOptions,
    mode: str,
) -> tuple[Array, Array, Array, Array]:
    """Pixels of vertices and landmarks, flattened faces, visibility."""
    vectors = localiser.localise(params, jnp.asarray(images), options)
    found = flatten(model, vectors, images, camera, mode=mode)
    return found.posed.pixels, found.posed.landmarks, found.faces, found.mask
