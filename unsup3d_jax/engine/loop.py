"""The training loop: it never waits for a step, and never loses one.

`fit` knows no method: it takes a `Task`. What stays the same while a run goes on is
a `_Run`, what changes a `_Position`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.checkpoint import Checkpoints, NotSaved
from unsup3d_jax.engine.hosts import HostLost, Hosts, pace_of
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.log import RunLog
from unsup3d_jax.engine.packing import unpacked, zeros_like_packed
from unsup3d_jax.engine.recorder import Diverged, Recorder, Trace
from unsup3d_jax.engine.run_report import Page
from unsup3d_jax.engine.task import RunState, Session, Task, initial_state
from unsup3d_jax.engine.workdir import newest_step
from unsup3d_jax.errors import UserError

# Steps dispatched before the host waits for the oldest, at most: a power of two;
# fewer where steps are slow (`hosts.pace_of`). The device always has work, yet a NaN
# or a signal is noticed soon and batches do not pile up.
IN_FLIGHT = 8


def fit(
    session: Session, task: Task, workdir: Path, *, devices: Sequence[jax.Device]
) -> RunState:
    """Trains until `train.steps`, or until interrupted; resumes by itself.

    A checkpoint is begun before the evaluation of its step. So an evaluation
    may be interrupted, or killed, without loss: resuming repeats it.

    Args:
        session: of its config the sections train, log, checkpoint, eval.every and
            seed are read.
        workdir: claimed already (`workdir.claim_workdir`).
        devices: of `parallel.run_devices`.

    Returns:
        The last state, saved, replicated over this process's devices.

    Raises:
        Diverged: if the loss or a gradient is not finite, and neither skipping
            nor going back is allowed or helps.
        UserError: if checkpoints or the log cannot be written, or the data
            cannot be read; what was computed until then is saved if possible.
        HostLost: if another process of the run is gone.
    """
    run, interrupts = _Run(session, task, workdir, devices), session.interrupts
    at: _Position | None = None

    def unsaved() -> bool:
        if at is None:
            return False
        # One of several waits for the step that all agree on, and for the first
        # one's word that it is written: who leaves early takes the others down.
        saved = newest_step(workdir) or 0 if run.hosts.count == 1 else 0
        return at.step > max(at.start, saved)

    try:
        at = run.begin()
        run.trace.expect(at.step, run.last)
        with interrupts.deferred(unsaved):
            while not run.reaches_its_end(at):
                at = None  # nothing of it is to be saved any more
                at = run.begin()
    except Diverged as error:
        run.note_divergence(at, error)
        raise Diverged(_diverged_text(error, run.checkpoints, workdir)) from None
    except NotSaved:
        raise
    except (UserError, OSError) as error:
        with interrupts.deferred(unsaved):
            kept = ""
            if at is not None and run.hosts.count == 1:
                kept = _save_what_is_left(run, at, error)
        text = (
            str(error)
            if isinstance(error, UserError)
            else (f"cannot write in {workdir}: {error}.")
        )
        raise UserError(f"{text}{kept}") from error
    except jax.errors.JaxRuntimeError as error:
        if run.hosts.count == 1:
            raise
        raise HostLost(str(error)) from error
    finally:
        run.close()
    return at.state


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

    state: RunState
    step: int
    data: dict
    start: int
    lines: list[dict]
    recorder: Recorder

    @property
    def rollbacks(self) -> int:
        """How often the run has gone back until now."""
        return sum(line.get("event") == "rollback" for line in self.lines)


class _Run:
    """What a run has from its start to its end; arguments as of `fit`.

    Attributes:
        hosts: the processes of the run.
        checkpoints: None elsewhere than in the first process.
        last: step at which it is finished.
    """

    def __init__(
        self,
        session: Session,
        task: Task,
        workdir: Path,
        devices: Sequence[jax.Device],
    ):
        config = session.config
        self._config, self._task, self._workdir = config, task, workdir
        self._interrupts = session.interrupts
        self.hosts = hosts = Hosts()
        self.last = config.train.steps
        self._like = jax.eval_shape(lambda: initial_state(task, config.seed))
        self._source = task.make_source(devices)
        self._page = Page(workdir, lambda text: self._log.message(text))
        self._log = RunLog(
            workdir,
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            tensorboard=config.log.tensorboard,
            hears=self._page.add,
            enabled=hosts.first,
        )
        self._devices = [d for d in devices if d.process_index == hosts.index]
        self._constants, self._schedule = parallel.replicate(
            (task.constants, task.schedule), self._devices
        )
        self._update = parallel.parallel_step(
            task,
            devices,
            skip=config.train.nan == "skip",
            grad_norm_max=config.train.grad_norm_max,
        )
        self.trace = Trace(workdir, session.profile if hosts.first else None)
        # The last of what may fail: nobody closes it before `fit` has all of it.
        self.checkpoints = (
            Checkpoints(workdir, keep=config.checkpoint.keep) if hosts.first else None
        )

    def close(self) -> None:
        """Ends what writes in the background."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.hosts.first:
            self._page.write(at_once=True)
        self._log.close()
        self.trace.close()

    # --- from the workdir, and back ---

    def begin(self) -> _Position:
        """The position that the workdir holds: its newest checkpoint, or none."""
        hosts, checkpoints = self.hosts, self.checkpoints
        kept: list[dict] = []

        def restore() -> list | None:
            assert checkpoints is not None
            found = checkpoints.restore_newest(self._like, repeats=self._task.repeats)
            if found is None:
                return None
            kept.append(found[0])
            return [int(found[0]["step"]), found[1]]

        found = hosts.from_first(restore)
        if found is None:
            state = initial_state(self._task, self._config.seed)
            step, position = 0, None
        else:
            packed = kept[0] if kept else zeros_like_packed(self._like)
            state = unpacked(hosts.broadcast(packed), self._like)
            step, position = found
        lines = self._log.start(None if found is None else step)
        if hosts.first:
            self._page.begin(lines)
            self._page.write()
        events = hosts.from_first(
            lambda: [line for line in lines if line["split"] == "event"]
        )
        lines = lines or events
        if position is not None:
            self._source.restore(position)
        if checkpoints is not None:
            checkpoints.losses = {
                line["step"]: line["total"]
                for line in lines
                if line["split"] == "val" and "total" in line
            }
        at = _Position(
            state=parallel.replicate(state, self._devices),
            step=step,
            data={},
            start=step,
            lines=lines,
            recorder=Recorder(self._config, self._task, self._log, lines),
        )
        if at.rollbacks:
            self._source.reorder(at.rollbacks)
        at.data = self._source.state()
        return at

    def save(self, at: _Position) -> None:
        """Begins a checkpoint.

        Raises:
            Diverged: if the state holds numbers that are not finite.
        """

        def write() -> str | None:
            assert self.checkpoints is not None
            self.checkpoints.protect(at.recorder.healthy_step)
            try:
                self.checkpoints.save(at.state, at.data)
            except FloatingPointError:  # after a loss and a gradient that were not
                return f"step {at.step}, its parameters or moments"
            return None

        if broken := self.hosts.from_first(write):
            raise Diverged(broken)

    def finish(self, at: _Position) -> None:
        """Returns when all steps are logged and the last one is on disk."""
        at.recorder.flush()
        self.save(at)
        self.hosts.from_first(
            lambda: self.checkpoints.wait() if self.checkpoints else None
        )

    # --- forward ---

    def reaches_its_end(self, at: _Position) -> bool:
        """Trains to the last step, or until interrupted, and saves.

        Returns:
            False if the run went back to a good checkpoint, to begin there anew.

        Raises:
            Diverged: if it cannot go back.
        """
        try:
            try:
                self._advance(at)
            except Interrupted:
                pass  # out of an evaluation, which resuming will repeat
            self.finish(at)
            self._sum_up(at)
            return True
        except _Collapsed:
            trouble: Exception | None = None
            reason = at.recorder.collapse or "collapse seen elsewhere."
        except Diverged as error:
            trouble, reason = error, f"training diverged at {error}."
        if not self._go_back(at, reason):
            assert trouble is not None  # a collapse asks before it leaves
            raise trouble
        self.hosts.next_round()
        return False

    def _advance(self, at: _Position) -> None:
        """Trains to the last step, or until all processes leave."""
        hosts, interrupts = self.hosts, self._interrupts
        self._look_and_save(at)
        known_at = (at.start // IN_FLIGHT + 2) * IN_FLIGHT
        while at.step < self.last:
            if at.step == known_at:
                self._set_pace(at)
            wish = "collapse" if self._may_go_back(at) else None
            wish = "stop" if interrupts.requested else wish
            reason = hosts.leave_at(at.step, wish)
            if reason == "stop":
                return
            if reason == "collapse":
                raise _Collapsed
            # Waiting for data is a good moment to stop: nothing has begun.
            with interrupts.immediate() if hosts.count == 1 else nullcontext():
                batch = next(self._source)
            self.trace.before(at.step + 1)
            at.state, metrics = self._update(
                at.state, batch, self._constants, self._schedule
            )
            at.step += 1
            at.data = self._source.state()
            self.trace.after(at.step, metrics)
            at.recorder.push(at.step, metrics, ahead=hosts.pace)
            self._look_and_save(at)
        # What was found so late may not depend on how far the host ran ahead.
        if hosts.from_first(lambda: self._may_go_back(at)):
            raise _Collapsed

    def _set_pace(self, at: _Position) -> None:
        """How far to run ahead, now that the time of a step is known.

        All have seen all steps finished here, as `hosts.leave_at` asks.
        """
        at.recorder.flush()
        deadline = self._interrupts.deadline
        self.hosts.pace = self.hosts.from_first(
            lambda: pace_of(at.recorder.step_seconds, deadline, IN_FLIGHT)
        )
        at.recorder.restart_clock()

    def _look_and_save(self, at: _Position) -> None:
        """Checkpoint, evaluation and picture, whichever is due at a step."""
        config, step = self._config, at.step

        def is_due(every: int) -> bool:
            return every > 0 and step > 0 and (step % every == 0 or step == self.last)

        validate = self._task.validate if is_due(config.eval.every) else None
        picture = self._task.picture if is_due(config.log.picture_every) else None
        saves = validate or is_due(config.checkpoint.every)
        if not (validate or picture or saves):
            return
        at.recorder.flush()
        if saves:
            self.save(at)
        if validate:
            self._evaluate(at, validate)
        if picture:
            self._draw(at, picture)
        if self.hosts.first:
            self._page.write()
        at.recorder.restart_clock()

    def _evaluate(self, at: _Position, validate: Callable) -> None:
        def score() -> None:
            if at.step == at.start and any(
                line["split"] == "val" and line["step"] == at.step for line in at.lines
            ):
                return  # done before the run was resumed here
            found = self._leavable(validate, at)
            self._log.line({"step": at.step, "split": "val", **found})
            if self.checkpoints is not None and "total" in found:
                self.checkpoints.losses[at.step] = float(found["total"])

        self._while_others_wait(score, at)

    def _draw(self, at: _Position, picture: Callable) -> None:
        path = self._workdir / "pictures" / f"{at.step}.png"

        def draw() -> None:
            if at.step == at.start and path.exists():
                return
            self._log.picture(path, self._leavable(picture, at), at.step)

        self._while_others_wait(draw, at)

    def _leavable(self, look: Callable, at: _Position) -> Any:
        """What `look` finds in the parameters; a signal ends it at once."""
        with (
            self.hosts.listening(self._interrupts.request),
            self._interrupts.immediate(),
        ):
            return look(parallel.one_copy(at.state.parts), at.step)

    def _while_others_wait(self, act: Callable[[], None], at: _Position) -> None:
        """Acts in the first process; a signal to another reaches it."""

        def pass_on() -> None:
            if self._interrupts.requested:
                self.hosts.ask_to_leave(at.step, "stop")

        self.hosts.from_first(act, waiting=pass_on)

    def _sum_up(self, at: _Position) -> None:
        """Says in one line what was done since the start, or since it went back."""
        text = at.recorder.summary(at.start, at.step)
        losses = self.checkpoints.losses if self.checkpoints is not None else {}
        finite = [(loss, s) for s, loss in losses.items() if np.isfinite(loss)]
        if finite:
            text += ", best validation loss {:.4f} (step {})".format(*min(finite))
        text += f", went back {at.rollbacks} times" if at.rollbacks else ""
        self._log.message(f"{text}.")

    def note_divergence(self, at: _Position | None, error: Diverged) -> None:
        """Says in the log why the run ends here; starting it again takes that back."""
        if at is not None:
            event = {"step": at.step, "split": "event", "event": "diverged"}
            with suppress(OSError):  # of two troubles the first is told
                self._log.line(event | {"reason": f"{error}."})

    # --- back to a good checkpoint ---

    def _may_go_back(self, at: _Position) -> bool:
        """Whether the run has collapsed, and is to return to a good checkpoint."""
        if at.recorder.collapse is None or not self._config.train.rollbacks:
            return False
        return self.checkpoints is not None and self._good_step(at) is not None

    def _good_step(self, at: _Position) -> int | None:
        """Newest checkpoint before a collapse began, if going back is allowed."""
        assert self.checkpoints is not None
        if at.rollbacks >= self._config.train.rollbacks:
            return None
        # One that has not collapsed but diverged: every checkpoint is finite.
        limit = at.recorder.healthy_step if at.recorder.collapse else at.step
        return max((s for s in self.checkpoints.steps() if s <= limit), default=None)

    def _go_back(self, at: _Position, reason: str) -> bool:
        """Makes the newest good checkpoint the newest one; False if there is none.

        Later checkpoints go first, then one atomic write of the log. Killed in
        between, the run finds its way here again by the same steps.
        """

        def rewind() -> bool:
            assert self.checkpoints is not None
            self.checkpoints.wait()
            step = self._good_step(at)
            if step is None:
                return False
            for later in [s for s in self.checkpoints.steps() if s > step]:
                self.checkpoints.delete(later)
            event = {"step": step, "split": "event", "event": "rollback"}
            self._log.rewrite(step, event | {"reason": reason})
            self._log.message(
                f"{reason} Going back to checkpoint {step}, with the images in "
                "another order."
            )
            return True

        return self.hosts.from_first(rewind)


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


def _save_what_is_left(run: _Run, at: _Position, error: Exception) -> str:
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
        run.finish(at)
    except (UserError, OSError, Diverged):
        return ""
    what = f"Step {at.step} is saved{', without the last lines of its log' * lost}"
    return f" {what}: the same command goes on from there."
