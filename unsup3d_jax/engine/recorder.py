"""What a training run records of its steps: lines of the log, warnings, profiles."""

import collections
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from unsup3d_jax.engine.log import RunLog, duration, say
from unsup3d_jax.engine.task import Task

HISTORY = 20  # log lines that the gradient's yardstick looks back
# Share of a run before the watch speaks: every start looks collapsed.
WATCH_FROM = 0.02
PATIENCE = 3  # lines in a row with warnings that make a collapse


class Diverged(Exception):
    """The loss or a gradient is not finite; nothing of it was saved."""


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
        collapse: why the run has collapsed: warnings on `PATIENCE` lines
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
                self._warned = _kinds(self._judge(dict(line)))
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
        names = {"total": "loss", "grad_norm": "gradient norm"}
        values = {key: float(metrics[key]) for key in names if key in metrics}
        shown = (f"{names[key]} {value:g}" for key, value in values.items())
        what = f"step {step}: {', '.join(shown)}"
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
        for text in found:  # say it when it starts, not on every line
            if not _kinds([text]) <= self._warned:
                self._log.message(f"warning, step {step}: {text}")
                event = {"step": step, "split": "event", "event": "warning"}
                self._log.line(event | {"reason": text})
        self._warned = _kinds(found)

    def _judge(self, line: dict) -> list[str]:
        """Warnings about a training line, which joins the history."""
        found = []
        if line["step"] > WATCH_FROM * self._config.train.steps:
            found = self._task.warnings(line, list(self._history))
        self._history.append(line)
        self._ill = self._ill + 1 if found else 0
        # What is found first stays, because steps in flight, whose lines are
        # judged too, are others in a run that was resumed.
        if self.collapse is None and not found:
            self.healthy_step = line["step"]
        if self.collapse is None and self._ill >= PATIENCE:
            self.collapse = f"step {line['step']}: {found[0]}"
        return found


def _kinds(found: Sequence[str]) -> set[str]:
    """What warnings are about."""
    return {text.split(":")[0] for text in found}


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
