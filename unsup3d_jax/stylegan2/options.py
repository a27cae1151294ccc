"""What a config of this method asks for, checked, as static options.

Numbers have no default here: `configs/gan2shape/gan_default.py` alone decides.
"""

import dataclasses

from ml_collections import ConfigDict

from unsup3d_jax.configs.gan2shape import gan_default
from unsup3d_jax.configuration import check_numbers, need
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.engine import settings
from unsup3d_jax.errors import refusing
from unsup3d_jax.nets.stylegan2 import GanOptions

DATA_SETS = ("open_faces", "folder", "tfds")
GROUP = 4  # images that the discriminator sees together, at least


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A regularisation that counts every so many steps, that much more.

    Attributes:
        weight: of the penalty; 0: there is none.
        every: steps.
    """

    weight: float
    every: int

    @property
    def correction(self) -> float:
        """k / (k + 1): an optimizer that is asked k + 1 times in k steps is slowed
        down by it, and forgets as much less each time."""
        return self.every / (self.every + 1) if self.weight > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class AdaOptions:
    """Section augment."""

    target: float
    every: int
    images: int
    most: float


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Everything static that a training step needs; hashable."""

    gan: GanOptions
    mixing: float
    half_life: int
    batch_size: int
    r1: Lazy
    path: Lazy
    augment: AdaOptions


def gan_options(config: ConfigDict) -> GanOptions:
    """The networks of a checked config."""
    gan = config.gan
    return GanOptions(
        image_size=config.data.image_size,
        channels=tuple(gan.channels),
        style=gan.style,
        mapping_layers=gan.mapping_layers,
        mapping_rate=gan.mapping_rate,
        noise=gan.noise,
    )


def options_from_config(config: ConfigDict) -> TrainOptions:
    """The static options of a checked config."""
    loss, augment = config.loss, config.augment
    return TrainOptions(
        gan=gan_options(config),
        mixing=config.gan.mixing,
        half_life=config.gan.half_life,
        batch_size=config.train.batch_size,
        r1=Lazy(loss.r1, loss.r1_every),
        path=Lazy(loss.path, loss.path_every),
        augment=AdaOptions(augment.target, augment.every, augment.images, augment.most),
    )


def check_config(config: ConfigDict) -> None:
    """Checks what a run would otherwise trip over late.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    with refusing():
        check_numbers(config, gan_default.RANGES)
        settings.check(config)
        data, train = config.data, config.train
        known = data.name in DATA_SETS
        need(config, "data.name", known, f"one of {', '.join(DATA_SETS)}")
        size = data.image_size
        power = size >= 8 and size & (size - 1) == 0
        need(config, "data.image_size", power, "8, 16, 32, 64, 128 or 256")
        levels = size.bit_length() - 2
        fits = len(config.gan.channels) == levels
        rule = f"{levels} numbers, of the levels 4 to {size} px"
        need(config, "gan.channels", fits, rule)
        need(config, "train.optimizer", train.optimizer == "adam", "adam: lazy "
             "regularisation corrects its moments")  # fmt: skip
        grouped = train.batch_size % GROUP == 0 or train.batch_size < GROUP
        need(config, "train.batch_size", grouped, f"a multiple of {GROUP}, or less")
        known = config.eval.split in ds.SPLITS
        need(config, "eval.split", known, f"one of {', '.join(ds.SPLITS)}")
        backgrounds = ("rendered", "plain")
        known = data.background in backgrounds
        need(config, "data.background", known, f"one of {', '.join(backgrounds)}")
        plain = data.background == "rendered" or data.name == "open_faces"
        need(config, "data.background", plain, "rendered unless data.name=open_faces")
        begun = not train.init_from
        need(config, "train.init_from", begun, "empty: two players begin together")
