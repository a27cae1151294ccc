"""The photo-geometric autoencoder: image -> Factors -> Reconstruction -> loss.

Follows Wu et al., CVPR 2020, Eqs. (1)-(7). Everything is a pure function of
parameters, arrays and a static `ModelOptions`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from unsup3d_jax.formation import heads, lighting, losses, reprojection
from unsup3d_jax.formation.types import (
    Batch,
    Conditions,
    Factors,
    Leaf,
    Reconstruction,
    Surface,
    Warped,
)
from unsup3d_jax.nets import networks, vgg16, vgg16_files
from unsup3d_jax.unsup3d.options import LossOptions, LossWeights, ModelOptions


@struct.dataclass
class Outputs:
    """What one evaluation of the objective leaves for metrics and pictures.

    Attributes:
        factors, reconstruction: of the batch.
        terms: this device's share of every loss term, unweighted, and
            "total", weighted.
    """

    factors: Factors
    reconstruction: Reconstruction
    terms: dict[str, Float[Leaf, ""]]


def load_constants(config: ConfigDict) -> dict:
    """Loads what the objective needs beside parameters: the VGG16 weights."""
    if config.loss.perceptual == 0 or config.model.supervision != "none":
        return {}
    return {
        "vgg": vgg16_files.load_vgg16(
            config.loss.perceptual_weights, layer=config.loss.perceptual_layer
        )
    }


def build_networks(options: ModelOptions) -> dict[str, nn.Module]:
    """The networks by the names of their parameters; depth alone if supervised."""
    sizes = options.networks
    dtype = jnp.dtype(sizes.compute_dtype)
    depth_net = networks.EncoderDecoder(1, sizes.width, sizes.bottleneck, dtype)
    if options.supervised:
        return {"depth": depth_net}
    nets: dict[str, nn.Module] = {
        "depth": depth_net,
        "albedo": networks.EncoderDecoder(3, sizes.width, sizes.bottleneck, dtype),
        # Under the same name, so that schedules and logs need not know.
        "light": networks.EncoderDecoder(1, sizes.width, sizes.bottleneck, dtype)
        if options.factors.shading == "map"
        else networks.Encoder(4, sizes.encoder_width, dtype),
        "view": networks.Encoder(6, sizes.encoder_width, dtype),
    }
    if sizes.use_confidence:
        nets["conf"] = networks.ConfidenceNet(
            sizes.width, sizes.confidence_bottleneck, dtype
        )
    return nets


def init_params(key: Key[Array, ""], options: ModelOptions) -> dict:
    """Random parameters, float32, as {network name: flax parameters}.

    Networks are "depth", "albedo", "light", "view" and, with confidence,
    "conf"; the supervised baseline has "depth" only.
    """
    size = options.networks.image_size
    # Lazily: running the networks on an image would compile them, op by op.
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    nets = build_networks(options)
    keys = jax.random.split(key, len(nets))
    return {
        name: net.lazy_init(net_key, image)["params"]
        for net_key, (name, net) in zip(keys, nets.items(), strict=True)
    }


def decompose(
    params: dict,
    image: Float[Array, "b h w 3"],
    options: ModelOptions,
    *,
    view_range: Float[Array, ""] | None = None,
) -> Factors:
    """Phi: predicts the factors of images in [0, 1].

    Args:
        params: of `init_params`.
        image: of the model's size.
        options: static.
        view_range: see `LossWeights`; None, all, once training is finished.

    Raises:
        ValueError: if the images have not the model's size.
    """
    surface = read_surface(params, image, options)
    conditions = read_conditions(params, image, options, view_range=view_range)
    return heads.compose(surface, conditions)


def read_surface(
    params: dict, image: Float[Array, "b h w 3"], options: ModelOptions
) -> Surface:
    """One half of `decompose`: depth, albedo and confidence.

    Raises:
        ValueError: if the images have not the model's size.
    """
    limits, scene = options.factors, options.scene
    raw_depth = heads.depth_from_raw(
        _run("depth", params, image, options)[..., 0],
        limits=(scene.depth_min, scene.depth_max),
        # The supervised baseline learns depth itself, mean and all.
        centre=limits.centre_depth and not options.supervised,
        bump=limits.bump,
    )
    if options.supervised:
        # The baseline sees the input's view: no canonical frame, no border.
        return Surface(
            raw_depth=raw_depth, canon_depth=raw_depth, canon_albedo=jnp.asarray(image)
        )
    surface = Surface(
        raw_depth=raw_depth,
        canon_depth=heads.clamp_border(
            raw_depth, columns=limits.border_columns, value=limits.border_depth
        ),
        canon_albedo=heads.albedo_from_raw(_run("albedo", params, image, options)),
    )
    if not options.networks.use_confidence:
        return surface
    fine, coarse = _run("conf", params, image, options)
    return dataclasses.replace(
        surface,
        conf_sigma=fine[..., 0],
        conf_sigma_flip=fine[..., 1],
        conf_sigma_perceptual=coarse[..., 0],
        conf_sigma_perceptual_flip=coarse[..., 1],
    )


def read_conditions(
    params: dict,
    image: Float[Array, "b h w 3"],
    options: ModelOptions,
    *,
    view_range: Float[Array, ""] | None = None,
) -> Conditions:
    """The other half of `decompose`: viewpoint, and light or a shading map.

    Raises:
        ValueError: if the images have not the model's size.
    """
    limits, b = options.factors, image.shape[0]
    if options.supervised:
        light = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 0.0, 1.0]), (b, 5))
        return Conditions(light=light, view=jnp.zeros((b, 6)))
    raw_light = _run("light", params, image, options)
    raw_view = _run("view", params, image, options)
    shading = None
    if limits.shading == "map":
        # The range that ambient plus diffuse light has, and a light that says
        # "this map, nothing else" wherever five numbers are expected.
        (low, high), (more_low, more_high) = limits.ambient_range, limits.diffuse_range
        shading = heads.shading_from_raw(
            raw_light[..., 0], limits=(low + more_low, high + more_high)
        )
        light = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0, 0.0, 1.0]), (b, 5))
    else:
        light = heads.light_from_raw(
            raw_light,
            ambient_range=limits.ambient_range,
            diffuse_range=limits.diffuse_range,
        )
    view = heads.view_from_raw(raw_view, limits.reach, share=view_range)
    return Conditions(light=light, view=view, canon_shading=shading)


def _run(
    name: str, params: dict, image: Float[Array, "b h w 3"], options: ModelOptions
) -> Any:
    """What one network says of images in [0, 1]."""
    size = options.networks.image_size
    if image.shape[1:] != (size, size, 3):
        raise ValueError(
            f"need images of shape (b, {size}, {size}, 3), got {image.shape}."
        )
    network = build_networks(options)[name]
    return network.apply({"params": params[name]}, 2.0 * image - 1.0)


def apply_oracle(factors: Factors, batch: Batch, options: ModelOptions) -> Factors:
    """Replaces view and / or light by the truth, as the options ask.

    Raises:
        ValueError: if the batch does not hold the truth that is asked for.
    """
    if options.oracle_view:
        if batch.view is None:
            raise ValueError("model.oracle_view needs a data set with true viewpoints.")
        factors = dataclasses.replace(factors, view=batch.view)
    if options.oracle_light:
        if batch.light is None or batch.view is None:
            raise ValueError("model.oracle_light needs a data set with true light.")
        factors = dataclasses.replace(
            factors, light=jax.vmap(lighting.to_canonical)(batch.light, batch.view)
        )
    return factors


def reconstruct(factors: Factors, options: ModelOptions) -> Reconstruction:
    """Eqs. (1) and (2): both reconstructions of the input from its factors.

    The second one mirrors depth and albedo. `depth_flip` and `albedo_flip` turn
    either off (Table 3); light, view and a predicted shading are never mirrored.
    """
    scene = options.scene
    b = factors.canon_depth.shape[0]

    def with_flip(a: Array) -> Array:  # width is the third axis of every map
        return jnp.concatenate([a, jnp.flip(a, axis=2)])

    def twice(a: Array) -> Array:
        return jnp.concatenate([a, a])

    # Both passes as one batch: one launch of the rasterizer, not two.
    depth = (with_flip if options.depth_flip else twice)(factors.canon_depth)
    albedo = (with_flip if options.albedo_flip else twice)(factors.canon_albedo)
    shading = factors.canon_shading
    canonical = reprojection.shade_canonical(
        albedo,
        depth,
        twice(factors.light),
        scene,
        shading=None if shading is None else twice(shading),
    )
    if options.supervised:
        everywhere = jnp.ones(depth.shape, bool)
        warped = Warped(depth=depth, valid=everywhere, image=albedo)
    else:
        warped = reprojection.reproject(
            canonical.image, depth, twice(factors.view), scene
        )
    halves = [
        jax.tree.map(lambda a, s=s: a[s], (canonical, warped))
        for s in (slice(0, b), slice(b, 2 * b))
    ]
    return Reconstruction(
        canonical=halves[0][0],
        canonical_flip=halves[1][0],
        plain=halves[0][1],
        flip=halves[1][1],
    )


def objective(
    params: dict,
    constants: dict,
    batch: Batch,
    weights: LossWeights,
    options: ModelOptions,
    *,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Outputs]:
    """The learning objective, Eq. (4) with the perceptual loss of Sec. 3.4.

    Args:
        params: of `init_params`.
        constants: of `load_constants`.
        batch: images and what supervision or the oracle need.
        weights: of `loss_weights`.
        options: static.
        axis_name: pmap axis over which the batch is split. The result is then
            this device's share: shares (and gradients) *sum* to the whole.

    Returns:
        Scalar loss and everything computed on the way.
    """
    factors = decompose(params, batch.image, options, view_range=weights.view_range)
    factors = apply_oracle(factors, batch, options)
    reconstruction = reconstruct(factors, options)
    if options.supervised:
        loss = _supervised_loss(factors, batch)
        total = losses.mean_share(loss, axis_name=axis_name)
        return total, Outputs(factors, reconstruction, {"total": total})

    maps = _loss_maps(constants, batch.image, factors, reconstruction, options)
    if weights.light_prior is not None:
        maps["light_prior"] = losses.light_prior(
            factors.light,
            ambient_range=options.factors.ambient_range,
            diffuse_range=options.factors.diffuse_range,
        )
    # Here, and nowhere else, the devices of the batch meet.
    terms = {k: losses.mean_share(m, axis_name=axis_name) for k, m in maps.items()}
    total = terms["photometric"] + weights.flip * terms["photometric_flip"]
    if "perceptual" in terms:
        both = terms["perceptual"] + weights.flip * terms["perceptual_flip"]
        total = total + options.loss.perceptual * both
    if "smoothness" in terms:
        total = total + options.loss.depth_smoothness * terms["smoothness"]
    if weights.light_prior is not None:
        total = total + weights.light_prior * terms["light_prior"]
    terms["total"] = total
    return total, Outputs(factors, reconstruction, terms)


def _supervised_loss(factors: Factors, batch: Batch) -> losses.Weighted:
    if batch.depth is None or batch.mask is None:
        raise ValueError("model.supervision='depth' needs a data set with depth.")
    mask = batch.mask.astype(jnp.float32)
    return losses.supervised_depth(factors.canon_depth, batch.depth, mask)


def _loss_maps(
    constants: dict,
    image: Float[Array, "b h w 3"],
    factors: Factors,
    reconstruction: Reconstruction,
    options: ModelOptions,
) -> dict[str, losses.Loss]:
    """Every term of the objective but the prior, before the means are taken."""
    loss, scene = options.loss, options.scene
    plain, flip = reconstruction.plain, reconstruction.flip
    masks = [plain.valid, flip.valid]
    if loss.joint_mask:
        masks = [plain.valid & flip.valid] * 2
    masks = [m.astype(jnp.float32) for m in masks]
    sigmas = [factors.conf_sigma, factors.conf_sigma_flip]
    names = ("photometric", "photometric_flip")
    maps: dict[str, losses.Loss] = {
        name: losses.photometric(
            warped.image, image, mask, sigma, drop_constants=loss.drop_constants
        )
        for name, warped, mask, sigma in zip(
            names, (plain, flip), masks, sigmas, strict=True
        )
    }
    if loss.perceptual > 0:
        shown = [
            # Invalid pixels of a reconstruction are mid-grey (0 in [-1, 1]); the
            # input is not masked (authors' code).
            (warped.image - 0.5) * mask[..., None] + 0.5
            for warped, mask in zip((plain, flip), masks, strict=True)
        ]
        maps |= _perceptual_maps(constants["vgg"], image, shown, masks, factors, loss)
    if loss.depth_smoothness > 0:
        maps["smoothness"] = losses.depth_smoothness(
            factors.raw_depth, depth_range=scene.depth_max - scene.depth_min
        )
    return maps


def _perceptual_maps(
    vgg: vgg16.Vgg16,
    image: Float[Array, "b h w 3"],
    shown: Sequence[Float[Array, "b h w 3"]],
    masks: Sequence[Float[Array, "b h w"]],
    factors: Factors,
    loss: LossOptions,
) -> dict[str, losses.Weighted]:
    """Perceptual losses; features of the input once and without gradient."""
    layer = loss.perceptual_layer
    target = jax.lax.stop_gradient(vgg16.features(vgg, image, layer=layer))
    features = vgg16.features(vgg, jnp.concatenate(shown), layer=layer)
    sigmas = (factors.conf_sigma_perceptual, factors.conf_sigma_perceptual_flip)
    names = ("perceptual", "perceptual_flip")
    return {
        name: losses.perceptual(
            part,
            target,
            mask,
            sigma,
            drop_constants=loss.drop_constants,
            sigma_squared=loss.sigma_squared,
        )
        for name, part, mask, sigma in zip(
            names, jnp.split(features, 2), masks, sigmas, strict=True
        )
    }
