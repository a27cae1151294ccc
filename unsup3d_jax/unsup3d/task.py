"""The photo-geometric autoencoder as the engine's task: what `loop.fit` trains."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configuration import need
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import load
from unsup3d_jax.data.batches import to_batch
from unsup3d_jax.data.load import Splits
from unsup3d_jax.data.source import TrainSource, train_source
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine import run, settings, warm_start
from unsup3d_jax.engine.gradient_step import Losses, gradient_step
from unsup3d_jax.engine.gradient_step import init as init_state
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.task import (
    Identity,
    Session,
    State,
    StepContext,
    Task,
    run_keys,
)
from unsup3d_jax.errors import refusing
from unsup3d_jax.evaluation import report
from unsup3d_jax.evaluation.scores import limits_of
from unsup3d_jax.unsup3d import evaluate, model, panel, watch
from unsup3d_jax.unsup3d.options import ModelOptions, loss_weights, options_from_config

TRAINED_BASELINES = ("supervised", "oracle")
BASELINES = (*evaluate.DESCRIPTIONS, *TRAINED_BASELINES)

IDENTITY = Identity(
    meaning=("model.", "view.", "depth.", "light.", "compat.", "data.image_size"),
    on_the_way=("view.warmup_start", "view.warmup_steps"),
    younger=default.YOUNGER,
    defaults=default.get_config,
)


def check_config(config: ConfigDict) -> ModelOptions:
    """Checks what a run would otherwise trip over late; returns its options.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    with refusing():
        options = options_from_config(config)
        settings.check(config)
        _check_run(config)
        return options


def _check_run(config: ConfigDict) -> None:
    """Checks what neither the engine nor the model's options read."""
    check, train, ev = functools.partial(need, config), config.train, config.eval
    later = train.depth_full >= train.depth_start
    check("train.depth_full", later, "depth_start or more")
    # Else the result would know a part of the range, and be used with all of it.
    inside = config.view.warmup_steps <= train.steps
    check("view.warmup_steps", inside, f"at most train.steps, {train.steps}")
    check("eval.split", ev.split in ds.SPLITS, f"one of {', '.join(ds.SPLITS)}")
    unknown = [name for name in ev.baselines if name not in BASELINES]
    check("eval.baselines", not unknown, f"any of {', '.join(BASELINES)}")


def lazy_splits(config: ConfigDict) -> Splits:
    """`load.lazy_splits`; of several processes the first says what is left out."""
    return load.lazy_splits(config, say if jax.process_index() == 0 else None)


def training_fields(config: ConfigDict) -> tuple[str, ...]:
    """Names the fields of `Batch` that training needs on the devices."""
    wanted = {
        "depth": config.model.supervision == "depth",
        "mask": config.model.supervision == "depth",
        "view": config.model.oracle_view,
        "light": config.model.oracle_light,
    }
    return ("image", *(name for name, needed in wanted.items() if needed))


def step_functions(config: ConfigDict, objective: Callable, weights_at: Callable):
    """The parts of a task that follow from an objective of this method's kind.

    Args:
        objective: (params, constants, batch, weights, axis_name=) -> (loss, outputs)
            as `model.objective`.
        weights_at: step -> scheduled weights, traced.

    Returns:
        Keyword arguments of `Task`: step, schedule and warnings.
    """

    def losses_of(
        params: Any, batch: Any, context: StepContext
    ) -> tuple[Float[Array, ""], Losses]:
        loss, outputs = objective(
            params,
            context.constants,
            batch,
            weights_at(context.step),
            axis_name=context.axis_name,
        )
        return loss, Losses(terms=outputs.terms, moments=watch.moments(outputs))

    train, is_given = config.train, config.model.oracle_view
    ramps = {"depth": (train.depth_start, train.depth_full)}
    learns_view = not (config.model.supervision != "none" or is_given)

    def warnings(line: Mapping[str, Any], history: Sequence[Mapping]) -> list[str]:
        return watch.warnings(
            line,
            history,
            depth_range=config.depth.max - config.depth.min,
            # A range that still grows says nothing about what is learnt.
            learns_view=learns_view and line["step"] > config.view.warmup_steps,
        )

    return {
        "step": functools.partial(
            gradient_step,
            objective=losses_of,
            optimizer=optimizers.make_optimizer(config),
            statistics=watch.statistics,
        ),
        "schedule": {"rates": optimizers.schedule_from_config(config, ramps=ramps)},
        "warnings": warnings,
    }


def model_task(config: ConfigDict, splits: Splits, constants: Any = None) -> Task:
    """The photo-geometric autoencoder on the configured data.

    Args:
        constants: of `model.load_constants`, which is called if it is None.
    """
    options = check_config(config)
    if constants is None:
        constants = model.load_constants(config)

    def init(key: Key[Array, ""]) -> State:
        params = model.init_params(key, options)
        return init_state(params, optimizers.make_optimizer(config))

    def make_source(devices: Sequence[jax.Device]) -> TrainSource:
        return train_source(
            splits("train"),
            config,
            fields=training_fields(config),
            devices=devices,
            seed=config.seed,
        )

    def validate(parts: State, step: int) -> dict[str, float]:
        row = evaluate.evaluate(
            parts["params"],
            splits("val"),
            options,
            constants=constants,
            weights=loss_weights(config, step),
            limits=limits_of(config),
        )
        numbers = {
            k: v for k, v in report.scalars(row).items() if not k.startswith("loss_")
        }
        return {k: v["mean"] for k, v in row["losses"].items()} | numbers

    def picture(parts: State, step: int) -> UInt8[np.ndarray, "h w 3"]:
        count = min(config.log.picture_count, len(splits("val")))
        images = splits("val").take(range(count), ["image"])["image"]
        return panel.panel(
            parts["params"],
            jnp.asarray(images, jnp.float32) / 255.0,
            options,
            view_range=loss_weights(config, step).view_range,
        )

    return Task(
        init=init,
        make_source=make_source,
        random_batch=functools.partial(random_batch, config),
        constants=constants,
        validate=validate,
        # The supervised baseline has no factors to show.
        picture=None if options.supervised else picture,
        **step_functions(
            config,
            functools.partial(model.objective, options=options),
            functools.partial(loss_weights, config),
        ),
    )


def random_batch(config: ConfigDict, devices: int) -> Any:
    """Noise with the fields and shapes of the config's training batches."""
    rng = np.random.default_rng(0)
    size = config.data.image_size
    lead = (devices, config.train.batch_size // devices)
    arrays = {
        "image": rng.integers(0, 256, (*lead, size, size, 3), np.uint8),
        "depth": rng.uniform(0.9, 1.1, (*lead, size, size)).astype(np.float32),
        "mask": np.ones((*lead, size, size), bool),
        "view": np.zeros((*lead, 6), np.float32),
        "light": np.tile(np.array([0.5, 0.5, 0, 0, 1], np.float32), (*lead, 1)),
    }
    return to_batch({k: jnp.asarray(arrays[k]) for k in training_fields(config)})


def initial_params(config: ConfigDict) -> Any:
    """What `loop.fit` starts from without `train.init_from`: the untrained baseline."""
    init_key, _ = run_keys(config.seed)
    return model.init_params(init_key, options_from_config(config))


def read_start(config: ConfigDict) -> warm_start.Start:
    """What `train.init_from`, which is set, names.

    Raises:
        UserError: see `warm_start.read`.
    """
    like = jax.eval_shape(lambda: {"params": initial_params(config)})
    return warm_start.read(config, like, IDENTITY)


def plan(
    session: Session, make_task: Callable[[], Task] | None = None, note: str = ""
) -> run.Plan:
    """What a run of the session's config is to do.

    Args:
        make_task: None: `model_task`.
        note: what else to say when it begins.
    """
    config, splits = session.config, session.splits

    def describe() -> str:
        return f"{len(splits('train'))} images of {config.data.image_size} px{note}"

    task = make_task or functools.partial(model_task, config, splits)
    start = functools.partial(read_start, config) if config.train.init_from else None
    return run.Plan(task, describe, IDENTITY, start=start)


def train(session: Session, workdir: Path) -> tuple[Any, int]:
    """Trains the model of the session's config, or resumes, in a workdir.

    Returns:
        Parameters and the step reached, as `run.train` has them.

    Raises:
        UserError: for anything the user can fix.
        Diverged, HostLost: see `loop.fit`.
    """
    check_config(session.config)
    found, step = run.train(session, workdir, plan(session))
    return (None if found is None else found["params"]), step
