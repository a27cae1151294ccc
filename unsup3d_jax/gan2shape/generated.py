"""The projection of a config, and what it knows of all images and of each."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.gan2shape import latents, losses
from unsup3d_jax.gan2shape.generator_projection import GeneratorProjection
from unsup3d_jax.gan2shape.projection import NoProjection, OracleProjection, Projection
from unsup3d_jax.gan2shape.subjects import Subjects


def make(config: ConfigDict) -> tuple[Projection, Any]:
    """The projection, and its arrays that all images share (() where they are scenes').

    Raises:
        UserError: if the generator cannot be read.
    """
    kind = config.projection.kind
    if kind == "oracle":
        return OracleProjection(config.data.image_size), ()
    if kind == "none":
        return NoProjection(), ()
    gan = latents.load_generator(config)
    projection = GeneratorProjection(
        size=config.data.image_size,
        crop=config.projection.crop,
        layers=config.projection.layers,
        regularised=config.projection.regularised,
        relative=config.projection.relative,
        style=gan.options.style,
        width=config.model.offset_width,
        features=config.loss.features,
        offset=config.loss.offset,
    )
    return projection, gan


def known(config: ConfigDict, found: Subjects, shared: Any, workdir: Path) -> Subjects:
    """The images with what a generator knows of each: its latent, read or searched.

    Args:
        shared: of `make`.
        workdir: where latents are kept.

    Raises:
        UserError: if latents cannot be read, or those that were found not written.
    """
    if config.projection.kind != "generator":
        return found
    if config.projection.latents:
        w = latents.read(Path(config.projection.latents), found.names, shared)
        own = latents.own_of(config, shared, w)
        return dataclasses.replace(found, shared=shared, own=own)
    weights = None
    if config.invert.kind != "discriminator":
        weights, _ = losses.load_perceptual(
            config.invert.kind, config.loss.perceptual_weights
        )
    own = latents.find(config, shared, weights, found.image, found.mask, workdir)
    return dataclasses.replace(found, shared=shared, own=own)
