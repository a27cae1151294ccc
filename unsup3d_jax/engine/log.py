"""What a run says: metrics.jsonl, TensorBoard, the progress line, messages.

Host side only; nothing here waits for a device.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from io import TextIOBase
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unsup3d_jax.files import replacing, write_atomically

# Fields of a line of metrics.jsonl that depend on the clock. All others are
# equal, bit for bit, in a run that was interrupted and in one that was not.
CLOCK_FIELDS = ("images_per_second", "step_time", "eta")


def say(message: str, stream: TextIOBase | None = None) -> None:
    """Prints one message to stderr at once (stdout holds results only)."""
    print(message, file=stream or sys.stderr, flush=True)


def _jsonable(value: Any) -> Any:
    """A float with the shortest digits of its float32; NaN and inf as text."""
    if isinstance(value, str | int):
        return value
    number = float(str(np.float32(value)))
    return number if math.isfinite(number) else str(number)


def _numbers(line: dict) -> dict:
    """Undoes `_jsonable`: "nan", "inf" and "-inf" are numbers again."""
    return {
        k: float(v) if isinstance(v, str) and v in ("nan", "inf", "-inf") else v
        for k, v in line.items()
    }


class MetricsFile:
    """Appends lines to metrics.jsonl; drops what a resumed run will redo."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict]:
        """All lines of a run; one that was torn by a kill, or damaged, is left out."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(errors="replace").splitlines():
            line = parsed(text)
            if line is not None:
                lines.append(line)
        return lines

    def truncate(
        self, step: int | None, *, extra: Mapping[str, Any] | None = None
    ) -> list:
        """Keeps and returns the lines up to `step`, the checkpoint's.

        Returns to a checkpoint are kept wherever they led: they are counted, and
        each takes another order.

        Args:
            step: None keeps nothing.
            extra: a line to add, in the same atomic write.
        """
        kept = [
            line
            for line in ([] if step is None else self.read())
            if line["step"] <= step or line.get("event") == "rollback"
        ]
        kept += [] if extra is None else [dict(extra)]
        if self.path.exists() or kept:
            write_atomically(self.path, "".join(_text(line) for line in kept))
        return kept

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line and makes it durable before a checkpoint counts on it."""
        with open(self.path, "a") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())


def record_once(workdir: Path, line: Mapping[str, Any], *, tensorboard: bool) -> None:
    """Adds a line to the log of a run that is finished, unless it is there already.

    What cannot be written is said; a finished run is none the less.

    Args:
        line: with the step that the run has reached.
    """
    file, step = MetricsFile(workdir / "metrics.jsonl"), line["step"]
    try:
        if _text(line) in map(_text, file.read()):
            return
        # Not appended: the last line may be torn.
        file.truncate(step, extra=line)
    except OSError as error:
        say(f"warning: {file.path} lacks the scores: {error}.")
        return
    board = Board(workdir / "tensorboard", enabled=tensorboard, first_step=step + 1)
    board.scalars(line)
    board.close()


def parsed(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it was torn by a kill, or is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _numbers(line) if _is_line(line) else None


def _is_line(line: Any) -> bool:
    """Whether it has what whoever resumes a run goes by."""
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and isinstance(line.get("split"), str)
    )


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps({k: _jsonable(v) for k, v in line.items()}) + "\n"


class Board:
    """TensorBoard scalars and pictures; may be off.

    Written in the caller's thread: the writer thread of tensorboardX dies on a
    full disk, and the run would then wait for it for ever. A board that cannot
    be written is given up with a message; metrics.jsonl has the same numbers.

    Args:
        first_step: the next step; what a killed run wrote from it on is hidden.
        complain: takes the message.
    """

    def __init__(
        self,
        folder: Path,
        *,
        enabled: bool,
        first_step: int,
        complain: Callable[[str], None] = say,
    ):
        self._writer, self._folder, self._complain = None, folder, complain
        if enabled:
            # A slow import, and optional.
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

            messages: Any = event_pb2  # made at run time, unknown to checkers
            self._event = messages.Event
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # The suffix tells files apart that one second starts (or a
                # clock that was set back): the same name would overwrite.
                suffix = f".{os.getpid()}.{first_step}"
                self._writer = EventsWriter(str(folder / "events"), suffix)
            except OSError as error:
                self._give_up(error)
            if first_step > 0:
                start = messages.SessionLog(status=messages.SessionLog.START)
                self._write(first_step, session_log=start)

    def _write(self, step: int, **content: Any) -> None:
        if self._writer is None:
            return
        event = self._event(wall_time=time.time(), step=step, **content)
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self._complain(f"warning: no more TensorBoard in {self._folder}: {error}.")

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Shows a line of metrics.jsonl as <split>/<name>."""
        if self._writer is None:
            return
        from tensorboardX.proto import summary_pb2

        messages: Any = summary_pb2
        values = [
            messages.Summary.Value(
                tag=f"{line['split']}/{name}", simple_value=float(value)
            )
            for name, value in line.items()
            if name not in ("step", "split", "time") and not isinstance(value, str)
        ]
        self._write(line["step"], summary=messages.Summary(value=values))

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows one (h, w, 3) uint8 image."""
        if self._writer is not None:
            from tensorboardX.summary import image as image_summary

            content = image_summary(name, image, dataformats="HWC")
            self._write(step, summary=content)

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(int(round(seconds)), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _width(stream: Any) -> int | None:
    """Columns of a terminal: 80 where it says 0, as those of containers do, in which
    nothing could be shown; None where nobody knows."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return None


class Progress:
    """One line of progress: redrawn on a terminal, appended to a log file.

    Args:
        steps: of the whole run.
        batch_size: images of a step over all devices.
        stream: stderr unless given.
        noun: what is counted.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        *,
        stream: TextIOBase | None = None,
        noun: str = "step",
    ):
        self._steps = steps
        self._noun = noun
        self._batch_size = batch_size
        self._stream: Any = stream or sys.stderr
        self._bar: tqdm | None = None
        self._loss = math.nan

    def _text(self, step: int, step_time: float) -> str:
        """What is said beside the step: loss, rate and time left."""
        text = "" if math.isnan(self._loss) else f"  loss {self._loss:.4f}"
        if step_time > 0:
            eta = (self._steps - step) * step_time
            rate = self._batch_size / step_time
            text += f"  {rate:.1f} images/s  eta {duration(eta)}"
        return text

    def line(self, metrics: Mapping[str, float], *, compiled: bool = False) -> None:
        """Reports a training line of the log: its own line unless on a terminal.

        Args:
            compiled: the step's time is mostly compilation, and predicts nothing.
        """
        self._loss = metrics.get("total", math.nan)
        step, step_time = int(metrics["step"]), metrics["step_time"]
        text = self._text(step, 0.0 if compiled else step_time)
        if compiled:
            text += f"  compiled in {step_time:.1f} s"
        if self._stream.isatty():
            self._draw(step, text)
        else:
            share = step / max(self._steps, 1)
            say(f"{self._noun} {step}/{self._steps} ({share:.0%}){text}", self._stream)

    def tick(self, step: int, step_time: Callable[[], float]) -> None:
        """Redraws on a terminal, at most twice a second."""
        now = time.monotonic()
        if self._bar is not None and now - self._bar.last_print_t < 0.5:
            return
        if self._stream.isatty():
            self._draw(step, self._text(step, step_time()))

    def _draw(self, step: int, text: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=self._steps,
                file=self._stream,
                ncols=_width(self._stream),
                nrows=20,  # more than the one; else of a terminal that may say 0
                # Rate and time left are ours: they leave compilation out.
                bar_format=self._noun
                + " {n}/{total} ({percentage:.0f}%) |{bar:20}|{postfix}",
            )
        self._bar.n = step
        self._bar.set_postfix_str(text.strip(), refresh=False)
        self._bar.refresh()
        self._bar.last_print_t = time.monotonic()

    def message(self, text: str) -> None:
        """Prints a message on a line of its own, without tearing the progress."""
        if self._bar is None:
            say(text, self._stream)
        else:
            self._bar.write(text, file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        """Ends an open progress line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class RunLog:
    """Where a run writes: metrics.jsonl, TensorBoard and the progress line.

    Args:
        hears: is told each line that was written, as whoever reads the file sees it.
        enabled: off in all processes but the first, where every call does nothing.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        steps: int,
        batch_size: int,
        tensorboard: bool,
        hears: Callable[[Mapping[str, Any]], None] = lambda line: None,
        enabled: bool = True,
    ):
        self._enabled, self._hears = enabled, hears
        self._workdir, self._tensorboard = workdir, tensorboard
        self._progress = Progress(steps, batch_size)
        self._file = MetricsFile(workdir / "metrics.jsonl") if enabled else None
        self._board: Board | None = None

    def start(self, step: int | None) -> list[dict]:
        """Drops what was written beyond a step; returns the lines that remain.

        Args:
            step: of the checkpoint; None if there is none, and a run begins.
        """
        if self._file is None:
            return []
        if self._board is not None:
            self._board.close()
        self._board = Board(
            self._workdir / "tensorboard",
            enabled=self._tensorboard,
            first_step=(step or 0) + 1,
            complain=self.message,
        )
        return self._file.truncate(step)

    def line(self, line: Mapping[str, Any]) -> None:
        """Records one line of metrics.jsonl."""
        if self._file is not None:
            self._file.append(line)
            self._hears(_numbers({k: _jsonable(v) for k, v in line.items()}))
        if self._board is not None:
            self._board.scalars(line)

    def rewrite(self, step: int, event: Mapping[str, Any]) -> None:
        """Drops the lines beyond a step and adds one, at once."""
        if self._file is not None:
            self._file.truncate(step, extra=event)

    def picture(self, path: Path, image: np.ndarray, step: int) -> None:
        """Writes a picture of the run; one that cannot be written is no matter."""
        if self._file is None:
            return
        from PIL import Image  # not needed by runs without pictures

        try:
            with replacing(path) as file:
                Image.fromarray(image).save(file, format="PNG")
        except OSError as error:
            self.message(f"warning: no picture {path}: {error}.")
        if self._board is not None:
            self._board.picture("panel", image, step)

    def progress(self, line: Mapping[str, Any], *, compiled: bool) -> None:
        """Shows a training line."""
        if self._enabled:
            self._progress.line(line, compiled=compiled)

    def tick(self, step: int, step_time: Callable[[], float]) -> None:
        """Redraws the progress on a terminal."""
        if self._enabled:
            self._progress.tick(step, step_time)

    def message(self, text: str) -> None:
        """Prints a message on a line of its own."""
        if self._enabled:
            self._progress.message(text)

    def close(self) -> None:
        self._progress.close()
        if self._board is not None:
            self._board.close()
