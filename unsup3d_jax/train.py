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
from contextlib import ExitStack, nullcontext
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
    NotSaved,
    check_workdir,
    claim_workdir,
    load_params,
    lock_workdir,
    newest_step,
    unpacked,
    zeros_like_packed,
)
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import folder, pipeline
from unsup3d_jax.errors import UserError
from unsup3d_jax.hosts import HostLost, Hosts, pace_of
from unsup3d_jax.interrupts import Interrupted, Interrupts
from unsup3d_jax.log import RunLog, duration, say
from unsup3d_jax.train_state import TrainState
from unsup3d_jax.train_step import Objective, train_step

AXIS = "devices"
# Steps dispatched before the host waits for the oldest, at most: a power of two;
# fewer where steps are slow (`hosts.pace_of`). The device always has work, yet a NaN
# or a signal is noticed soon and batches do not pile up.
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
        make_source: devices -> iterator of batches with `state`, `restore` and
            `reorder`.
        validate: (parameters, step) -> numbers for the log; "total" chooses
            the best checkpoint.
        picture: (parameters, step) -> image for `pictures/`.
        depth_range: largest minus smallest depth, scene units; for the watch.
        learns_view: whether the viewpoint is learnt; for the watch.
    """

    init: Callable[[Key[Array, ""]], Any]
    objective: Objective
    weights_at: Callable[[Array], Any]
    constants: Any
    make_source: Callable[[Sequence[jax.Device]], Any]
    validate: Callable[[Any, int], Mapping[str, float]] | None = None
    picture: Callable[[Any, int], UInt8[np.ndarray, "h w 3"]] | None = None
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


def run_devices(config: ConfigDict) -> list[jax.Device]:
    """The devices of a run, of all its processes, in the order of the batch.

    Raises:
        UserError: as `local_devices`; or if several processes are to use some.
    """
    if jax.process_count() == 1:
        return local_devices(config)
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    if config.train.devices:
        raise UserError(
            f"train.devices={config.train.devices}: several processes use all their "
            "devices; leave it at 0."
        )
    if config.train.batch_size < 1 or config.train.batch_size % len(devices):
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide among the "
            f"{len(devices)} devices of {jax.process_count()} processes."
        )
    return devices


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
    task: Task,
    optimizer: optax.GradientTransformation,
    devices: Sequence[jax.Device],
    *,
    skip: bool = False,
    grad_norm_max: float = 0.0,
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The train step under pmap: (state, batch, constants, schedule) -> same.

    One logical state goes in and comes out (`in_axes` None, `out_axes` None);
    it is donated, so parameters and moments exist once. Only the batch has a
    device axis. With several processes `devices` are those of all, and every
    argument and result has this process's part: the state on its own devices,
    the batch's rows for them.

    Args:
        skip, grad_norm_max: see `train_step`.
    """
    step = functools.partial(
        train_step,
        objective=task.objective,
        weights_at=task.weights_at,
        optimizer=optimizer,
        axis_name=AXIS,
        skip=skip,
        grad_norm_max=grad_norm_max,
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

    The host stays some steps ahead; only the flag `finite` of
    each step is fetched, that late, and all metrics of the steps that are
    logged. A line depends on its step alone, so an interrupted run leaves the
    same lines as one that was not; `CLOCK_FIELDS` excepted. The time of the
    first step of a process includes compilation; its line shows it, and it
    counts in no other.

    Args:
        lines: of metrics.jsonl up to the step that the run starts from.

    Attributes:
        healthy_step: newest logged step that no warning was about.
        collapse: why the run has collapsed: warnings on `watch.PATIENCE` lines
            in a row; None while it has not.
    """

    def __init__(
        self, config: ConfigDict, task: Task, log: RunLog, lines: Sequence[Mapping]
    ):
        self._config, self._task, self._log = config, task, log
        self._history: collections.deque[dict] = collections.deque(maxlen=HISTORY)
        self._warned: set[str] = set()
        self.healthy_step = 0
        self.collapse: str | None = None
        self._ill = 0  # lines with warnings, in a row
        self._skipped: list[int] = []
        for line in lines:  # what a run that was not interrupted would know
            if line["split"] == "train":
                self._judge(dict(line))
            elif line.get("event") == "skip":
                self._skipped.append(line["step"])
            elif line.get("event") == "rollback":
                self._ill, self.collapse = 0, None
        self._pending: collections.deque[tuple[int, dict]] = collections.deque()
        self._mark = time.monotonic()
        self._seconds, self._steps = 0.0, 0
        self._compiling = True
        self._step_time = 0.0
        self.total_seconds, self.total_steps = 0.0, 0  # without the first step
        self._first_step_seconds = 0.0

    def push(self, step: int, metrics: dict[str, Array], *, ahead: int) -> None:
        """Takes the metrics of the step just dispatched.

        Args:
            ahead: how many steps may be unfinished afterwards.

        Raises:
            Diverged: if a step that has finished was not finite, and
                train.nan does not let it pass.
        """
        metrics["finite"].copy_to_host_async()
        if self._is_logged(step):
            for value in metrics.values():
                value.copy_to_host_async()
        self._pending.append((step, metrics))
        while len(self._pending) > ahead:
            self._settle(*self._pending.popleft())
        self._log.tick(step, self._current_step_time)

    def flush(self) -> None:
        """Waits for all steps and writes their lines."""
        while self._pending:
            self._settle(*self._pending.popleft())

    @property
    def is_behind(self) -> bool:
        """Whether there are steps that `flush` would wait for."""
        return bool(self._pending)

    @property
    def step_seconds(self) -> float:
        """Mean time of a step so far, the first one's compilation left out."""
        return self.total_seconds / max(self.total_steps, 1)

    def summary(self, start: int, step: int) -> str:
        """What was done since this recorder began at step `start`, for people."""
        text = f"steps {start + 1} to {step}" if step > start else "no new steps"
        if self.total_steps and self.total_seconds > 0:
            rate = self._config.train.batch_size * self.total_steps
            text += f": {duration(self.total_seconds)} of training"
            text += f", {rate / self.total_seconds:.1f} images/s"
        if self._first_step_seconds:
            text += f", first step {self._first_step_seconds:.1f} s"
        if self._skipped:
            text += f", {len(self._skipped)} steps skipped"
        return text

    def restart_clock(self) -> None:
        """Leaves the time since the last step (evaluation, saving) uncounted."""
        self._mark = time.monotonic()

    def _is_logged(self, step: int) -> bool:
        every, last = self._config.log.every, self._config.train.steps
        return step % every == 0 or step in (1, last)

    def _current_step_time(self) -> float:
        return self._seconds / self._steps if self._steps else self._step_time

    def _settle(self, step: int, metrics: dict[str, Array]) -> None:
        finite = float(metrics["finite"]) == 1.0  # waits for the step
        now = time.monotonic()
        self._seconds += now - self._mark
        self._steps += 1
        if self._compiling:
            self._first_step_seconds = now - self._mark
        else:
            self.total_seconds += now - self._mark
            self.total_steps += 1
        self._mark = now
        if not finite:
            self._not_finite(step, metrics)
        if self._is_logged(step):
            self._write(step, metrics)
        if self._compiling:  # what the first step took is not a step's time
            self._compiling = False
            self._seconds, self._steps = 0.0, 0

    def _not_finite(self, step: int, metrics: dict[str, Array]) -> None:
        values = {k: float(metrics[k]) for k in ("total", "grad_norm")}
        what = (
            f"step {step}: loss {values['total']:g}, gradient norm "
            f"{values['grad_norm']:g}"
        )
        if self._config.train.nan == "stop":
            raise Diverged(what)
        self._skipped.append(step)
        self._log.line({"step": step, "split": "event", "event": "skip"} | values)
        self._log.message(f"warning, {what}: skipped ({len(self._skipped)} so far).")
        most = self._config.train.skips_in_a_row
        if self._skipped[-most:] == list(range(step - most + 1, step + 1)):
            raise Diverged(f"{what}, after {most - 1} more that were skipped")

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
        self._log.line(line)
        self._log.progress(line, compiled=self._compiling)
        found = self._judge(line)
        kinds = {text.split(":")[0] for text in found}
        for text in found:  # say it when it starts, not on every line
            if text.split(":")[0] not in self._warned:
                self._log.message(f"warning, step {step}: {text}")
        self._warned = kinds

    def _judge(self, line: dict) -> list[str]:
        """Warnings about a training line, which joins the history."""
        found = []
        if line["step"] > WATCH_FROM * self._config.train.steps:
            found = watch.warnings(
                line,
                list(self._history),
                depth_range=self._task.depth_range,
                # A range that still grows says nothing about what is learnt.
                learns_view=self._task.learns_view
                and line["step"] > self._config.view.warmup_steps,
            )
        self._history.append(line)
        self._ill = self._ill + 1 if found else 0
        # What is found first stays, because steps in flight, whose lines are
        # judged too, are others in a run that was resumed.
        if self.collapse is None and not found:
            self.healthy_step = line["step"]
        if self.collapse is None and self._ill >= watch.PATIENCE:
            self.collapse = f"step {line['step']}: {found[0]}"
        return found


class Trace:
    """A profile of some steps, in `<workdir>/profile`, for TensorBoard or Perfetto.

    Args:
        steps: (first, last), both included; None: no profile.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int] | None):
        self._folder, self._steps = workdir / "profile", steps
        self._running = False

    def expect(self, done: int, last: int) -> None:
        """Says so if a run from step `done` to `last` has not the first one."""
        if self._steps and not done < self._steps[0] <= last:
            say(
                f"warning: --profile={self._steps[0]},{self._steps[1]} begins outside "
                f"of what is left, steps {done + 1} to {last}: no profile is written."
            )

    def before(self, step: int) -> None:
        """Starts with the first step that is asked for."""
        if self._steps and not self._running and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends with the last one, once it is computed."""
        if self._running and self._steps and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # whatever the profiler meets; no matter
                say(f"warning: no profile in {self._folder}: {error}")
            else:
                say(f"profile of steps {self._steps}: {self._folder}")


# --- the loop -------------------------------------------------------------------


class _Collapsed(Exception):
    """All processes leave the loop, to go back to a good checkpoint."""


@dataclasses.dataclass
class _Position:
    """Where a run stands.

    Attributes:
        state: after `step` steps.
        data: position of the data source after as many batches.
        start: step that was read from the workdir.
        lines: of metrics.jsonl up to `start`; elsewhere than in the first
            process, its events only.
        recorder: of the lines that follow.
    """

    state: TrainState
    step: int
    data: dict
    start: int
    lines: list[dict]
    recorder: Recorder


def fit(
    config: ConfigDict,
    task: Task,
    workdir: Path,
    *,
    devices: Sequence[jax.Device],
    interrupts: Interrupts,
    profile: tuple[int, int] | None = None,
) -> TrainState:
    """Trains until `train.steps`, or until interrupted; resumes by itself.

    A checkpoint is begun before the evaluation of its step. So an evaluation
    may be interrupted, or killed, without loss: resuming repeats it.

    Args:
        config: sections train, log, checkpoint, eval.every and seed.
        workdir: claimed already (`checkpoint.claim_workdir`).
        devices: of `run_devices`.
        interrupts: entered already.
        profile: (first, last) step to trace.

    Returns:
        The last state, saved, replicated over this process's devices.

    Raises:
        Diverged: if the loss or a gradient is not finite, and neither skipping
            nor going back is allowed or helps.
        UserError: if checkpoints or the log cannot be written, or the data
            cannot be read; what was computed until then is saved if possible.
        HostLost: if another process of the run is gone.
    """
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    optimizer = train_state.make_optimizer(config)
    hosts = Hosts()

    def initial() -> TrainState:
        return train_state.create(run_key, task.init(init_key), optimizer)

    like = jax.eval_shape(initial)
    source = task.make_source(devices)
    log = RunLog(
        workdir,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        tensorboard=config.log.tensorboard,
        enabled=hosts.first,
    )
    local = [d for d in devices if d.process_index == hosts.index]
    constants, schedule = replicate(
        (task.constants, train_state.schedule_from_config(config)), local
    )
    update = parallel_step(
        task,
        optimizer,
        devices,
        skip=config.train.nan == "skip",
        grad_norm_max=config.train.grad_norm_max,
    )
    trace = Trace(workdir, profile if hosts.first else None)
    last = config.train.steps
    # The last of what may fail before the `try` that closes them.
    checkpoints = (
        Checkpoints(workdir, keep=config.checkpoint.keep) if hosts.first else None
    )

    def begin() -> _Position:
        """The position that the workdir holds: its newest checkpoint, or none."""
        kept: list[dict] = []

        def restore() -> list | None:
            assert checkpoints is not None
            found = checkpoints.restore_newest(like)
            if found is None:
                return None
            kept.append(found[0])
            return [int(found[0]["step"]), found[1]]

        found = hosts.from_first(restore)
        if found is None:
            state, step, position = initial(), 0, None
        else:
            packed = kept[0] if kept else zeros_like_packed(like)
            state = unpacked(hosts.broadcast(packed), like)
            step, position = found
        lines = log.start(None if found is None else step)
        events = hosts.from_first(
            lambda: [line for line in lines if line["split"] == "event"]
        )
        lines = lines or events
        if position is not None:
            source.restore(position)
        rollbacks = sum(event["event"] == "rollback" for event in events)
        if rollbacks:
            source.reorder(rollbacks)
        if checkpoints is not None:
            checkpoints.losses = {
                line["step"]: line["total"]
                for line in lines
                if line["split"] == "val" and "total" in line
            }
        return _Position(
            state=replicate(state, local),
            step=step,
            data=source.state(),
            start=step,
            lines=lines,
            recorder=Recorder(config, task, log, lines),
        )

    def is_due(every: int, step: int) -> bool:
        return every > 0 and step > 0 and (step % every == 0 or step == last)

    def save(at: _Position) -> None:
        def write() -> str | None:
            assert checkpoints is not None
            checkpoints.protect(at.recorder.healthy_step)
            try:
                checkpoints.save(at.state, at.data)
            except FloatingPointError:  # after a loss and a gradient that were not
                return f"step {at.step}, its parameters or moments"
            return None

        if broken := hosts.from_first(write):
            raise Diverged(broken)

    def pass_on(at: _Position) -> None:
        """What the others do while the first one evaluates."""
        if interrupts.requested:
            hosts.ask_to_leave(at.step, "stop")

    def evaluate_now(at: _Position, validate: Callable) -> None:
        def score() -> None:
            if at.step == at.start and any(
                line["split"] == "val" and line["step"] == at.step for line in at.lines
            ):
                return  # done before the run was resumed here
            with hosts.listening(interrupts.request), interrupts.immediate():
                found = validate(one_copy(at.state.params), at.step)
            log.line({"step": at.step, "split": "val", **found})
            if checkpoints is not None and "total" in found:
                checkpoints.losses[at.step] = float(found["total"])

        hosts.from_first(score, waiting=lambda: pass_on(at))

    def draw_now(at: _Position, picture: Callable) -> None:
        path = workdir / "pictures" / f"{at.step}.png"

        def draw() -> None:
            if at.step == at.start and path.exists():
                return
            with hosts.listening(interrupts.request), interrupts.immediate():
                image = picture(one_copy(at.state.params), at.step)
            log.picture(path, image, at.step)

        hosts.from_first(draw, waiting=lambda: pass_on(at))

    def look_and_save(at: _Position) -> None:
        """Checkpoint, evaluation and picture, whichever is due at a step."""
        step = at.step
        validate = task.validate if is_due(config.eval.every, step) else None
        picture = task.picture if is_due(config.log.picture_every, step) else None
        saves = validate or is_due(config.checkpoint.every, step)
        if not (validate or picture or saves):
            return
        at.recorder.flush()
        if saves:
            save(at)
        if validate:
            evaluate_now(at, validate)
        if picture:
            draw_now(at, picture)
        at.recorder.restart_clock()

    def set_pace(at: _Position) -> None:
        """How far to run ahead, now that the time of a step is known.

        All have seen all steps finished here, as `hosts.leave_at` asks.
        """
        at.recorder.flush()
        hosts.pace = hosts.from_first(
            lambda: pace_of(at.recorder.step_seconds, interrupts.deadline, IN_FLIGHT)
        )
        at.recorder.restart_clock()

    def advance(at: _Position) -> None:
        """Trains to the last step, or until all processes leave."""
        look_and_save(at)
        known_at = (at.start // IN_FLIGHT + 2) * IN_FLIGHT
        while at.step < last:
            if at.step == known_at:
                set_pace(at)
            wish = "collapse" if may_go_back(at) else None
            wish = "stop" if interrupts.requested else wish
            reason = hosts.leave_at(at.step, wish)
            if reason == "stop":
                return
            if reason == "collapse":
                raise _Collapsed
            # Waiting for data is a good moment to stop: nothing has begun.
            with interrupts.immediate() if hosts.count == 1 else nullcontext():
                batch = next(source)
            trace.before(at.step + 1)
            at.state, metrics = update(at.state, batch, constants, schedule)
            at.step += 1
            at.data = source.state()
            trace.after(at.step, metrics)
            at.recorder.push(at.step, metrics, ahead=hosts.pace)
            look_and_save(at)
        # What was found so late may not depend on how far the host ran ahead.
        if hosts.from_first(lambda: may_go_back(at)):
            raise _Collapsed

    def may_go_back(at: _Position) -> bool:
        """Whether the run has collapsed, and is to return to a good checkpoint."""
        if at.recorder.collapse is None or not config.train.rollbacks:
            return False
        return checkpoints is not None and good_step(at) is not None

    def good_step(at: _Position) -> int | None:
        """Newest checkpoint before a collapse began, if going back is allowed."""
        assert checkpoints is not None
        used = sum(line.get("event") == "rollback" for line in at.lines)
        if used >= config.train.rollbacks:
            return None
        # One that has not collapsed but diverged: every checkpoint is finite.
        limit = at.recorder.healthy_step if at.recorder.collapse else at.step
        return max((s for s in checkpoints.steps() if s <= limit), default=None)

    def go_back(at: _Position, reason: str) -> bool:
        """Makes the newest good checkpoint the newest one; False if there is none.

        Later checkpoints go first, then one atomic write of the log. Killed in
        between, the run finds its way here again by the same steps.
        """

        def rewind() -> bool:
            assert checkpoints is not None
            checkpoints.wait()
            step = good_step(at)
            if step is None:
                return False
            for later in [s for s in checkpoints.steps() if s > step]:
                checkpoints.delete(later)
            event = {"step": step, "split": "event", "event": "rollback"}
            log.rewrite(step, event | {"reason": reason})
            log.message(
                f"{reason} Going back to checkpoint {step}, with the images in "
                "another order."
            )
            return True

        return hosts.from_first(rewind)

    def finish(at: _Position) -> None:
        at.recorder.flush()
        save(at)
        hosts.from_first(lambda: checkpoints.wait() if checkpoints else None)

    def sum_up(at: _Position) -> None:
        """Says in one line what was done since the start, or since it went back."""
        text = at.recorder.summary(at.start, at.step)
        losses = checkpoints.losses if checkpoints is not None else {}
        finite = [(loss, s) for s, loss in losses.items() if np.isfinite(loss)]
        if finite:
            text += ", best validation loss {:.4f} (step {})".format(*min(finite))
        rollbacks = sum(line.get("event") == "rollback" for line in at.lines)
        text += f", went back {rollbacks} times" if rollbacks else ""
        log.message(f"{text}.")

    at: _Position | None = None

    def unsaved() -> bool:
        if at is None:
            return False
        # One of several waits for the step that all agree on, and for the first
        # one's word that it is written: who leaves early takes the others down.
        saved = newest_step(workdir) or 0 if hosts.count == 1 else 0
        return at.step > max(at.start, saved)

    try:
        at = begin()
        trace.expect(at.step, last)
        with interrupts.deferred(unsaved):
            while True:
                try:
                    try:
                        advance(at)
                    except Interrupted:
                        pass  # out of an evaluation, which resuming will repeat
                    finish(at)
                    sum_up(at)
                    break
                except _Collapsed:
                    trouble: Exception | None = None
                    reason = at.recorder.collapse or "collapse seen elsewhere."
                except Diverged as error:
                    trouble, reason = error, f"training diverged at {error}."
                if not go_back(at, reason):
                    assert trouble is not None  # a collapse asks before it leaves
                    raise trouble
                hosts.next_round()
                at = None  # nothing of it is to be saved any more
                at = begin()
    except Diverged as error:
        raise Diverged(_diverged_text(error, checkpoints, workdir)) from None
    except NotSaved:
        raise
    except (UserError, OSError) as error:
        with interrupts.deferred(unsaved):
            kept = ""
            if at is not None and hosts.count == 1:
                kept = _save_what_is_left(finish, at, error)
        text = (
            str(error)
            if isinstance(error, UserError)
            else (f"cannot write in {workdir}: {error}.")
        )
        raise UserError(f"{text}{kept}") from error
    except jax.errors.JaxRuntimeError as error:
        if hosts.count == 1:
            raise
        raise HostLost(str(error)) from error
    finally:
        if checkpoints is not None:
            checkpoints.close()
        log.close()
        trace.close()
    return at.state


def _diverged_text(
    error: Diverged, checkpoints: Checkpoints | None, workdir: Path
) -> str:
    saved = []
    if checkpoints is not None:
        checkpoints.wait()
        saved = checkpoints.steps()
    kept = f"checkpoint {saved[-1]} is kept" if saved else "no checkpoint yet"
    return (
        f"training diverged at {error}: not finite, or beyond train.grad_norm_max. "
        f"Stopped; {kept} in {workdir}. "
        "Try a lower train.learning_rate or train.clip_norm > 0 in a new workdir."
    )


def _save_what_is_left(
    finish: Callable[[_Position], None], at: _Position, error: Exception
) -> str:
    """Saves the last step after the data or the log have failed; says so.

    A log that cannot be written loses its last lines, but hours of steps are worth
    more. All steps are looked at all the same: none may have been infinite.
    """
    lost = isinstance(error, OSError)  # the line that failed was taken off
    try:
        while at.recorder.is_behind:
            try:
                at.recorder.flush()
            except OSError:
                lost = True
        finish(at)
    except (UserError, OSError, Diverged):
        return ""
    what = f"Step {at.step} is saved{', without the last lines of its log' * lost}"
    return f" {what}: the same command goes on from there."


# --- the task of a config ---------------------------------------------------------


def check_config(config: ConfigDict) -> model.ModelOptions:
    """Checks what a run would otherwise trip over late; returns its options.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    try:
        _check_run(config)
        return model.options_from_config(config)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_run(config: ConfigDict) -> None:
    """Checks all sections that the model's options do not come from."""
    need = functools.partial(model.need, config)
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
            weights=model.loss_weights(config, step),
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
        return visualize.panel(
            params,
            jnp.asarray(images, jnp.float32) / 255.0,
            model.options_from_config(model.config_at(config, step)),
        )

    return Task(
        init=functools.partial(model.init_params, options=options),
        objective=functools.partial(model.objective, options=options),
        weights_at=functools.partial(model.loss_weights, config),
        constants=constants,
        make_source=make_source,
        validate=validate,
        # The supervised baseline has no factors to show.
        picture=None if options.supervised else picture,
        depth_range=config.depth.max - config.depth.min,
        learns_view=not (options.supervised or options.oracle_view),
    )


def initial_params(config: ConfigDict) -> Any:
    """The parameters `fit` starts from, for the untrained baseline."""
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    return model.init_params(init_key, model.options_from_config(config))


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
        Diverged, HostLost: see `fit`.
    """
    check_config(config)
    folder.check_output(config, workdir, "--workdir")
    devices, hosts = run_devices(config), Hosts()
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
        state = fit(
            config,
            task,
            workdir,
            devices=devices,
            interrupts=interrupts,
            profile=profile,
        )
    return one_copy(state.params), int(state.step)
