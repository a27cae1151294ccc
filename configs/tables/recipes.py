"""What the tables share: their config, and the recipes that `tables.scale` names.

Every row of a table starts from the recipe of a scale:
tiny: minutes on two CPU cores. Shows that the machinery works; its numbers mean
nothing.
small: the quickstart's faces and schedule, 32 px; about a quarter of an hour a
row and seed on two CPU cores, more than twice that with the perceptual loss. Of
GAN2Shape: its faces, 32 px, the first 16 of the test split; about 25 minutes.
paper: 64 px, the paper's networks, images and schedule, the default's initial depth; a
GPU. Of GAN2Shape: the numbers of its default.py, and a generator that the user names.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default, quickstart, synfaces
from unsup3d_jax.configs.gan2shape import default as gan2shape_default
from unsup3d_jax.configs.gan2shape import faces

SCALES = ("tiny", "small", "paper")


def table(name: str) -> ConfigDict:
    """Returns the config of a table on the open faces: defaults, and its name."""
    config = default.get_config()
    config.name = config.tables.name = name
    config.data.name = "open_faces"
    return config


def gan2shape_table(name: str) -> ConfigDict:
    """Returns the config of a table of GAN2Shape: its defaults, and the name."""
    config = gan2shape_default.get_config()
    config.name = config.tables.name = name
    return config


def gan2shape_recipe(scale: str) -> ConfigDict:
    """Returns the full configuration of GAN2Shape at a scale."""
    if scale == "paper":
        config = gan2shape_default.get_config()
        config.data.pose, config.data.background = "natural", "plain"
        # What the rows of the tables change.
        config.prior.mask, config.stages.flip_all = "true", (False,)
    elif scale == "small":
        config = faces.get_config()
        config.eval.max_images = 16
    elif scale == "tiny":
        config = _tiny_gan2shape()
    else:
        raise ValueError(f"tables.scale must be one of {SCALES}, got {scale!r}.")
    return config


def beside_gan2shape(scale: str) -> ConfigDict:
    """Returns the full configuration of unsup3d's rows in a table of GAN2Shape.

    The recipe of the scale, on faces like GAN2Shape's and scored on the same.
    """
    config, other = recipe(scale), gan2shape_recipe(scale)
    for key in ("image_size", "pose", "background"):
        config.data[key] = other.data[key]
    config.eval.max_images = other.eval.max_images
    return config


def recipe(scale: str) -> ConfigDict:
    """Returns the full configuration of a scale."""
    if scale == "paper":
        config = synfaces.get_config()
    elif scale == "small":
        config = quickstart.get_config()
        config.eval.baseline_steps = 0
        # Faces are told upright from turned within 200 steps; minutes on one core.
        config.rotnet.steps, config.rotnet.batch_size = 600, 16
        config.rotnet.convolutions = 7
    elif scale == "tiny":
        config = _tiny()
    else:
        raise ValueError(f"tables.scale must be one of {SCALES}, got {scale!r}.")
    config.eval.baselines = ()  # they are rows of their own
    return config


def _tiny() -> ConfigDict:
    config = quickstart.get_config()
    config.data.count_train, config.data.count_val, config.data.count_test = 48, 8, 16
    config.data.min_images = 8
    config.model.encoder_width = 16
    config.model.bottleneck = config.model.confidence_bottleneck = 16
    config.loss.perceptual_layer = "relu1_2"
    config.train.steps, config.train.batch_size = 6, 8
    config.train.warmup_steps = config.train.depth_start = config.train.depth_full = 0
    config.eval.batch_size = 16
    config.eval.baseline_steps = 0
    config.log.every, config.log.tensorboard = 3, False
    config.log.picture_every = 0
    config.checkpoint.every = 6
    config.rotnet.steps, config.rotnet.batch_size = 3, 4
    config.rotnet.convolutions = 2
    return config


def _tiny_gan2shape() -> ConfigDict:
    config = faces.get_config()
    config.data.count_test = config.eval.max_images = 2
    config.invert.samples, config.invert.steps = 16, 2
    config.stages.count, config.stages.collect = 1, 1
    config.stages.group, config.stages.groups_at_a_time = 2, 1
    config.stages.joint_images, config.stages.prior_steps = 2, 2
    config.stages.joint_steps = config.stages.first_steps = (1, 1, 1)
    config.stages.joint_others = 2
    config.model.width = config.model.encoder_width = config.model.bottleneck = 4
    config.model.offset_width = 4
    config.train.batch_size = 2
    return config
