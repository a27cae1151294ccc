"""What the steps of GAN2Shape minimise (Pan et al., ICLR 2021, and the release).

Images are in [0, 1], and compared in [-1, 1] as in the other methods.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from unsup3d_jax.errors import UserError
from unsup3d_jax.formation import heads, losses, reprojection
from unsup3d_jax.formation.losses import mean_share
from unsup3d_jax.formation.types import (
    AnyArray,
    Canonical,
    Conditions,
    Leaf,
    Surface,
    Warped,
)
from unsup3d_jax.gan2shape.options import ShapeOptions
from unsup3d_jax.nets import lpips as lpips_net
from unsup3d_jax.nets.lpips import Lpips


@struct.dataclass
class Rendering:
    """A surface under the conditions of some pictures.

    Attributes:
        canonical: shaded, before it is turned.
        warped: in each picture's view; the image clamped to [0, 1].
    """

    canonical: Canonical
    warped: Warped


@struct.dataclass
class Explained:
    """How far pictures are explained.

    Attributes:
        loss: of the pictures, smoothness left out.
        plain: reconstruction.
        valid: where it counts: with a mirrored one, in both.
    """

    loss: Float[Leaf, ""]
    plain: Rendering
    valid: Bool[Leaf, "b h w"]


def load_perceptual(kind: str, weights: str) -> tuple[Lpips | None, str]:
    """The weights of LPIPS, and what is to be said if there are none.

    Args:
        kind: loss.perceptual_kind.
        weights: loss.perceptual_weights.

    Raises:
        UserError: if they are asked for and not there.
    """
    if kind == "none":
        return None, ""
    try:
        return lpips_net.load_lpips(weights), ""
    except UserError as error:
        if kind == "lpips" or weights:
            raise
        return None, f"without LPIPS: {error}"


def render(
    surface: Surface, conditions: Conditions, options: ShapeOptions
) -> Rendering:
    """Draws a surface as each picture shows it.

    Args:
        surface: of as many objects as there are conditions, or of one.
    """
    factors = heads.compose(surface, conditions)
    canonical = reprojection.shade_canonical(
        factors.canon_albedo, factors.canon_depth, factors.light, options.scene
    )
    warped = reprojection.reproject(
        canonical.image, factors.canon_depth, factors.view, options.scene
    )
    clamped = jnp.clip(warped.image, 0.0, 1.0)
    return Rendering(canonical, dataclasses.replace(warped, image=clamped))


def mirrored(surface: Surface) -> Surface:
    """The surface, left and right exchanged."""
    return dataclasses.replace(
        surface,
        raw_depth=surface.raw_depth[:, :, ::-1],
        canon_depth=surface.canon_depth[:, :, ::-1],
        canon_albedo=surface.canon_albedo[:, :, ::-1],
    )


def explain(
    surface: Surface,
    conditions: Conditions,
    images: Float[AnyArray, "b h w 3"],
    masks: Bool[AnyArray, "b h w"] | None,
    options: ShapeOptions,
    *,
    flip: bool,
    perceptual: Lpips | None,
) -> Explained:
    """Reconstructs pictures, and says how far off it is.

    L1 over the mask's pixels, and LPIPS of what the mask leaves; with `flip` the same
    from the mirrored surface, weight 1, and the mask is valid in both.

    Args:
        images: of as many as there are conditions.
        masks: where the images count; None: everywhere.
        flip: static.
    """
    plain = render(surface, conditions, options)
    drawn, valid = [plain], plain.warped.valid
    if flip:
        drawn.append(render(mirrored(surface), conditions, options))
        valid = valid & drawn[1].warped.valid
    # With both masks, as one mask is all there is to compare under.
    counts = valid if masks is None else valid & masks
    weight = counts.astype(jnp.float32)
    total, images = jnp.zeros(()), jnp.asarray(images)
    for one in drawn:
        found = one.warped.image
        total += mean_share(losses.photometric(found, images, weight, None))
        if perceptual is not None and options.loss.perceptual > 0:
            total += options.loss.perceptual * _lpips(perceptual, found, images, weight)
    return Explained(total, plain, valid)


def _lpips(
    weights: Lpips,
    found: Float[Array, "b h w 3"],
    images: Float[Array, "b h w 3"],
    mask: Float[Array, "b h w"],
) -> Float[Array, ""]:
    """Of images that are mid-grey, 0 in [-1, 1], off the mask."""
    a, b = (0.5 + (x - 0.5) * mask[..., None] for x in (found, images))
    return jnp.mean(lpips_net.distance(weights, a, b))


def smoothness(
    surface: Surface, rendering: Rendering, options: ShapeOptions
) -> Float[Array, ""]:
    """Second differences of depth and of diffuse shading, weighted."""
    depth = losses.second_differences(surface.canon_depth)
    shading = losses.second_differences(rendering.canonical.shading)
    return options.loss.smoothness * (mean_share(depth) + mean_share(shading))
