"""The static options of the method, and what follows a schedule, out of a config.

Numbers have no default here: `configs/default.py` alone decides.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configuration import check_numbers, need
from unsup3d_jax.formation import heads, reprojection
from unsup3d_jax.formation.types import Leaf

# Of VGG16's layers those that the confidence map, at a quarter of the size, fits.
PERCEPTUAL_LAYERS = ("relu1_2", "relu2_2", "relu3_3")


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Sizes of the five networks; see `configs/default.py`, section model."""

    image_size: int
    width: int
    encoder_width: int
    bottleneck: int
    confidence_bottleneck: int
    use_confidence: bool
    compute_dtype: str


@dataclasses.dataclass(frozen=True)
class FactorOptions:
    """How raw network outputs become factors; sections view, depth, light."""

    reach: heads.ViewReach
    border_columns: int
    border_depth: float
    centre_depth: bool
    bump: heads.InitialBump
    ambient_range: tuple[float, float]
    diffuse_range: tuple[float, float]
    shading: str


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Static part of the objective; sections loss and compat."""

    perceptual: float
    perceptual_layer: str
    depth_smoothness: float
    drop_constants: bool
    sigma_squared: bool
    joint_mask: bool


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Everything static that the model needs; hashable."""

    networks: NetworkOptions
    factors: FactorOptions
    scene: reprojection.Scene
    loss: LossOptions
    supervised: bool
    oracle_view: bool
    oracle_light: bool
    albedo_flip: bool
    depth_flip: bool


@struct.dataclass
class LossWeights:
    """What follows a schedule, as arrays so that nothing recompiles.

    Attributes:
        flip: lambda_f of Eq. (4).
        view_range: share of the range of rotation and translation that is in
            use, in (0, 1]; None: all of it.
        light_prior: weight of `losses.light_prior`; None: no such term.
    """

    flip: Float[Leaf, ""]
    view_range: Float[Leaf, ""] | None = None
    light_prior: Float[Leaf, ""] | None = None


def options_from_config(config: ConfigDict) -> ModelOptions:
    """Collects the static options of the model from a full configuration.

    Raises:
        ValueError: if a value of any key is none of those that it allows.
    """
    check_numbers(config, default.RANGES)
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
            reach=heads.ViewReach(
                rotation_max_deg=view.rotation_max_deg,
                translation_xy_max=view.translation_xy_max,
                translation_z_max=view.translation_z_max,
            ),
            border_columns=depth.border_columns,
            border_depth=depth.border_depth,
            centre_depth=compat.centre_depth,
            bump=heads.InitialBump(
                height=depth.bump_height,
                width=depth.bump_width,
                gain=depth.output_gain,
            ),
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


def _check_values(config: ConfigDict) -> None:
    """Checks words, and what a number has to do with another one."""
    check = functools.partial(need, config)
    model, depth = config.model, config.depth
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
    # 16 divides the groups of GroupNorm, which the encoders have not.
    for name, unit in (("width", 16), ("encoder_width", 8)):
        check(f"model.{name}", model[name] % unit == 0, f"a multiple of {unit}")
    check("depth.max", depth.max > depth.min, "greater than depth.min")
    inside = depth.min <= depth.border_depth <= depth.max
    limits = f"between depth.min, {depth.min}, and depth.max, {depth.max}"
    check("depth.border_depth", inside, limits)
    half = size // 2
    check("depth.border_columns", depth.border_columns < half, f"below {half}")
    for name in ("ambient", "diffuse"):
        ordered = light[f"{name}_max"] >= light[f"{name}_min"]
        check(f"light.{name}_max", ordered, f"light.{name}_min or more")
    both = (raster.sigma > 0) == (raster.gamma > 0)
    check("raster.gamma", both, "greater than 0 exactly if raster.sigma is")
    known = loss.perceptual_layer in PERCEPTUAL_LAYERS
    check("loss.perceptual_layer", known, " or ".join(PERCEPTUAL_LAYERS))


def loss_weights(config: ConfigDict, step: Int[Array, ""] | int) -> LossWeights:
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
