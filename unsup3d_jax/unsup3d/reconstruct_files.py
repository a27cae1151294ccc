"""Mode `reconstruct`: photos in, one folder of shapes, pictures, videos each out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.engine import photo_folders
from unsup3d_jax.engine.photo_job import Picture, Result, Work, photos_to_folders
from unsup3d_jax.formation.types import AnyArray, Factors, Reconstruction
from unsup3d_jax.unsup3d import export, model
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config


def reconstruct_folder(
    config: ConfigDict,
    params: dict,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = 8,
    view_range: Float[Array, ""] | None = None,
) -> Result:
    """Decomposes a photo, or all photos of a folder, and exports each.

    Args:
        config: of the run that made the parameters.
        params: of `model.init_params`.
        source, output, batch_size: see `photos_to_folders`.
        view_range: see `model.decompose`.

    Raises:
        UserError: see `photos_to_folders`.
    """
    options = options_from_config(config)
    whole = config.export.whole_surface
    without = unlearnt(config)
    share = None if view_range is None else float(view_range)

    def find(images: Float[np.ndarray, "b h w 3"]) -> Callable[[int], Any]:
        found = decompose(params, images, options, view_range)
        return lambda index: _photo(found, index)

    def write(
        folder: Path, images: list[Picture], found: tuple[Factors, Reconstruction]
    ) -> Mapping[str, Any]:
        factors, reconstruction = found
        return export.export(
            folder,
            images[0],
            dataclasses.replace(factors, **dict.fromkeys(without)),
            reconstruction,
            options,
            whole_surface=whole,
        )

    work = Work(
        made=photo_folders.made_from(params, options, share, whole, without),
        sizes=(options.networks.image_size,),
        find=find,
        write=write,
    )
    # How CelebA is cut depends on the layout it lies in: its files are as any others.
    own = config.data.name == "celeba"
    return photos_to_folders(
        source,
        output,
        work,
        crop=(0,) if own else config.data.crop,
        data_path="" if own else config.data.path,
        batch_size=batch_size,
    )


def unlearnt(config: ConfigDict) -> list[str]:
    """The confidence maps of losses that were off: they still are as initialised."""
    loss, names = config.loss, []
    no_flip = loss.flip == 0 and loss.flip_start == 0
    if no_flip:
        names += ["conf_sigma_flip", "conf_sigma_perceptual_flip"]
    if loss.perceptual == 0:
        names += ["conf_sigma_perceptual", "conf_sigma_perceptual_flip"]
    return sorted(set(names))


@functools.partial(jax.jit, static_argnames="options")
def decompose(
    params: dict,
    images: Float[AnyArray, "b h w 3"],
    options: ModelOptions,
    view_range: Float[Array, ""] | None,
) -> tuple[Factors, Reconstruction]:
    """Everything about images in [0, 1]; view_range: see `model.decompose`."""
    images = jnp.asarray(images)
    factors = model.decompose(params, images, options, view_range=view_range)
    return factors, model.reconstruct(factors, options)


@jax.jit
def _photo(
    found: tuple[Factors, Reconstruction], index: Array | int
) -> tuple[Factors, Reconstruction]:
    """What was found of one photo of a batch."""
    return jax.tree.map(lambda a: a[index], found)
