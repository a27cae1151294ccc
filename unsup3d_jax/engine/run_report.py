"""A run's page, report.html in its workdir: when it is written, and of what.

While a run goes on, its page is made of the lines as they are logged (`Page`); of a
workdir that another process may be writing, of what is new there (`Watched`).
"""

import contextlib
import datetime
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unsup3d_jax.configuration import recorded
from unsup3d_jax.engine.log import parsed, say
from unsup3d_jax.errors import one_line
from unsup3d_jax.files import need_regular, write_atomically
from unsup3d_jax.show.run_page import page
from unsup3d_jax.show.run_page.curves import Curves

# A picture that travels with the page: bytes at most, and pixels across.
MOST_EMBEDDED = 400_000
_EMBEDDED_WIDTH = 1400
MOST_PICTURE = 50_000_000  # bytes of one that is looked at
_MOST_TABLE = 200_000  # bytes of a table of scores
_MOST_TABLES = 8
_SHARE = 0.01  # of the time that writing may take


class Page:
    """The page of a run that goes on, rewritten now and then.

    What goes wrong with it is said once, and is no matter to the run.

    Args:
        complain: takes the message.
    """

    def __init__(self, workdir: Path, complain: Callable[[str], None] = say):
        self._workdir, self._complain = workdir, complain
        self._curves, self._pictures = Curves(), _Pictures(workdir)
        self._took, self._ended = 0.0, -float("inf")

    def begin(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Starts anew with the lines that a log holds."""
        self._curves = Curves(lines)

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes a line as it is logged."""
        self._curves.add(line)

    def write(self, *, at_once: bool = False) -> None:
        """Writes the page, unless that would take more than a hundredth of the time.

        Args:
            at_once: whatever it takes.
        """
        began = time.monotonic()
        if not at_once and began - self._ended < self._took / _SHARE:
            return
        try:
            run = _run_of(self._workdir, self._curves, self._pictures)
            write_atomically(self._workdir / page.FILE, page.document(run)[0])
        except Exception as error:  # whatever a page meets: steps are worth more
            self._give_up(error)
        self._ended = time.monotonic()
        self._took = self._ended - began

    def _give_up(self, error: Exception) -> None:
        self._complain(
            f"warning: no page {self._workdir / page.FILE}: {one_line(error, 300)}."
        )
        self._complain = lambda text: None


class Watched:
    """A workdir that is looked at again and again, of which only the new is read."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._curves, self._pictures = Curves(), _Pictures(workdir)
        self._log, self._offset = 0, 0

    def run(self) -> page.Run:
        """What is there now."""
        with contextlib.suppress(FileNotFoundError):
            self._read_on()
        return _run_of(self.workdir, self._curves, self._pictures)

    def signature(self) -> tuple:
        """Differs where `run` would."""
        places = ("metrics.jsonl", "config.json", "pictures", "eval")
        return tuple(_stamp(self.workdir / name) for name in places)

    def _read_on(self) -> None:
        path = self.workdir / "metrics.jsonl"
        need_regular(path)
        with path.open("rb") as file:
            there = os.fstat(file.fileno())
            # Resumed, or gone back: another file has its name.
            if there.st_ino != self._log or there.st_size < self._offset:
                self._curves, self._offset = Curves(), 0
                self._log = there.st_ino
            file.seek(self._offset)
            for text in file:
                if not text.endswith(b"\n"):
                    break  # is being written
                self._offset += len(text)
                line = parsed(text.decode(errors="replace"))
                if line is not None:
                    self._curves.add(line)


def write(workdir: Path) -> None:
    """Writes the page of a run that has ended; what goes wrong is said."""
    try:
        document = page.document(Watched(workdir).run())[0]
        write_atomically(workdir / page.FILE, document)
    except Exception as error:  # as of `Page.write`
        say(f"warning: no page {workdir / page.FILE}: {one_line(error, 300)}.")


def keep_table(workdir: Path, split: str, table: str) -> None:
    """Keeps a table of scores as it was shown, in eval/<split>.txt, for the page."""
    path = workdir / "eval" / f"{split}.txt"
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != f"{table}\n":
            write_atomically(path, f"{table}\n")
    except (OSError, UnicodeDecodeError) as error:
        say(f"warning: no table {path}: {one_line(error, 300)}.")
    write(workdir)


def picture(workdir: Path, name: str) -> bytes | None:
    """A picture of a run, whose name is a step; None if it is none or not there."""
    if not (name.isascii() and name.isdigit() and len(name) <= 12):
        return None
    path = workdir / "pictures" / f"{int(name)}.png"
    try:
        need_regular(path)
        if path.stat().st_size > MOST_PICTURE:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _run_of(workdir: Path, curves: Curves, pictures: "_Pictures") -> page.Run:
    record = recorded(workdir / "config.json") or {}
    steps = pictures.steps(curves.step)
    name = record.get("config", {}).get("name")
    stamp = _stamp(workdir / "metrics.jsonl")
    written = ""
    if stamp is not None:
        moment = datetime.datetime.fromtimestamp(stamp[1] / 1e9, datetime.UTC)
        written = f"{moment:%Y-%m-%d %H:%M} UTC"
    return page.Run(
        name=name if isinstance(name, str) and name else workdir.resolve().name,
        curves=curves,
        record=record,
        tables=_tables(workdir / "eval"),
        pictures=steps,
        embedded=pictures.embedded(steps[-1]) if steps else None,
        written=written,
    )


def _tables(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.glob("*.txt"))[:_MOST_TABLES]:
        with contextlib.suppress(OSError):
            need_regular(path)
            with path.open("rb") as file:
                found[path.stem] = file.read(_MOST_TABLE).decode(errors="replace")
    return found


class _Pictures:
    """Those of a workdir; the newest, small enough to travel, is made once."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._stamp: tuple | None = None
        self._kept: tuple[int, bytes] | None = None

    def steps(self, last: int) -> list[int]:
        """Whose pictures there are, up to a step: a run may have gone back since."""
        try:
            names = os.listdir(self._workdir / "pictures")
        except OSError:
            return []
        stems = (name.removesuffix(".png") for name in names if name.endswith(".png"))
        # "²" is a digit to str.isdigit, and no number to int.
        steps = {int(x) for x in stems if x.isascii() and x.isdigit() and len(x) < 13}
        return sorted(step for step in steps if not last or step <= last)

    def embedded(self, step: int) -> tuple[int, bytes] | None:
        """A picture as a page can hold it; None if it is too large."""
        stamp = _stamp(self._workdir / "pictures" / f"{step}.png")
        if stamp != self._stamp:
            data = picture(self._workdir, str(step))
            small = _smaller(data) if data else None
            self._stamp, self._kept = stamp, (step, small) if small else None
        return self._kept


def _smaller(data: bytes) -> bytes | None:
    """A PNG as it is, or as a JPEG, if that is small enough."""
    from PIL import Image  # not needed by runs without pictures

    if len(data) <= MOST_EMBEDDED // 4:
        return data if data.startswith(b"\x89PNG") else None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = image.convert("RGB")
        pixels.thumbnail((_EMBEDDED_WIDTH, 100 * _EMBEDDED_WIDTH))
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return file.getvalue() if len(file.getvalue()) <= MOST_EMBEDDED else None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Tells one state of a file or folder from another."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
