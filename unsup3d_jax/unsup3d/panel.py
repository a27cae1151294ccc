"""The panel of a training run: every factor of a few images, a row for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unsup3d_jax.formation.types import AnyArray, Factors, Reconstruction
from unsup3d_jax.show import pictures
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions

TURNS_DEG = (-40, -20, 20, 40)  # with the unturned image in the middle
# Images (t, b, h, w, 3), and where the object covers the pixel.
Turned = tuple[AnyArray, AnyArray]


def panel(
    params: dict,
    images: Float[AnyArray, "b h w 3"],
    options: ModelOptions,
    *,
    view_range: Float[Array, ""] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """One row per image: input, reconstructions, every factor, turned views.

    Args:
        params: of `model.init_params`.
        images: in [0, 1], of the model's size.
        options: static.
        view_range: see `model.decompose`.

    Returns:
        The picture, with a header that names the columns.
    """
    factors, reconstruction, turned = _maps(
        params, jnp.asarray(images), options, view_range
    )
    return paint(factors, reconstruction, turned, images, options)


@functools.partial(jax.jit, static_argnames="options")
def turned_views(
    canon_image: Float[Array, "b h w 3"],
    canon_depth: Float[Array, "b h w"],
    options: ModelOptions,
) -> Turned:
    """The canonical object from `TURNS_DEG`, and where it is."""
    return pictures.turned_views(
        canon_image, canon_depth, options.scene, yaws_deg=TURNS_DEG
    )


@functools.partial(jax.jit, static_argnames="options")
def _maps(params: dict, images: Array, options: ModelOptions, view_range: Array | None):
    factors = model.decompose(params, images, options, view_range=view_range)
    reconstruction = model.reconstruct(factors, options)
    image = reconstruction.canonical.image
    return factors, reconstruction, turned_views(image, factors.canon_depth, options)


def paint(
    factors: Factors,
    reconstruction: Reconstruction,
    turned: Turned,
    images: AnyArray,
    options: ModelOptions,
) -> UInt8[np.ndarray, "H W 3"]:
    """`panel` of what is known already.

    Args:
        turned: of `turned_views`.
    """
    scene, canonical = options.scene, reconstruction.canonical
    plain, flip = reconstruction.plain, reconstruction.flip
    columns = {
        "input": np.asarray(images),
        "reconstruction": pictures.masked_picture(plain.image, plain.valid),
        "flipped": pictures.masked_picture(flip.image, flip.valid),
        "depth": pictures.depth_picture(
            factors.canon_depth, near=scene.depth_min, far=scene.depth_max
        ),
        "normal": pictures.normal_picture(canonical.normal),
        "albedo": factors.canon_albedo,
        "shading": pictures.grey_picture(canonical.shading),
    }
    if factors.conf_sigma is not None and factors.conf_sigma_flip is not None:
        columns["confidence"] = pictures.confidence_picture(factors.conf_sigma)
        columns["conf. flipped"] = pictures.confidence_picture(factors.conf_sigma_flip)
    turned = jax.device_get(turned)
    seen = [pictures.masked_picture(*pair) for pair in zip(*turned, strict=True)]
    for degrees, picture in zip(TURNS_DEG, seen, strict=True):
        if degrees > 0:
            columns.setdefault("canonical", canonical.image)
        columns[f"yaw {degrees:+d}°"] = picture
    return pictures.labelled_rows(columns)
