"""The two players as the engine's task: what `loop.fit` trains."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.configs.gan2shape import gan_default
from unsup3d_jax.data.batches import to_batch
from unsup3d_jax.data.load import Splits
from unsup3d_jax.data.source import TrainSource, train_source
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine import run
from unsup3d_jax.engine.task import Identity, Session, State, Task
from unsup3d_jax.nets.stylegan2 import init_discriminator, init_generator
from unsup3d_jax.stylegan2 import gate, panel, steps, watch
from unsup3d_jax.stylegan2.options import check_config, gan_options, options_from_config

IDENTITY = Identity(
    meaning=("gan.channels", "gan.style", "gan.mapping_", "gan.noise",
             "data.image_size"),
    younger=gan_default.YOUNGER,
    defaults=gan_default.get_config,
)  # fmt: skip
# What a finished run is wanted for: the averaged generator, and the discriminator,
# whose features GAN2Shape compares.
RESULTS = ("ema", "discriminator")


def gan_task(config: ConfigDict, splits: Splits) -> Task:
    """Generator and discriminator on the configured images."""
    check_config(config)
    options = options_from_config(config)
    players = steps.Players(
        generator=steps.lazy_optimizer(config, options.path),
        discriminator=steps.lazy_optimizer(config, options.r1),
    )

    def init(key: Key[Array, ""]) -> State:
        return initial_parts(key, config, players)

    def make_source(devices: Sequence[jax.Device]) -> TrainSource:
        return train_source(
            splits("train"),
            config,
            fields=("image",),
            devices=devices,
            seed=config.seed,
        )

    judge = functools.cache(lambda: gate.judge_of(config, splits))

    def validate(parts: State, step: int) -> dict[str, float]:
        return gate.validation(parts, judge(), options.gan)

    def picture(parts: State, step: int) -> UInt8[np.ndarray, "h w 3"]:
        count = config.log.picture_count
        return panel.panel(parts["ema"], options.gan, count=count, seed=config.seed)

    return Task(
        init=init,
        step=functools.partial(steps.step, options=options, players=players),
        make_source=make_source,
        random_batch=functools.partial(random_batch, config),
        schedule={"rates": optimizers.schedule_from_config(config, ramps={})},
        validate=validate,
        picture=picture,
        warnings=watch.warnings,
    )


def initial_parts(
    key: Key[Array, ""], config: ConfigDict, players: steps.Players
) -> State:
    """The state before the first step, by the names of its parts."""
    first, second = jax.random.split(key)
    options = gan_options(config)
    generator = init_generator(first, options)
    discriminator = init_discriminator(second, options)
    zero = jnp.zeros((), jnp.float32)
    return {
        "generator": generator,
        "discriminator": discriminator,
        "ema": generator,
        "opt_g": players.generator.init(generator),
        "opt_d": players.discriminator.init(discriminator),
        "path_mean": zero,
        "mean_w": jnp.zeros(options.style, jnp.float32),
        "ada": {"probability": zero, "signs": zero, "images": zero},
        # Of the last steps that had them, for the log.
        "penalties": {"r1": zero, "path": zero},
    }


def random_batch(config: ConfigDict, devices: int) -> Any:
    """Noise with the shape of the config's training batches."""
    size = config.data.image_size
    lead = (devices, config.train.batch_size // devices)
    pixels = np.random.default_rng(0).integers(0, 256, (*lead, size, size, 3), np.uint8)
    return to_batch({"image": jnp.asarray(pixels)})


def shapes_of_results(config: ConfigDict) -> Any:
    """Shapes of the parts that a run is wanted for."""
    options = gan_options(config)

    def parts() -> State:
        key = jax.random.key(0)
        return {
            "ema": init_generator(key, options),
            "discriminator": init_discriminator(key, options),
        }

    return jax.eval_shape(parts)


def plan(session: Session) -> run.Plan:
    """What a run of the session's config is to do."""
    config, splits = session.config, session.splits

    def describe() -> str:
        return f"{len(splits('train'))} images of {config.data.image_size} px"

    task = functools.partial(gan_task, config, splits)
    return run.Plan(task, describe, IDENTITY, results=RESULTS)
