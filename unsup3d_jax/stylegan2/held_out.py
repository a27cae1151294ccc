"""How well a generator finds people again that it has not seen."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from unsup3d_jax.nets import stylegan2_inversion as inversion
from unsup3d_jax.nets.stylegan2 import StyleGan

OPTIONS = inversion.InversionOptions(steps=400)
_SEED = 5


def found_again(
    gan: StyleGan,
    images: UInt8[np.ndarray, "n h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    training: UInt8[np.ndarray, "m h w 3"],
) -> dict[str, Any]:
    """Mean errors over people of what stands for them; signed units, on the face.

    Args:
        gan: generator, and the discriminator whose features are compared.
        images, masks: of held-out people.
        training: images of others.

    Returns:
        Root mean squares: "inverted" of the latent that is found, "nearest_sample" and
        "nearest_training" of the nearest of each, "mean_face" of the mean sample.
    """
    found = jax.device_get(
        inversion.invert(
            jax.random.key(_SEED),
            inversion.Weights(gan),
            signed(images),
            inversion.DISCRIMINATOR,
            OPTIONS,
            mask=masks.astype(np.float32),
        )
    )
    return {
        "inverted": float(np.mean(found.error)),
        "nearest_sample": float(np.mean(found.nearest_error)),
        "nearest_training": float(np.mean(nearest_on_face(images, masks, training))),
        "mean_face": float(np.mean(found.mean_error)),
        "people": len(images),
    }


def nearest_on_face(
    images: UInt8[np.ndarray, "n h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    training: UInt8[np.ndarray, "m h w 3"],
) -> Float[np.ndarray, " n"]:
    """Root mean squared difference of the nearest training image, over each mask."""
    others = signed(training).reshape(len(training), -1)
    weight = np.repeat(masks[..., None], 3, -1).reshape(len(images), -1)
    weight = weight.astype(np.float32)
    own = signed(images).reshape(len(images), -1) * weight
    squared = weight @ np.square(others).T - 2.0 * own @ others.T
    squared += np.square(own).sum(1, keepdims=True)
    return np.sqrt(np.maximum(squared.min(1), 0.0) / np.maximum(weight.sum(1), 1.0))


def signed(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
    """In [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def table(found: Mapping[str, Any]) -> str:
    """One line for a terminal."""
    names = {
        "inverted": "inverted",
        "nearest_sample": "nearest sample",
        "nearest_training": "nearest training image",
        "mean_face": "mean face",
    }
    errors = ", ".join(f"{text} {found[name]:.3f}" for name, text in names.items())
    return f"{found['people']} held-out people, error on the face: {errors}"
