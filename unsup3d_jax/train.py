"""The training run: one pmapped step, in a loop that never waits for it.

`fit` is the loop, and knows no faces: it takes a `Task`. `train` builds the
task of a config, fits it, and scores the result beside its baselines. The only
`jax.pmap` of the project is here.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from unsup3d_jax import evaluate, model, train_state, visualize, watch
from unsup3d_jax.checkpoint import (
    Checkpoints,
    check_workdir,
    claim_workdir,
    load_params,
    newest_step,
)
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import pipeline
from unsup3d_jax.errors import UserError
from unsup3d_jax.interrupts import Interrupted, Interrupts
from unsup3d_jax.log import Board, MetricsFile, Progress, say
from unsup3d_jax.train_state import TrainState
from unsup3d_jax.train_step import Objective, train_step

AXIS = "devices"
# Steps dispatched before the host waits for the oldest. The device always has
# work, yet a NaN or a signal is noticed soon and batches do not pile up.
IN_FLIGHT = 8
TRAINED_BASELINES = ("supervised", "oracle")
BASELINES = (*evaluate.DESCRIPTIONS, *TRAINED_BASELINES)
HISTORY = 20  # log lines that the gradient's yardstick looks back
# Share of a run before the watch speaks: every start looks collapsed.
WATCH_FROM = 0.02


class Diverged(Exception):
    """The loss or a gradient is not finite; nothing of it was saved."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What `fit` trains.

    Attributes:
        init: key -> {network name: parameters}.
        objective: see `train_step.Objective`.
        weights_at: step -> scheduled weights, traced.
        constants: arrays the objective needs beside parameters.
        make_source: devices -> iterator of batches with `state` and `restore`.
        validate: (parameters, step) -> numbers for the log; "total" chooses
            the best checkpoint.
        picture: parameters -> image for `pictures/`.
        depth_range: largest minus smallest depth, scene units; for the watch.
        learns_view: whether the viewpoint is learnt; for the watch.
    """

    init: Callable[[Key[Array, ""]], Any]
    objective: Objective
    weights_at: Callable[[Array], Any]
    constants: Any
    make_source: Callable[[Sequence[jax.Device]], Any]
    validate: Callable[[Any, int], Mapping[str, float]] | None = None
    picture: Callable[[Any], UInt8[np.ndarray, "h w 3"]] | None = None
    depth_range: float = 0.2
    learns_view: bool = True


# --- devices ------------------------------------------------------------------


def local_devices(config: ConfigDict) -> list[jax.Device]:
    """The devices of a run: `train.devices` of the local ones, 0 for all.

    Raises:
        UserError: if there are fewer, or the batch does not divide among them.
    """
    available = jax.local_devices()
    count = config.train.devices or len(available)
    if not 0 < count <= len(available):
        raise UserError(
            f"train.devices={config.train.devices}: {len(available)} device(s) are "
            "available; 0 takes all."
        )
    if config.train.batch_size < 1 or config.train.batch_size % count:
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide among "
            f"{count} devices; choose a multiple of {count}, or fewer train.devices."
        )
    return available[:count]


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts a tree on all devices as one logical array a leaf.

    This is the placement `parallel_step` returns, so that the first step
    compiles for, and donates, what all later steps get.
    """
    mesh = Mesh(np.array(devices), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def one_copy(tree: Any) -> Any:
    """The copy of a replicated tree that lies on the first device; no transfer."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def parallel_step(
    task: Task, optimizer: optax.GradientTransformation, devices: Sequence[jax.Device]
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The train step under pmap: (state, batch, constants, schedule) -> same.

    One logical state goes in and comes out (`in_axes` None, `out_axes` None);
    it is donated, so parameters and moments exist once. Only the batch has a
    device axis.
    """
    step = functools.partial(
        train_step,
        objective=task.objective,
        weights_at=task.weights_at,
        optimizer=optimizer,
        axis_name=AXIS,
    )
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None, None),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


# --- what a run records ---------------------------------------------------------


class Recorder:
    """Turns metrics that are still being computed into lines of the log.

    The host stays up to `IN_FLIGHT` steps ahead; only the flag `finite` of
    each step is fetched, that late, and all metrics of the steps that are
    logged. A line depends on its step alone, so an interrupted run leaves the
    same lines as one that was not; `CLOCK_FIELDS` excepted. The time of the
    first step of a process includes compilation; its line shows it, and it
    counts in no other.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        metrics_file: MetricsFile,
        board: Board,
        progress: Progress,
        lines: Sequence[Mapping],
    ):
        self._config, self._task = config, task
        self._file, self._board, self._progress = metrics_file, board, progress
        train_lines = [line for line in lines if line["split"] == "train"]
        self._history = collections.deque(train_lines, maxlen=HISTORY)
        self._warned: set[str] = set()
        self._pending: collections.deque[tuple[int, dict]] = collections.deque()
        self._mark = time.monotonic()
        self._seconds, self._steps = 0.0, 0
        self._compiling = True
        self._step_time = 0.0

    def push(self, step: int, metrics: dict[str, Array]) -> None:
        """Takes the metrics of the step just dispatched."""
        self._pending.append((step, metrics))
        while len(self._pending) > IN_FLIGHT:
            self._settle(*self._pending.popleft())
        self._progress.tick(step, self._current_step_time)

    def flush(self) -> None:
        """Waits for all steps and writes their lines."""
        while self._pending:
            self._settle(*self._pending.popleft())

    def restart_clock(self) -> None:
        """Leaves the time since the last step (evaluation, saving) uncounted."""
        self._mark = time.monotonic()

    def _current_step_time(self) -> float:
        return self._seconds / self._steps if self._steps else self._step_time

    def _settle(self, step: int, metrics: dict[str, Array]) -> None:
        finite = float(metrics["finite"]) == 1.0  # waits for the step
        now = time.monotonic()
        self._seconds += now - self._mark
        self._steps += 1
        self._mark = now
        if not finite:
            values = {k: float(metrics[k]) for k in ("total", "grad_norm")}
            raise Diverged(
                f"step {step}: loss {values['total']:g}, gradient norm "
                f"{values['grad_norm']:g}"
            )
        every, last = self._config.log.every, self._config.train.steps
        if step % every == 0 or step in (1, last):
            self._write(step, metrics)
        if self._compiling:  # what the first step took is not a step's time
            self._compiling = False
            self._seconds, self._steps = 0.0, 0

    def _write(self, step: int, metrics: dict[str, Array]) -> None:
        self._step_time = max(self._current_step_time(), 1e-9)
        self._seconds, self._steps = 0.0, 0
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        del values["finite"]
        line = {
            "step": step,
            "split": "train",
            **values,
            "step_time": self._step_time,
            "images_per_second": self._config.train.batch_size / self._step_time,
            "eta": (self._config.train.steps - step) * self._step_time,
        }
        self._file.append(line)
        self._board.scalars(line)
        self._progress.line(line, compiled=self._compiling)
        found = []
        if step > WATCH_FROM * self._config.train.steps:
            found = watch.warnings(
                line,
                list(self._history),
                depth_range=self._task.depth_range,
                learns_view=self._task.learns_view,
            )
        self._history.append(line)
        kinds = {text.split(":")[0] for text in found}
        for text in found:  # say it when it starts, not on every line
            if text.split(":")[0] not in self._warned:
                self._progress.message(f"warning, step {step}: {text}")
        self._warned = kinds


def _save_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image  # not needed by runs without pictures

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    Image.fromarray(image).save(part, format="PNG")
    part.replace(path)


# --- the loop -------------------------------------------------------------------


def fit(
    config: ConfigDict,
    task: Task,
    workdir: Path,
    *,
    devices: Sequence[jax.Device],
    interrupts: Interrupts,
) -> TrainState:
    """Trains until `train.steps`, or until interrupted; resumes by itself.

    Args:
        config: sections train, log, checkpoint, eval.every and seed.
        workdir: claimed already (`checkpoint.claim_workdir`).
        devices: of `local_devices`.
        interrupts: entered already.

    Returns:
        The last state, saved, replicated over `devices`.

    Raises:
        Diverged: if the loss or a gradient is not finite.
    """
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    optimizer = train_state.make_optimizer(config)
    state = train_state.create(run_key, task.init(init_key), optimizer)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    source = task.make_source(devices)
    steps = checkpoints.steps()
    if steps:
        state, position = checkpoints.restore(state, steps[-1])
        source.restore(position)
    step = int(state.step)
    metrics_file = MetricsFile(workdir / "metrics.jsonl")
    lines = metrics_file.truncate(step)
    board = Board(
        workdir / "tensorboard", enabled=config.log.tensorboard, first_step=step + 1
    )
    progress = Progress(config.train.steps, config.train.batch_size)
    recorder = Recorder(config, task, metrics_file, board, progress, lines)

    state, constants, schedule = replicate(
        (state, task.constants, train_state.schedule_from_config(config)), devices
    )
    update = parallel_step(task, optimizer, devices)
    last = config.train.steps

    def is_due(every: int, step: int) -> bool:
        return every > 0 and step > 0 and (step % every == 0 or step == last)

    def evaluate_now(validate: Callable, step: int) -> float | None:
        with interrupts.immediate():
            scores = validate(one_copy(state.params), step)
        line = {"step": step, "split": "val", **scores}
        metrics_file.append(line)
        board.scalars(line)
        return scores.get("total")

    def draw_now(picture: Callable, step: int, path: Path) -> None:
        with interrupts.immediate():
            image = picture(one_copy(state.params))
        _save_png(path, image)
        board.picture("panel", image, step)

    def save_now(loss: float | None) -> None:
        checkpoints.save(state, source.state(), loss=loss)

    def look_and_save(step: int, *, resumed: bool = False) -> None:
        """Evaluation, picture and checkpoint, whichever is due at a step."""
        path = workdir / "pictures" / f"{step}.png"
        has_line = resumed and any(
            line["split"] == "val" and line["step"] == step for line in lines
        )
        validate = task.validate if is_due(config.eval.every, step) else None
        validate = None if has_line else validate
        picture = task.picture if is_due(config.log.picture_every, step) else None
        picture = None if resumed and path.exists() else picture
        saves = validate or is_due(config.checkpoint.every, step)
        if not (validate or picture or saves):
            return
        recorder.flush()
        loss = evaluate_now(validate, step) if validate else None
        if picture:
            draw_now(picture, step, path)
        if saves:
            save_now(loss)
        recorder.restart_clock()

    try:
        with interrupts.deferred():
            try:
                look_and_save(step, resumed=True)
                while step < last and not interrupts.requested:
                    batch = next(source)
                    state, metrics = update(state, batch, constants, schedule)
                    step += 1
                    recorder.push(step, metrics)
                    look_and_save(step)
            except Interrupted:
                pass  # out of an evaluation, which resuming will repeat
            recorder.flush()
            save_now(None)
            checkpoints.wait()
    except Diverged as error:
        checkpoints.wait()
        saved = checkpoints.steps()
        kept = f"checkpoint {saved[-1]} is kept" if saved else "no checkpoint yet"
        raise Diverged(
            f"training diverged at {error}: not finite. Stopped; {kept} in {workdir}. "
            "Try a lower train.learning_rate or train.clip_norm > 0 in a new workdir."
        ) from None
    finally:
        progress.close()
        board.close()
        checkpoints.close()
    return state


# --- the task of a config ---------------------------------------------------------


def check_config(config: ConfigDict) -> model.ModelOptions:
    """Checks what a run would otherwise trip over late; returns its options.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """

    def need(key: str, allowed: bool, rule: str) -> None:
        section, name = key.split(".")
        if not allowed:
            raise UserError(f"{key} must be {rule}, got {config[section][name]!r}.")

    c, ev = config.train, config.eval
    need("train.schedule", c.schedule in ("constant", "cosine"), "constant or cosine")
    need("train.nan", c.nan == "stop", "'stop'")
    for name in ("steps", "batch_size"):
        need(f"train.{name}", c[name] >= 1, "at least 1")
    for name in ("warmup_steps", "weight_decay", "clip_norm", "devices"):
        need(f"train.{name}", c[name] >= 0, "0 or more")
    need("train.learning_rate", c.learning_rate > 0, "greater than 0")
    need("train.constant_fraction", 0 <= c.constant_fraction <= 1, "between 0 and 1")
    for name in ("beta1", "beta2"):
        need(f"train.{name}", 0 <= c[name] < 1, "at least 0 and below 1")
    need("train.depth_full", c.depth_full >= c.depth_start, "depth_start or more")
    for key in ("log.every", "checkpoint.every", "checkpoint.keep", "eval.batch_size"):
        section, name = key.split(".")
        need(key, config[section][name] >= 1, "at least 1")
    need("eval.split", ev.split in ds.SPLITS, f"one of {', '.join(ds.SPLITS)}")
    unknown = [name for name in ev.baselines if name not in BASELINES]
    need("eval.baselines", not unknown, f"any of {', '.join(BASELINES)}")
    if config.seed < 0:
        raise UserError(f"seed must be 0 or more, got {config.seed}.")
    try:
        return model.options_from_config(config)
    except ValueError as error:
        raise UserError(str(error)) from None


Splits = Callable[[str], ds.Dataset]


def lazy_splits(config: ConfigDict) -> Splits:
    """split name -> data set, each loaded when first asked for, and once."""
    return functools.cache(functools.partial(pipeline.load_split, config))


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
            weights=model.loss_weights(config, step),
            batch_size=config.eval.batch_size,
            max_images=config.eval.max_images,
        )
        numbers = {
            k: v for k, v in evaluate.scalars(row).items() if not k.startswith("loss_")
        }
        return {k: v["mean"] for k, v in row["losses"].items()} | numbers

    def picture(params: Any) -> UInt8[np.ndarray, "h w 3"]:
        count = min(config.log.picture_count, len(splits("val")))
        images = splits("val").take(range(count), ["image"])["image"]
        return visualize.panel(
            params, jnp.asarray(images, jnp.float32) / 255.0, options
        )

    return Task(
        init=functools.partial(model.init_params, options=options),
        objective=functools.partial(_objective, options=options),
        weights_at=functools.partial(model.loss_weights, config),
        constants=constants,
        make_source=make_source,
        validate=validate,
        # The supervised baseline has no factors to show.
        picture=None if options.supervised else picture,
        depth_range=config.depth.max - config.depth.min,
        learns_view=not (options.supervised or options.oracle_view),
    )


def _objective(params, constants, batch, weights, *, options, axis_name):
    return model.objective(
        params, constants, batch, weights, options, axis_name=axis_name
    )


def initial_params(config: ConfigDict) -> Any:
    """The parameters `fit` starts from, for the untrained baseline."""
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    return model.init_params(init_key, model.options_from_config(config))


def train(
    config: ConfigDict, workdir: Path, splits: Splits, *, interrupts: Interrupts
) -> tuple[Any, int]:
    """Trains the model of a config, or resumes, in a workdir.

    Returns:
        Parameters on the first device and the step reached, which is below
        `train.steps` if the run was interrupted.

    Raises:
        UserError: for anything the user can fix.
        Diverged: if the loss or a gradient is not finite.
    """
    check_config(config)
    devices = local_devices(config)
    check_workdir(workdir, config)
    done = newest_step(workdir)
    if done is not None and done >= config.train.steps:
        say(f"{workdir}: training is finished ({done} steps).")
        return load_params(workdir)
    task = model_task(config, splits)
    images = len(splits("train"))
    claim_workdir(workdir, config, devices)  # only now: the data is usable
    say(
        f"{'resuming' if done else 'training'} {config.name} in {workdir}"
        f"{f' at step {done}' if done else ''}: {images} images of "
        f"{config.data.image_size} px, {config.train.steps} steps of "
        f"{config.train.batch_size} images, {len(devices)} x {devices[0].device_kind}."
    )
    state = fit(config, task, workdir, devices=devices, interrupts=interrupts)
    return one_copy(state.params), int(state.step)
