"""What a run says: metrics.jsonl, TensorBoard, the progress line, messages.

Host side only; nothing here waits for a device.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

# Fields of a line of metrics.jsonl that depend on the clock. All others are
# equal, bit for bit, in a run that was interrupted and in one that was not.
CLOCK_FIELDS = ("images_per_second", "step_time", "eta")


def say(message: str, stream: TextIO | None = None) -> None:
    """Prints one message to stderr at once (stdout holds results only)."""
    print(message, file=stream or sys.stderr, flush=True)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a kill leaves the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _jsonable(value: Any) -> Any:
    """A float with the shortest digits of its float32; NaN and inf as text."""
    if isinstance(value, str | int):
        return value
    number = float(str(np.float32(value)))
    return number if math.isfinite(number) else str(number)


class MetricsFile:
    """Appends lines to metrics.jsonl; drops what a resumed run will redo."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict]:
        """All complete lines; a line torn by a kill is left out."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and "step" in line:
                lines.append(line)
        return lines

    def truncate(self, step: int) -> list[dict]:
        """Keeps and returns the lines up to `step`, the checkpoint's."""
        kept = [line for line in self.read() if line["step"] <= step]
        if self.path.exists():
            write_atomically(
                self.path, "".join(json.dumps(line) + "\n" for line in kept)
            )
        return kept

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line and makes it durable before a checkpoint counts on it."""
        text = json.dumps({k: _jsonable(v) for k, v in line.items()})
        with open(self.path, "a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


class Board:
    """TensorBoard scalars and pictures, through tensorboardX; may be off."""

    def __init__(self, folder: Path, *, enabled: bool, first_step: int):
        self._writer = None
        if enabled:
            from tensorboardX import SummaryWriter  # slow import, and optional

            # purge_step hides what a killed run wrote beyond its checkpoint.
            purge = first_step if first_step > 0 else None
            self._writer = SummaryWriter(str(folder), purge_step=purge)

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Shows a line of metrics.jsonl as <split>/<name>."""
        if self._writer is None:
            return
        for name, value in line.items():
            if name not in ("step", "split", "time") and not isinstance(value, str):
                tag = f"{line['split']}/{name}"
                self._writer.add_scalar(tag, float(value), line["step"])

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows one (h, w, 3) uint8 image."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(int(round(seconds)), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """One line of progress: redrawn on a terminal, appended to a log file.

    Args:
        steps: of the whole run.
        batch_size: images of a step over all devices.
        stream: stderr unless given.
    """

    REDRAW_SECONDS = 0.5

    def __init__(self, steps: int, batch_size: int, *, stream: TextIO | None = None):
        self._steps = steps
        self._batch_size = batch_size
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._drawn = 0.0
        self._open_line = False
        self._total = math.nan

    def _text(self, step: int, step_time: float) -> str:
        text = f"step {step}/{self._steps} ({step / max(self._steps, 1):.0%})"
        if math.isfinite(self._total):
            text += f"  loss {self._total:.4f}"
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
        self._total = metrics.get("total", math.nan)
        step_time = metrics["step_time"]
        text = self._text(int(metrics["step"]), 0.0 if compiled else step_time)
        if compiled:
            text += f"  compiled in {step_time:.1f} s"
        if self._tty:
            self._draw(text)
        else:
            say(text, self._stream)

    def tick(self, step: int, step_time: Callable[[], float]) -> None:
        """Redraws on a terminal, at most twice a second."""
        if self._tty and time.monotonic() - self._drawn > self.REDRAW_SECONDS:
            self._draw(self._text(step, step_time()))

    def _draw(self, text: str) -> None:
        # \x1b[K clears what a longer line before left.
        print(f"\r{text}\x1b[K", end="", file=self._stream, flush=True)
        self._drawn = time.monotonic()
        self._open_line = True

    def message(self, text: str) -> None:
        """Prints a message on a line of its own, without tearing the progress."""
        self.close()
        say(text, self._stream)

    def close(self) -> None:
        """Ends an open progress line."""
        if self._open_line:
            print(file=self._stream, flush=True)
            self._open_line = False
