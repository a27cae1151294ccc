"""The static options of the method out of a config, and what its stages are.

Numbers have no default here: `configs/gan2shape/default.py` alone decides.
"""

import dataclasses
import functools

from ml_collections import ConfigDict

from unsup3d_jax.configs.gan2shape import default
from unsup3d_jax.configuration import changed, check_numbers, need
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.engine.task import Identity
from unsup3d_jax.errors import refusing
from unsup3d_jax.formation import heads, reprojection
from unsup3d_jax.gan2shape import prior

IDENTITY = Identity(
    harmless=("stages.side_by_side", "prior.mask_path", "tables."),
    meaning=("model.", "view.", "depth.", "data.image_size"),
    younger=default.YOUNGER,
    defaults=default.get_config,
)
PROJECTIONS = ("generator", "oracle", "none")
PERCEPTUAL = ("auto", "lpips", "none")
INVERT = ("auto", "lpips", "discriminator")
MODES = ("instance", "joint")
MASKS = ("true", "folder", "ellipse")
# What is done in a stage, in this order; the first two once, before all of them.
KINDS = ("prior", "lesson", "albedo", "encoder", "collect", "shape")


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Sizes of the networks; see `configs/gan2shape/default.py`, section model."""

    image_size: int
    width: int
    encoder_width: int
    bottleneck: int


@dataclasses.dataclass(frozen=True)
class LightRange:
    """What lights of pseudo samples are drawn from; section sampling.

    Attributes:
        x, y: of the direction (x, y, 1), from and to.
        diffuse: r, what diffuse light has more than the image's, from and to.
        ambient_share: what ambient light has more of that, times r.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    diffuse: tuple[float, float]
    ambient_share: float


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights of the losses; section loss."""

    perceptual: float
    smoothness: float
    features: float
    offset: float
    view: float
    spread: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some iterations of one kind; static.

    Attributes:
        kind: of `KINDS`.
        stage: 0 for the prior, then 1, 2, ...
        first, last: the iterations are first <= step < last of the whole run.
        flip: whether the mirrored reconstruction counts, too.
    """

    kind: str
    stage: int
    first: int
    last: int
    flip: bool


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
    """Everything static that the steps need; hashable.

    Attributes:
        samples: of an image in each iteration.
        collect: batches of so many samples that are stored of each image.
        active: images of a group in each iteration; None: all of them.
        view_scale: of the yaw of pseudo samples.
        object_only: whether pseudo samples count on the object alone.
        rates: learning rate of each network.
    """

    networks: NetworkOptions
    scene: reprojection.Scene
    reach: heads.ViewReach
    border_columns: int
    border_depth: float
    border_weight: float
    loss: LossOptions
    light: LightRange
    view_scale: float
    object_only: bool
    samples: int
    collect: int
    active: int | None
    rates: tuple[tuple[str, float], ...]


def options_from_config(config: ConfigDict) -> ShapeOptions:
    """The static options of a checked config."""
    model, view, depth = config.model, config.view, config.depth
    sampling, loss, train = config.sampling, config.loss, config.train
    joint = config.stages.mode == "joint"
    return ShapeOptions(
        networks=NetworkOptions(
            image_size=config.data.image_size,
            width=model.width,
            encoder_width=model.encoder_width,
            bottleneck=model.bottleneck,
        ),
        scene=reprojection.Scene(
            fov_deg=view.fov_deg,
            centre_depth=view.rotation_centre_depth,
            depth_min=depth.min,
            depth_max=depth.max,
            supersample=config.raster.supersample,
            sigma=0.0,
            gamma=0.0,
            half_pixel_depth=False,
            normal_epsilon=0.0,
        ),
        reach=heads.ViewReach(
            rotation_max_deg=view.rotation_max_deg,
            translation_xy_max=view.translation_xy_max,
            translation_z_max=view.translation_z_max,
        ),
        border_columns=depth.border_columns,
        border_depth=depth.border_depth,
        border_weight=depth.border_weight,
        loss=LossOptions(
            perceptual=loss.perceptual,
            smoothness=loss.smoothness,
            features=loss.features,
            offset=loss.offset,
            view=loss.view,
            spread=loss.spread if joint else 0.0,
        ),
        light=LightRange(
            x=(sampling.light_x_min, sampling.light_x_max),
            y=(sampling.light_y_min, sampling.light_y_max),
            diffuse=(sampling.diffuse_min, sampling.diffuse_max),
            ambient_share=sampling.ambient_share,
        ),
        view_scale=sampling.view_scale,
        object_only=sampling.object_only,
        samples=train.batch_size,
        collect=config.stages.collect,
        active=config.stages.joint_images if joint else None,
        rates=tuple(
            (name, train.learning_rate * scale)
            for name, scale in sorted(train.lr_scale.items())
        ),
    )


def joint_stage(config: ConfigDict) -> ConfigDict | None:
    """The config of the stages that all images share before their own; None: none.

    Networks of a joint run take their place.
    """
    stages = config.stages
    if config.train.init_from or not any(stages.joint_steps):
        return None
    changes = {"mode": "joint", "group": 1, "count": stages.joint_count}
    changes |= {"first_steps": stages.joint_steps, "joint_steps": (0, 0, 0)}
    if stages.joint_count > 1:  # runs of one stage are older than that key
        changes |= {"later_steps": stages.joint_steps, "joint_count": 1}
    return changed(config, {f"stages.{k}": v for k, v in changes.items()})


def start_name(config: ConfigDict) -> str:
    """What a run's record is of before its first stage."""
    given = config.train.init_from or joint_stage(config) is not None
    return "joint start" if given else "prior"


def phases(config: ConfigDict) -> tuple[Phase, ...]:
    """All that is done to an image, in order; phases of no iterations are left out.

    Without the stage that all images share, of which `joint_stage` has the config.

    A projection that learns nothing has no use for step 2.
    """
    stages = config.stages
    learns = config.projection.kind == "generator" and not config.broken.encoder
    plan: list[tuple[str, int, int, bool]] = []
    if not config.train.init_from and joint_stage(config) is None:
        plan.append(("prior", 0, stages.prior_steps, False))
        plan.append(("lesson", 0, stages.lesson_steps if learns else 0, False))
    for stage in range(1, stages.count + 1):
        one, two, three = stages.first_steps if stage == 1 else stages.later_steps
        plan += [
            ("albedo", stage, one, _of_stage(stages.flip_albedo, stage)),
            ("encoder", stage, two if learns else 0, False),
            ("collect", stage, stages.collect, False),
            ("shape", stage, three, _of_stage(stages.flip_all, stage)),
        ]
    found, first = [], 0
    for kind, stage, count, flip in plan:
        if count:
            found.append(Phase(kind, stage, first, first + count, flip))
        first += count
    return tuple(found)


def _of_stage(values: tuple[bool, ...], stage: int) -> bool:
    return values[min(stage, len(values)) - 1]


def check_config(config: ConfigDict) -> ShapeOptions:
    """Checks what a run would otherwise trip over late; returns its options.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    with refusing():
        check_numbers(config, default.RANGES)
        _check_words(config)
        _check_together(config)
        return options_from_config(config)


def _check_words(config: ConfigDict) -> None:
    def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
        need(config, key, value in allowed, f"one of {', '.join(allowed)}")

    one_of("projection.kind", config.projection.kind, PROJECTIONS)
    one_of("stages.mode", config.stages.mode, MODES)
    one_of("prior.shape", config.prior.shape, prior.SHAPES)
    one_of("prior.category", config.prior.category, prior.CATEGORIES)
    one_of("prior.mask", config.prior.mask, MASKS)
    one_of("loss.perceptual_kind", config.loss.perceptual_kind, PERCEPTUAL)
    one_of("invert.kind", config.invert.kind, INVERT)
    one_of("train.optimizer", config.train.optimizer, ("adam", "muon", "sgd"))
    one_of("eval.split", config.eval.split, ds.SPLITS)


def _check_together(config: ConfigDict) -> None:
    check = functools.partial(need, config)
    stages, depth, size = config.stages, config.depth, config.data.image_size
    check("data.image_size", size in (32, 64, 128, 256), "32, 64, 128 or 256")
    for key in ("width", "encoder_width"):
        check(f"model.{key}", config.model[key] % 4 == 0, "a multiple of 4")
    for key in ("first_steps", "later_steps", "joint_steps"):
        check(f"stages.{key}", len(stages[key]) == 3, "three numbers, of steps 1 to 3")
    for key in ("flip_albedo", "flip_all"):
        check(f"stages.{key}", len(stages[key]) > 0, "at least one of true and false")
    alone = stages.mode == "instance" or stages.group == 1
    check("stages.group", alone, "1 where stages.mode is joint")
    before = any(stages.joint_steps)
    alone = not before or stages.mode == "instance"
    check("stages.joint_steps", alone, "(0, 0, 0) where stages.mode is joint")
    among = stages.mode == "joint" or before or config.loss.spread == 0
    check("loss.spread", among, "0 where no stage is joint")
    is_open = config.projection.kind != "oracle" or config.data.name == "open_faces"
    check("data.name", is_open, "open_faces where projection.kind is oracle")
    check("depth.max", depth.max > depth.min, "greater than depth.min")
    inside = depth.min < config.prior.near < config.prior.far < depth.max
    limits = f"above prior.near and below depth.max, {depth.max}"
    check("prior.far", inside, limits)
    half = size // 2
    check("depth.border_columns", depth.border_columns < half, f"below {half}")
