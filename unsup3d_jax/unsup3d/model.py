"""The photo-geometric autoencoder: image -> Factors -> Reconstruction -> loss.

Follows Wu et al., CVPR 2020, Eqs. (1)-(7). Everything is a pure function of
parameters, arrays and a static `ModelOptions`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.formation import lighting, losses, reprojection
from unsup3d_jax.formation.types import Batch, Factors, Reconstruction, Warped
from unsup3d_jax.nets import networks, perceptual


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Sizes of the five networks; see `configs/default.py`, section model."""

    image_size: int = 64
    width: int = 64
    encoder_width: int = 32
    bottleneck: int = 256
    confidence_bottleneck: int = 128
    use_confidence: bool = True
    compute_dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class FactorOptions:
    """How raw network outputs become factors; sections view, depth, light."""

    rotation_max_deg: float = 60.0
    translation_xy_max: float = 0.1
    translation_z_max: float = 0.0
    border_columns: int = 2
    border_depth: float = 1.04
    centre_depth: bool = True
    bump_height: float = 0.0
    bump_width: float = 0.55
    output_gain: float = 1.0
    ambient_range: tuple[float, float] = (0.0, 1.0)
    diffuse_range: tuple[float, float] = (0.0, 1.0)
    shading: str = "lambert"


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Static part of the objective; sections loss and compat."""

    perceptual: float = 1.0
    perceptual_layer: str = "relu3_3"
    depth_smoothness: float = 0.0
    drop_constants: bool = True
    sigma_squared: bool = False
    joint_mask: bool = True


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Everything static that the model needs; hashable."""

    networks: NetworkOptions = NetworkOptions()
    factors: FactorOptions = FactorOptions()
    scene: reprojection.Scene = reprojection.Scene()
    loss: LossOptions = LossOptions()
    supervised: bool = False
    oracle_view: bool = False
    oracle_light: bool = False
    albedo_flip: bool = True
    depth_flip: bool = True


@struct.dataclass
class LossWeights:
    """What follows a schedule, as arrays so that nothing recompiles.

    Attributes:
        flip: lambda_f of Eq. (4).
        view_range: share of the range of rotation and translation that is in
            use, in (0, 1]; None: all of it.
        light_prior: weight of `losses.light_prior`; None: no such term.
    """

    flip: Float[Array, ""]
    view_range: Float[Array, ""] | None = None
    light_prior: Float[Array, ""] | None = None


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
    terms: dict[str, Float[Array, ""]]


def options_from_config(config: ConfigDict) -> ModelOptions:
    """Collects the static options of the model from a full configuration.

    Raises:
        ValueError: if a value is none of those its key allows.
    """
    _check_values(config)
    model, view, depth = config.model, config.view, config.depth
    light, compat = config.light, config.compat
    return ModelOptions(
        networks=NetworkOptions(
            image_size=config.data.image_size,
            width=model.width,
            encoder_width=model.encoder_width,
            bottleneck=model.bottleneck,
            confidence_bottleneck=model.confidence_bottleneck,
            use_confidence=model.use_confidence,
            compute_dtype=model.compute_dtype,
        ),
        factors=FactorOptions(
            rotation_max_deg=view.rotation_max_deg,
            translation_xy_max=view.translation_xy_max,
            translation_z_max=view.translation_z_max,
            border_columns=depth.border_columns,
            border_depth=depth.border_depth,
            centre_depth=compat.centre_depth,
            bump_height=depth.bump_height,
            bump_width=depth.bump_width,
            output_gain=depth.output_gain,
            ambient_range=(light.ambient_min, light.ambient_max),
            diffuse_range=(light.diffuse_min, light.diffuse_max),
            shading=model.shading,
        ),
        scene=reprojection.Scene(
            fov_deg=view.fov_deg,
            centre_depth=view.rotation_centre_depth,
            depth_min=depth.min,
            depth_max=depth.max,
            supersample=config.raster.supersample,
            sigma=config.raster.sigma,
            gamma=config.raster.gamma,
            half_pixel_depth=compat.half_pixel_depth,
            normal_epsilon=1e-7 if compat.short_normals else 0.0,
        ),
        loss=LossOptions(
            perceptual=config.loss.perceptual,
            perceptual_layer=config.loss.perceptual_layer,
            depth_smoothness=config.loss.depth_smoothness,
            drop_constants=compat.drop_constants,
            sigma_squared=compat.eq7_sigma_squared,
            joint_mask=compat.joint_mask,
        ),
        supervised=model.supervision == "depth",
        oracle_view=model.oracle_view,
        oracle_light=model.oracle_light,
        albedo_flip=model.albedo_flip,
        depth_flip=model.depth_flip,
    )


def need(config: ConfigDict, key: str, allowed: bool, rule: str) -> None:
    """Refuses the value of a key, such as "depth.min", unless it is allowed.

    Raises:
        ValueError: naming the key, the rule ("greater than 0") and the value.
    """
    if not allowed:
        value = functools.reduce(
            lambda section, name: section[name], key.split("."), config
        )
        raise ValueError(f"{key} must be {rule}, got {value!r}.")


def _check_values(config: ConfigDict) -> None:
    check = functools.partial(need, config)
    model, view, depth = config.model, config.view, config.depth
    light, raster, loss = config.light, config.raster, config.loss
    check("model.supervision", model.supervision in ("none", "depth"), "none or depth")
    types = ("float32", "bfloat16")
    check("model.compute_dtype", model.compute_dtype in types, " or ".join(types))
    check("model.shading", model.shading in ("lambert", "map"), "lambert or map")
    if model.shading == "map":
        rule = "{} where model.shading is map"
        check("model.oracle_light", not model.oracle_light, rule.format("False"))
        check("loss.light_prior", loss.light_prior <= 0, rule.format("0"))
    size = config.data.image_size
    check("data.image_size", size in (32, 64, 128, 256), "32, 64, 128 or 256")
    for name in ("width", "encoder_width"):
        multiple = model[name] >= 16 and model[name] % 16 == 0
        check(f"model.{name}", multiple, "a positive multiple of 16")
    for name in ("bottleneck", "confidence_bottleneck"):
        check(f"model.{name}", model[name] >= 1, "at least 1")
    check("view.fov_deg", 0 < view.fov_deg < 180, "between 0 and 180")
    for name in ("rotation_max_deg", "translation_xy_max", "translation_z_max"):
        check(f"view.{name}", view[name] >= 0, "0 or more")
    centre = view.rotation_centre_depth
    check("view.rotation_centre_depth", centre > 0, "greater than 0")
    start = view.warmup_start
    check("view.warmup_start", 0 < start <= 1, "greater than 0 and at most 1")
    check("view.warmup_steps", view.warmup_steps >= 0, "0 or more")
    check("depth.min", depth.min > 0, "greater than 0")
    check("depth.max", depth.max > depth.min, "greater than depth.min")
    inside = depth.min <= depth.border_depth <= depth.max
    limits = f"between depth.min, {depth.min}, and depth.max, {depth.max}"
    check("depth.border_depth", inside, limits)
    half, columns = size // 2, depth.border_columns
    check("depth.border_columns", 0 <= columns < half, f"0 or more and below {half}")
    check("depth.bump_width", depth.bump_width > 0, "greater than 0")
    for name in ("ambient", "diffuse"):
        ordered = light[f"{name}_max"] >= light[f"{name}_min"]
        check(f"light.{name}_max", ordered, f"light.{name}_min or more")
    check("raster.supersample", raster.supersample >= 1, "at least 1")
    check("raster.sigma", raster.sigma >= 0, "0 or more")
    check("raster.gamma", raster.gamma >= 0, "0 or more")
    both = (raster.sigma > 0) == (raster.gamma > 0)
    check("raster.gamma", both, "greater than 0 exactly if raster.sigma is")
    for name in (
        "flip",
        "flip_start",
        "perceptual",
        "depth_smoothness",
        "light_prior",
        "light_prior_steps",
    ):
        check(f"loss.{name}", loss[name] >= 0, "0 or more")
    layers = tuple(perceptual.LAYERS)
    check("loss.perceptual_layer", loss.perceptual_layer in layers, " or ".join(layers))


def loss_weights(config: ConfigDict, step: Array | int) -> LossWeights:
    """Scheduled numbers of the update that follows `step` updates.

    lambda_f is 1 before `loss.flip_start`; the range of the viewpoint grows and
    the prior on light falls, both linearly, where the config asks for them.
    """
    view, loss = config.view, config.loss
    done = jnp.asarray(step, jnp.float32)
    flip = jnp.where(jnp.asarray(step) < loss.flip_start, 1.0, loss.flip)
    view_range = light_prior = None
    if view.warmup_steps > 0:
        left = jnp.maximum(1.0 - done / view.warmup_steps, 0.0)
        view_range = 1.0 - (1.0 - view.warmup_start) * left  # ends at exactly 1
    if loss.light_prior > 0:
        left = jnp.ones(())
        if loss.light_prior_steps > 0:
            left = jnp.maximum(1.0 - done / loss.light_prior_steps, 0.0)
        light_prior = loss.light_prior * left
    return LossWeights(flip.astype(jnp.float32), view_range, light_prior)


def config_at(config: ConfigDict, step: int) -> ConfigDict:
    """The config with the view's range that is in use at a step, as a static value.

    For pictures and reconstructions from a checkpoint in the middle of a warm-up,
    whose networks know no other range. Later, and without a warm-up, it is `config`.
    """
    share = loss_weights(config, step).view_range
    if share is None or float(share) == 1.0:
        return config
    result = config.copy_and_resolve_references()
    with result.unlocked():
        for name in ("rotation_max_deg", "translation_xy_max", "translation_z_max"):
            result.view[name] = float(share) * config.view[name]
        result.view.warmup_steps = 0
    return result


def load_constants(config: ConfigDict) -> dict:
    """Loads what the objective needs beside parameters: the VGG16 weights."""
    if config.loss.perceptual == 0 or config.model.supervision != "none":
        return {}
    return {
        "vgg": perceptual.load_vgg16(
            config.loss.perceptual_weights, layer=config.loss.perceptual_layer
        )
    }


def build_networks(options: ModelOptions) -> dict[str, networks.nn.Module]:
    """The networks by the names of their parameters; depth alone if supervised."""
    sizes = options.networks
    dtype = jnp.dtype(sizes.compute_dtype)
    depth_net = networks.EncoderDecoder(1, sizes.width, sizes.bottleneck, dtype)
    if options.supervised:
        return {"depth": depth_net}
    nets: dict[str, networks.nn.Module] = {
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


def init_params(key: Array, options: ModelOptions) -> dict:
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


def depth_from_raw(
    raw: Float[Array, "b h w"], options: ModelOptions
) -> Float[Array, "b h w"]:
    """Depth head: prior bump, centring on the mean, tanh, range (Sec. 4.1).

    Args:
        raw: network output.

    Returns:
        Depth in [depth_min, depth_max], scene units, border not clamped.
    """
    factors, scene = options.factors, options.scene
    h, w = raw.shape[1:]
    x = (jnp.arange(w) - (w - 1) / 2) / (factors.bump_width * w / 2)
    y = (jnp.arange(h) - (h - 1) / 2) / (factors.bump_width * h / 2)
    bump = jnp.exp(-0.5 * (x[None, :] ** 2 + y[:, None] ** 2))
    raw = factors.output_gain * raw - factors.bump_height * bump
    if factors.centre_depth and not options.supervised:
        raw = raw - raw.mean((1, 2), keepdims=True)
    t = (1.0 + jnp.tanh(raw)) / 2.0
    return t * scene.depth_max + (1.0 - t) * scene.depth_min


def clamp_border(
    depth: Float[Array, "b h w"], *, columns: int, value: float
) -> Float[Array, "b h w"]:
    """Fixes the outer left and right columns to a far depth (Sec. 4.1)."""
    w = depth.shape[2]
    column = jnp.arange(w)
    return jnp.where((column < columns) | (column >= w - columns), value, depth)


def _rescale(x: Array, limits: tuple[float, float]) -> Array:
    return (1.0 + x) / 2.0 * (limits[1] - limits[0]) + limits[0]


def _light_from_raw(
    raw: Float[Array, "b 4"], limits: FactorOptions
) -> Float[Array, "b 5"]:
    direction = jnp.concatenate([raw[:, 2:4], jnp.ones((len(raw), 1))], axis=1)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return jnp.concatenate(
        [
            _rescale(raw[:, 0:1], limits.ambient_range),
            _rescale(raw[:, 1:2], limits.diffuse_range),
            direction,
        ],
        axis=1,
    )


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
    size = options.networks.image_size
    if image.shape[1:] != (size, size, 3):
        raise ValueError(
            f"need images of shape (b, {size}, {size}, 3), got {image.shape}."
        )
    nets, limits = build_networks(options), options.factors
    x = 2.0 * image - 1.0

    def run(name: str) -> Any:
        return nets[name].apply({"params": params[name]}, x)

    raw_depth = depth_from_raw(run("depth")[..., 0], options)
    b = image.shape[0]
    if options.supervised:
        # The baseline sees the input's view: no canonical frame, no border.
        return Factors(
            raw_depth=raw_depth,
            canon_depth=raw_depth,
            canon_albedo=image,
            light=jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 0.0, 1.0]), (b, 5)),
            view=jnp.zeros((b, 6)),
        )
    canon_depth = clamp_border(
        raw_depth, columns=limits.border_columns, value=limits.border_depth
    )
    raw_light, raw_view = run("light"), run("view")
    shading = None
    if limits.shading == "map":
        # The range that ambient plus diffuse light has, and a light that says
        # "this map, nothing else" wherever five numbers are expected.
        (low, high), (more_low, more_high) = limits.ambient_range, limits.diffuse_range
        shading_range = (low + more_low, high + more_high)
        shading = _rescale(jnp.tanh(raw_light[..., 0]), shading_range)
        light = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0, 0.0, 1.0]), (b, 5))
    else:
        light = _light_from_raw(raw_light, limits)
    rotation = jnp.radians(limits.rotation_max_deg)
    reach = [rotation] * 3 + [limits.translation_xy_max] * 2
    view = raw_view * jnp.array([*reach, limits.translation_z_max])
    if view_range is not None:
        view = view * view_range
    factors = Factors(
        raw_depth=raw_depth,
        canon_depth=canon_depth,
        canon_albedo=_rescale(jnp.tanh(run("albedo")), (0.0, 1.0)),
        light=light,
        view=view,
        canon_shading=shading,
    )
    if not options.networks.use_confidence:
        return factors
    fine, coarse = run("conf")
    return dataclasses.replace(
        factors,
        conf_sigma=fine[..., 0],
        conf_sigma_flip=fine[..., 1],
        conf_sigma_perceptual=coarse[..., 0],
        conf_sigma_perceptual_flip=coarse[..., 1],
    )


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
        if batch.depth is None or batch.mask is None:
            raise ValueError("model.supervision='depth' needs a data set with depth.")
        total = losses.supervised_depth(
            factors.canon_depth,
            batch.depth,
            batch.mask.astype(jnp.float32),
            axis_name=axis_name,
        )
        return total, Outputs(factors, reconstruction, {"total": total})

    loss, scene = options.loss, options.scene
    plain, flip = reconstruction.plain, reconstruction.flip
    masks = [plain.valid, flip.valid]
    if loss.joint_mask:
        masks = [plain.valid & flip.valid] * 2
    masks = [m.astype(jnp.float32) for m in masks]
    sigmas = [factors.conf_sigma, factors.conf_sigma_flip]

    terms = {}
    names = ("photometric", "photometric_flip")
    for name, warped, mask, sigma in zip(
        names, (plain, flip), masks, sigmas, strict=True
    ):
        terms[name] = losses.photometric(
            warped.image,
            batch.image,
            mask,
            sigma,
            drop_constants=loss.drop_constants,
            axis_name=axis_name,
        )
    total = terms["photometric"] + weights.flip * terms["photometric_flip"]

    if loss.perceptual > 0:
        terms |= _perceptual_terms(
            constants["vgg"],
            batch.image,
            (plain, flip),
            masks,
            factors,
            loss,
            axis_name,
        )
        both = terms["perceptual"] + weights.flip * terms["perceptual_flip"]
        total = total + loss.perceptual * both
    if loss.depth_smoothness > 0:
        terms["smoothness"] = losses.depth_smoothness(
            factors.raw_depth,
            depth_range=scene.depth_max - scene.depth_min,
            axis_name=axis_name,
        )
        total = total + loss.depth_smoothness * terms["smoothness"]
    if weights.light_prior is not None:
        terms["light_prior"] = losses.light_prior(
            factors.light,
            ambient_range=options.factors.ambient_range,
            diffuse_range=options.factors.diffuse_range,
            axis_name=axis_name,
        )
        total = total + weights.light_prior * terms["light_prior"]
    terms["total"] = total
    return total, Outputs(factors, reconstruction, terms)


def _perceptual_terms(
    vgg, image, reconstructions, masks, factors: Factors, loss: LossOptions, axis_name
) -> dict[str, Array]:
    """Perceptual losses; features of the input once and without gradient."""
    layer = loss.perceptual_layer
    target = jax.lax.stop_gradient(perceptual.features(vgg, image, layer=layer))
    # Invalid pixels of a reconstruction are mid-grey (0 in [-1, 1]); the
    # input is not masked (authors' code).
    shown = [
        (r.image - 0.5) * m[..., None] + 0.5
        for r, m in zip(reconstructions, masks, strict=True)
    ]
    features = perceptual.features(vgg, jnp.concatenate(shown), layer=layer)
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
            axis_name=axis_name,
        )
        for name, part, mask, sigma in zip(
            names, jnp.split(features, 2), masks, sigmas, strict=True
        )
    }
