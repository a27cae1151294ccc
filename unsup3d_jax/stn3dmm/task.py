"""The 3DMM-STN as the engine's task: what `loop.fit` trains."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.configs.stn3dmm import default
from unsup3d_jax.data.batches import to_batch
from unsup3d_jax.data.load import Splits
from unsup3d_jax.data.source import TrainSource, train_source
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine import run, warm_start
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
from unsup3d_jax.stn3dmm import compat, evaluate, localiser, panel, people, watch
from unsup3d_jax.stn3dmm.layers import POSE_SIZE
from unsup3d_jax.stn3dmm.objective import objective
from unsup3d_jax.stn3dmm.options import (
    Face,
    StnOptions,
    check_config,
    load_face,
    options_from_config,
)

IDENTITY = Identity(
    harmless=("visibility.eval",),
    meaning=("face.", "camera.", "localiser.", "data.image_size"),
    # Which file the first weights are from is no matter once they are trained.
    on_the_way=("localiser.weights",),
    younger=default.YOUNGER,
    defaults=default.get_config,
)


def lazy_splits(config: ConfigDict) -> Splits:
    """`people.lazy_splits`; of several processes the first says what is left out.

    The face model is read when a split is first asked for.
    """
    first = jax.process_index() == 0

    @functools.cache
    def splits() -> Splits:
        face = load_face(config)
        return people.lazy_splits(config, face, say if first else lambda line: None)

    return lambda split: splits()(split)


def training_fields(config: ConfigDict) -> tuple[str, ...]:
    """Names the fields of `Batch` that training needs on the devices."""
    loss = config.loss
    wanted = {
        "keypoints": loss.landmark > 0,
        "latent": loss.theta > 0 or loss.vertices > 0,
    }
    return ("image", *(name for name, needed in wanted.items() if needed))


def initial_params(config: ConfigDict, options: StnOptions, key: Key[Array, ""]) -> Any:
    """What `loop.fit` starts from without `train.init_from`.

    Raises:
        UserError: if localiser.weights names no usable file.
    """
    params = localiser.init_params(key, options.localiser, options.image_size)
    if path := config.localiser.weights:
        params = localiser.with_vgg_face(params, path, options.localiser)
    return params


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The engine's; the last layer's rates of its own where the config says so."""
    if not config.compat.release_rates:
        return optimizers.make_optimizer(config)

    def by_place(tree: Any, of_kernel: Any, of_bias: Any, else_: Any) -> Any:
        def one(path: tuple[Any, ...], _: Any) -> Any:
            names = [key.key for key in path]
            if localiser.HEAD not in names:
                return else_
            return of_kernel if names[-1] == "kernel" else of_bias

        return jax.tree.map_with_path(one, tree)

    def faster(updates: Any, params: Any) -> Any:
        factors = by_place(updates, *compat.HEAD_RATES, 1.0)
        return jax.tree.map(lambda u, factor: factor * u, updates, factors)

    return optax.chain(
        optimizers.make_optimizer(
            config, decays=lambda params: by_place(params, True, False, True)
        ),
        optax.stateless(faster),
    )


def stn_task(config: ConfigDict, splits: Splits) -> Task:
    """The localiser on the configured people."""
    check_config(config)
    face = load_face(config)
    options = options_from_config(config, face)
    optimizer = make_optimizer(config)

    def init(key: Key[Array, ""]) -> State:
        params = initial_params(config, options, key)
        return init_state(params, optimizer)

    def make_source(devices: Sequence[jax.Device]) -> TrainSource:
        dataset = splits("train")
        if config.broken.mirror:
            dataset = dataclasses.replace(dataset, keypoint_flip=())
        return train_source(
            dataset,
            config,
            fields=training_fields(config),
            devices=devices,
            seed=config.seed,
        )

    def losses_of(
        params: Any, batch: Any, context: StepContext
    ) -> tuple[Float[Array, ""], Losses]:
        begun = context.step >= context.schedule["image_start"]
        loss, outputs = objective(
            params,
            context.constants,
            batch,
            options,
            image_weight=jnp.where(begun, 1.0, 0.0),
            axis_name=context.axis_name,
        )
        found = watch.moments(outputs, options.image_size)
        return loss, Losses(terms=outputs.terms, moments=found)

    judge = functools.cache(lambda: evaluate.judge_of(config, face))

    def validate(parts: State, step: int) -> dict[str, float]:
        return evaluate.validation(
            parts["params"],
            splits("val"),
            judge(),
            options.localiser,
            config.eval.batch_size,
        )

    def picture(parts: State, step: int) -> UInt8[np.ndarray, "h w 3"]:
        dataset = splits("val")
        count = min(config.log.picture_count, len(dataset))
        shown = dataset.take(range(count), ["image", "keypoints"])
        # Of several views the first.
        image, points = (
            shown[name].reshape(count, -1, *shown[name].shape[-k:])[:, 0]
            for name, k in (("image", 3), ("keypoints", 2))
        )
        return panel.panel(
            parts["params"],
            image,
            face.grid,
            face.camera,
            options.localiser,
            mode=config.visibility.eval,
            truth=points[..., :2],
        )

    return Task(
        init=init,
        picture=picture,
        step=functools.partial(
            gradient_step,
            objective=losses_of,
            optimizer=optimizer,
            statistics=watch.statistics,
        ),
        make_source=make_source,
        random_batch=functools.partial(random_batch, config, face),
        constants=face.grid,
        schedule={
            "rates": optimizers.schedule_from_config(config, ramps={}),
            "image_start": jnp.asarray(config.loss.image_start, jnp.int32),
        },
        validate=validate,
        warnings=watch.warnings,
    )


def random_batch(config: ConfigDict, face: Face, devices: int) -> Any:
    """Noise with the fields and shapes of the config's training batches."""
    rng = np.random.default_rng(0)
    size = config.data.image_size
    # Photos have no axis of views.
    views = (config.data.views,) if config.data.name == "open_faces" else ()
    lead = (devices, config.train.batch_size // devices, *views)
    coefficients = len(face.columns) - POSE_SIZE
    points = rng.uniform(0, size - 1, (*lead, len(face.grid.landmark_mean), 3))
    arrays = {
        "image": rng.integers(0, 256, (*lead, size, size, 3), np.uint8),
        "keypoints": points.astype(np.float32),
        "latent": np.zeros((*lead, POSE_SIZE + coefficients), np.float32),
    }
    return to_batch({k: jnp.asarray(arrays[k]) for k in training_fields(config)})


def shapes_of_params(config: ConfigDict) -> Any:
    """Shapes of the parameters of a config's localiser."""
    options = options_from_config(config, load_face(config))
    key, _ = run_keys(config.seed)
    return jax.eval_shape(
        lambda: localiser.init_params(key, options.localiser, options.image_size)
    )


def read_start(config: ConfigDict) -> warm_start.Start:
    """What `train.init_from`, which is set, names.

    Raises:
        UserError: see `warm_start.read`.
    """
    return warm_start.read(config, {"params": shapes_of_params(config)}, IDENTITY)


def plan(session: Session) -> run.Plan:
    """What a run of the session's config is to do."""
    config, splits = session.config, session.splits

    def describe() -> str:
        count, views = len(splits("train")), config.data.views
        of = f"{views} views of {count} people" if views > 1 else f"{count} people"
        return f"{of}, {config.data.image_size} px"

    task = functools.partial(stn_task, config, splits)
    start = functools.partial(read_start, config) if config.train.init_from else None
    return run.Plan(task, describe, IDENTITY, start=start)


def train(session: Session, workdir: Any) -> tuple[Any, int]:
    """Trains the session's config, or resumes, in a workdir.

    Returns:
        Parameters and the step reached, as `run.train` has them.

    Raises:
        UserError: for anything the user can fix.
        Diverged, HostLost: see `loop.fit`.
    """
    check_config(session.config)
    found, step = run.train(session, workdir, plan(session))
    return (None if found is None else found["params"]), step
