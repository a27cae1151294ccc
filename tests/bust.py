"""A hand-made head with a known shape, for tests of pictures and exports.

An ellipsoid with a nose, a red patch on the image's left cheek, dark hair above
and a green chin, so that every axis has its mark.
"""

import jax.numpy as jnp
import numpy as np

from configs import default
from unsup3d_jax.engine.task import Task
from unsup3d_jax.formation.types import Factors
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config
from unsup3d_jax.unsup3d.task import model_task

NEAREST = 0.925  # depth of the tip of the nose, scene units


def config_of(size: int):
    """A tiny model: these tests look at factors, not at networks."""
    config = default.get_config()
    config.data.image_size = size
    config.model.width = config.model.encoder_width = 16
    config.model.bottleneck = config.model.confidence_bottleneck = 16
    config.loss.perceptual = 0.0
    config.raster.supersample = 1
    return config


def task_of(config) -> Task:
    """The model's own task, without images to learn from."""
    return model_task(config, lambda split: None)


def make(size: int = 32) -> tuple[Factors, ModelOptions]:
    """Factors of two images of the head: turned by +25 and by -15 degrees."""
    options = options_from_config(config_of(size))
    y, x = np.mgrid[:size, :size] / ((size - 1) / 2) - 1.0
    head = 1.0 - (x / 0.8) ** 2 - (y / 0.95) ** 2
    depth = np.where(head > 0, 1.04 - 0.075 * np.sqrt(np.maximum(head, 0)), 1.04)
    depth -= 0.04 * np.exp(-((x / 0.14) ** 2) - ((y - 0.1) / 0.2) ** 2)
    depth[:, :2] = depth[:, -2:] = 1.04
    albedo = np.full((size, size, 3), 0.35)
    albedo[head > 0] = (0.8, 0.62, 0.5)
    albedo[(head > 0) & (y < -0.45)] = (0.2, 0.15, 0.1)
    albedo[(head > 0) & (y > 0.6)] = (0.2, 0.7, 0.2)
    albedo[(x + 0.4) ** 2 + (y - 0.15) ** 2 < 0.04] = (0.9, 0.1, 0.1)
    for side in (-1, 1):
        eye = ((x - side * 0.3) / 0.14) ** 2 + ((y + 0.2) / 0.07) ** 2 < 1
        albedo[eye] = 0.95
    direction = np.array([0.4, 0.3, 1.0])
    light = np.concatenate([[0.5, 0.6], direction / np.linalg.norm(direction)])
    view = np.zeros((2, 6))
    view[:, 1] = np.radians([25.0, -15.0])
    view[:, 0] = np.radians([5.0, 0.0])
    sigma_flip = 0.15 + 1.0 * ((x + 0.5) ** 2 + (y - 0.15) ** 2 < 0.06)

    def twice(a):
        return jnp.asarray(np.stack([a, a]), jnp.float32)

    factors = Factors(
        raw_depth=twice(depth),
        canon_depth=twice(depth),
        canon_albedo=twice(albedo),
        light=twice(light),
        view=jnp.asarray(view, jnp.float32),
        conf_sigma=twice(np.full((size, size), 0.1)),
        conf_sigma_flip=twice(sigma_flip),
        conf_sigma_perceptual=twice(np.full((size // 4, size // 4), 0.3)),
        conf_sigma_perceptual_flip=twice(np.full((size // 4, size // 4), 0.4)),
    )
    return factors, options
