"""Trains the model of a config, from its data to its last checkpoint."""

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import folder, pipeline
from unsup3d_jax.engine import loop, parallel
from unsup3d_jax.engine.checkpoint import (
    check_workdir,
    claim_workdir,
    load_params,
    lock_workdir,
    newest_step,
)
from unsup3d_jax.engine.hosts import Hosts
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.train_step import Task
from unsup3d_jax.errors import UserError
from unsup3d_jax.show import pictures
from unsup3d_jax.unsup3d import evaluate, model
from unsup3d_jax.unsup3d.options import ModelOptions, loss_weights, options_from_config
from unsup3d_jax.unsup3d.options import need as need_of

TRAINED_BASELINES = ("supervised", "oracle")
BASELINES = (*evaluate.DESCRIPTIONS, *TRAINED_BASELINES)


def check_config(config: ConfigDict) -> ModelOptions:
    """Checks what a run would otherwise trip over late; returns its options.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    try:
        _check_run(config)
        return options_from_config(config)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_run(config: ConfigDict) -> None:
    """Checks all sections that the model's options do not come from."""
    need = functools.partial(need_of, config)
    c, log, ev = config.train, config.log, config.eval
    need("seed", config.seed >= 0, "0 or more")
    need("train.optimizer", c.optimizer in ("adam", "muon"), "adam or muon")
    need("train.schedule", c.schedule in ("constant", "cosine"), "constant or cosine")
    need("train.nan", c.nan in ("stop", "skip"), "'stop' or 'skip'")
    for name in ("steps", "batch_size", "skips_in_a_row"):
        need(f"train.{name}", c[name] >= 1, "at least 1")
    for name in (
        "warmup_steps",
        "weight_decay",
        "clip_norm",
        "devices",
        "grad_norm_max",
        "rollbacks",
        "depth_start",
    ):
        need(f"train.{name}", c[name] >= 0, "0 or more")
    need("train.learning_rate", c.learning_rate > 0, "greater than 0")
    for name, scale in c.lr_scale.items():
        need(f"train.lr_scale.{name}", scale >= 0, "0 or more")
    need("train.constant_fraction", 0 <= c.constant_fraction <= 1, "between 0 and 1")
    for name in ("beta1", "beta2"):
        need(f"train.{name}", 0 <= c[name] < 1, "at least 0 and below 1")
    need("train.depth_full", c.depth_full >= c.depth_start, "depth_start or more")
    # Else the result would know a part of the range, and be used with all of it.
    warm = config.view.warmup_steps
    need("view.warmup_steps", warm <= c.steps, f"at most train.steps, {c.steps}")
    need("log.every", log.every >= 1, "at least 1")
    need("log.picture_every", log.picture_every >= 0, "0 or more")
    need("log.picture_count", log.picture_count >= 1, "at least 1")
    need("checkpoint.every", config.checkpoint.every >= 1, "at least 1")
    need("checkpoint.keep", config.checkpoint.keep >= 1, "at least 1")
    need("checkpoint.deadline", config.checkpoint.deadline > 0, "greater than 0")
    need("eval.batch_size", ev.batch_size >= 1, "at least 1")
    for name in ("every", "max_images", "baseline_steps"):
        need(f"eval.{name}", ev[name] >= 0, "0 or more")
    need("eval.split", ev.split in ds.SPLITS, f"one of {', '.join(ds.SPLITS)}")
    unknown = [name for name in ev.baselines if name not in BASELINES]
    need("eval.baselines", not unknown, f"any of {', '.join(BASELINES)}")


Splits = Callable[[str], ds.Dataset]


def lazy_splits(config: ConfigDict) -> Splits:
    """split name -> data set, each loaded when first asked for, and once.

    What a split leaves out is said when it is loaded: somebody whose photos are
    mostly of a kind that is not read should not learn it from the result.
    """

    @functools.cache
    def load(split: str) -> ds.Dataset:
        dataset = pipeline.load_split(config, split)
        remark = ds.remark(dataset.report)
        if remark and jax.process_index() == 0:
            say(f"data: {remark}.")
        return dataset

    return load


def model_task(config: ConfigDict, splits: Splits) -> Task:
    """The photo-geometric autoencoder on the configured data."""
    options = check_config(config)
    constants = model.load_constants(config)

    def make_source(devices: Sequence[jax.Device]) -> pipeline.TrainSource:
        return pipeline.train_source(
            splits("train"), config, devices=devices, seed=config.seed
        )

    def validate(params: Any, step: int) -> dict[str, float]:
        row = evaluate.evaluate(
            params,
            splits("val"),
            options,
            constants=constants,
            weights=loss_weights(config, step),
            batch_size=config.eval.batch_size,
            max_images=config.eval.max_images,
        )
        numbers = {
            k: v for k, v in evaluate.scalars(row).items() if not k.startswith("loss_")
        }
        return {k: v["mean"] for k, v in row["losses"].items()} | numbers

    def picture(params: Any, step: int) -> UInt8[np.ndarray, "h w 3"]:
        count = min(config.log.picture_count, len(splits("val")))
        images = splits("val").take(range(count), ["image"])["image"]
        return pictures.panel(
            params,
            jnp.asarray(images, jnp.float32) / 255.0,
            options,
            view_range=loss_weights(config, step).view_range,
        )

    return Task(
        init=functools.partial(model.init_params, options=options),
        objective=functools.partial(model.objective, options=options),
        weights_at=functools.partial(loss_weights, config),
        constants=constants,
        make_source=make_source,
        validate=validate,
        # The supervised baseline has no factors to show.
        picture=None if options.supervised else picture,
        depth_range=config.depth.max - config.depth.min,
        learns_view=not (options.supervised or options.oracle_view),
    )


def initial_params(config: ConfigDict) -> Any:
    """The parameters `loop.fit` starts from, for the untrained baseline."""
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    return model.init_params(init_key, options_from_config(config))


def train(
    config: ConfigDict,
    workdir: Path,
    splits: Splits,
    *,
    interrupts: Interrupts,
    profile: tuple[int, int] | None = None,
) -> tuple[Any, int]:
    """Trains the model of a config, or resumes, in a workdir.

    With several processes, only the first touches the workdir.

    Returns:
        Parameters on the first device of this process (None if training was
        finished already and this is not the first process), and the step
        reached, which is below `train.steps` if the run was interrupted.

    Raises:
        UserError: for anything the user can fix.
        Diverged, HostLost: see `loop.fit`.
    """
    check_config(config)
    folder.check_output(config, workdir, "--workdir")
    devices, hosts = parallel.run_devices(config), Hosts()
    with ExitStack() as held:
        lock = functools.cache(lambda: held.enter_context(lock_workdir(workdir)))

        def look() -> int | None:
            if workdir.is_dir():  # before hours of data preparation
                lock()
            check_workdir(workdir, config)
            return newest_step(workdir)

        done = hosts.from_first(look)
        if done is not None and done >= config.train.steps:
            params = []

            def load() -> int:
                found, step = load_params(workdir)
                params.append(found)
                return step

            step = hosts.from_first(load)
            if step >= config.train.steps:  # else the newest one is damaged
                if hosts.first:
                    say(f"{workdir}: training is finished ({step} steps).")
                return (params[0] if params else None), step
        task = model_task(config, splits)
        images = len(splits("train"))

        def claim() -> None:  # only now: the data is usable
            lock()  # another process may have made the folder since
            claim_workdir(workdir, config, devices)

        hosts.from_first(claim)
        if hosts.first:
            say(
                f"{'resuming' if done else 'training'} {config.name} in {workdir}"
                f"{f' at step {done}' if done else ''}: {images} images of "
                f"{config.data.image_size} px, {config.train.steps} steps of "
                f"{config.train.batch_size} images, {len(devices)} x "
                f"{devices[0].device_kind}"
                f"{f' in {hosts.count} processes' if hosts.count > 1 else ''}."
            )
        state = loop.fit(
            config,
            task,
            workdir,
            devices=devices,
            interrupts=interrupts,
            profile=profile,
        )
    return parallel.one_copy(state.params), int(state.step)
