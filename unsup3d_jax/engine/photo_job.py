"""Photos in, one folder each out: what mode `reconstruct` of every method does.

What is found in a photo, and what is written of it, the method says.
"""

import contextlib
import csv
import dataclasses
import glob
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from unsup3d_jax.data import images as image_files
from unsup3d_jax.data import photos
from unsup3d_jax.data.dataset import left_out, reason_of
from unsup3d_jax.engine import photo_folders
from unsup3d_jax.engine.log import Progress, duration, say
from unsup3d_jax.engine.workdir import lock_workdir
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.files import replacing_folder, restore_folders, write_atomically

# Hidden in the output: what is being written, and the lock of who writes.
_ASIDE = ".unsup3d_jax"
_WRITING = "writing-"  # there, before the name of a folder

SUMMARY = "summary.csv"

Picture = Float[np.ndarray, "_ _ 3"]  # [0, 1], sizes differ


@dataclasses.dataclass(frozen=True)
class Remark:
    """What is told of a photo beside its folder.

    Attributes:
        columns: of its row in `SUMMARY`; None is left empty.
        text: on its line, or "".
        warning: why not to trust what was found in it, or "".
    """

    columns: Mapping[str, Any]
    text: str = ""
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done with each photo.

    Attributes:
        made: what all folders are made from, beside their photos.
        sizes: pixels a side; a photo is read at each of them.
        find: photos (b, h, w, 3) at the first of the sizes, float32 in [0, 1] -> a
            function of the place in the batch: what was found in that photo.
        write: (an empty folder, the photo at each of the sizes, what was found in it)
            -> numbers for its record, JSON-able.
        remark: what to tell of a photo by its record; None: nothing, and no `SUMMARY`.
        workers: photos that are written at a time. With more than one `write` is called
            by threads.
    """

    made: photo_folders.Made
    sizes: tuple[int, ...]
    find: Callable[[Float[np.ndarray, "b h w 3"]], Callable[[int], Any]]
    write: Callable[[Path, list[Picture], Any], Mapping[str, Any]]
    remark: Callable[[Mapping[str, Any]], Remark] | None = None
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the photos.

    Attributes:
        written: (input file, output folder), in order.
        kept: the same of those that were complete already.
        broken: (input file, reason) of each file skipped.
        doubted: of those written or kept, the input files that have a warning.
    """

    written: tuple[tuple[Path, Path], ...]
    kept: tuple[tuple[Path, Path], ...]
    broken: tuple[tuple[Path, str], ...]
    doubted: tuple[Path, ...] = ()


def photos_to_folders(
    source: str | Path,
    output: str | Path,
    work: Work,
    *,
    crop: Sequence[int],
    data_path: str,
    batch_size: int = 8,
) -> Result:
    """Does the work on a photo, or on all photos of a folder.

    A photo's folder is there whole or not at all, so that whatever ends the command,
    the same command goes on with the photos that lack; folders that are complete and
    made from the same photo and model are kept as they are.

    Photos of the data set are cropped as in training. Of any other photo the largest
    centred square is taken: a box in pixels was meant for the files of one data set,
    and no crop would squash a photo that is not square. A message says so where the
    crop is something else. Files below `output` are not taken as photos.

    What is told of each is in `SUMMARY` of the output, too, a row for each photo.

    Args:
        source: an image file, or a folder that is searched recursively.
        output: gets one folder per photo, see `photo_folders.folders_of`.
        crop: `data.crop`.
        data_path: `data.path`: photos below it are the data set's.
        batch_size: photos given to `work.find` at a time.

    Raises:
        UserError: if there is no photo, none can be read, the output is a file, or
            another process writes there.
    """
    source, output = Path(source), Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file; name a folder.")
    files = list_photos(source, output)
    trained = tuple(crop)
    crops = {file: _crop_of(file, trained, data_path) for file in files}
    of_files = trained or data_path  # made faces are square as they are
    if of_files and any(taken != trained for taken in crops.values()):
        say(
            f"the largest centred square of each photo is taken; the model was trained "
            f"with data.crop={trained}, which photos below --config.data.path get."
        )
    with lock_workdir(output / _ASIDE, "--output"):
        with writing(output):
            _restore(output)
        folders = photo_folders.folders_of(files, output, taken=[SUMMARY])
        kept = [
            (file, folders[file])
            for file in files
            if photo_folders.is_current(folders[file], file, crops[file], work.made)
        ]
        done = {file for file, _ in kept}
        job = _Job(
            work,
            crops,
            folders,
            # One size, however many are left: the last bits depend on it.
            batch_size=min(batch_size, len(files)),
            files=[file for file in files if file not in done],
        )
        remarks: list[tuple[Path, Remark]] = []
        try:
            job.run()
        finally:
            parts = [f"{len(job.written)} reconstructed"]
            parts += [f"{len(kept)} were there already"] if kept else []
            parts += [f"{len(job.broken)} cannot be read"] if job.broken else []
            if (left := job.left) > 0:
                parts.append(f"{left} left")
            if work.remark is not None:
                remarks = _remarks(work.remark, [*kept, *job.written])
                doubted = sum(bool(found.warning) for _, found in remarks)
                parts += [f"{doubted} not to be trusted"] if doubted else []
                with writing(output):
                    _summarise(output, files, folders, dict(remarks), job.broken)
            say(f"{len(files)} photos: {', '.join(parts)}; in {output}")
    if not job.written and not kept:
        file, reason = job.broken[0]
        raise UserError(
            f"--input: none of {len(files)} image files could be read; the first, "
            f"{file}: {reason}"
        )
    doubted = tuple(file for file, found in remarks if found.warning)
    return Result(tuple(job.written), tuple(kept), tuple(job.broken), doubted)


@dataclasses.dataclass
class _Job:
    """The photos that are to be reconstructed, and how far that is.

    Attributes:
        work: what is done with each.
        crops: what is cut from each photo.
        folders: where each is to go.
        batch_size: of every call of `work.find`.
        files: the photos.
        written, broken: as in `Result`, so far.
    """

    work: Work
    crops: Mapping[Path, tuple[int, ...]]
    folders: Mapping[Path, Path]
    batch_size: int
    files: Sequence[Path]
    written: list[tuple[Path, Path]] = dataclasses.field(default_factory=list)
    broken: list[tuple[Path, str]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self._progress = Progress(len(self.files), 1, noun="photo")
        self._first = math.nan  # when the first was done: it waited for compilation

    @property
    def left(self) -> int:
        return len(self.files) - len(self.written) - len(self.broken)

    def run(self) -> None:
        try:
            for first in range(0, len(self.files), self.batch_size):
                self._tick()
                self._batch(self.files[first : first + self.batch_size])
        finally:
            self._progress.close()

    def _batch(self, files: Sequence[Path]) -> None:
        readable, pixels = [], []
        for file in files:
            try:
                photo = photo_folders.photo_of(file)
                images = self._read(file)
            except (image_files.ImageError, OSError, MemoryError) as error:
                reason = reason_of(error)
                self.broken.append((file, reason))
                self._progress.message(f"skipped {file}: {reason}")
                continue
            readable.append((file, photo))
            pixels.append(images)
        if not readable:
            return
        # Filled up with copies of the last, so that one compilation serves all.
        seen = [_floats(images[0]) for images in pixels]
        found = self.work.find(
            np.stack(seen + [seen[-1]] * (self.batch_size - len(seen)))
        )

        def export(i: int, found: Any) -> Mapping[str, Any]:
            file, photo = readable[i]
            images = [_floats(p) for p in pixels[i]]
            return self._export(self.folders[file], file, photo, images, found)

        def done(i: int, numbers: Mapping[str, Any]) -> None:
            file, _ = readable[i]
            self.written.append((file, self.folders[file]))
            self._tell(file, self.folders[file], numbers)

        if self.work.workers == 1:
            for i in range(len(readable)):
                done(i, export(i, found(i)))
            return
        with ThreadPoolExecutor(self.work.workers) as pool:
            futures = [pool.submit(export, i, found(i)) for i in range(len(readable))]
            try:
                for i, future in enumerate(futures):
                    done(i, future.result())
            except BaseException:
                # Those that are being written end; they are whole, and count.
                pool.shutdown(cancel_futures=True)
                told = {file for file, _ in self.written}
                for i, future in enumerate(futures):
                    ended = future.done() and not future.cancelled()
                    if ended and not future.exception() and readable[i][0] not in told:
                        self.written.append(
                            (readable[i][0], self.folders[readable[i][0]])
                        )
                raise

    def _read(self, file: Path) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """The photo at each size, in bytes."""
        crop = self.crops[file]
        with image_files.open_upright(file) as image:
            return [
                image_files.rgb_square(image, crop=crop, image_size=size)
                for size in self.work.sizes
            ]

    def _export(
        self,
        target: Path,
        file: Path,
        photo: photo_folders.Photo,
        images: list[Picture],
        found: Any,
    ) -> Mapping[str, Any]:
        ours = photo_folders.written_names(target)
        # Of its own: others are written meanwhile.
        aside = target.parent / _ASIDE / f"{_WRITING}{target.name}"
        try:
            with writing(target), replacing_folder(target, aside, ours=ours) as new:
                numbers = self.work.write(new, images, found)
                photo_folders.write_record(
                    new, photo, self.crops[file], self.work.made, numbers
                )
        finally:
            with contextlib.suppress(OSError):
                aside.rmdir()
        return numbers

    def _seconds(self) -> float:
        """A photo takes; 0: not known yet."""
        if len(self.written) < 2:
            return 0.0
        return (time.monotonic() - self._first) / (len(self.written) - 1)

    def _tick(self) -> None:
        self._progress.tick(len(self.files) - self.left, self._seconds)

    def _tell(self, file: Path, target: Path, numbers: Mapping[str, Any]) -> None:
        if len(self.written) == 1:
            self._first = time.monotonic()
        count = f"{len(self.files) - self.left} of {len(self.files)}"
        seconds = self._seconds()
        eta = f", eta {duration(self.left * seconds)}" if seconds > 0 else ""
        remark = self.work.remark(numbers) if self.work.remark else Remark({})
        text = f"; {remark.text}" if remark.text else ""
        self._progress.message(f"{count}{eta}: {file} -> {target}{text}")
        if remark.warning:
            self._progress.message(f"warning: {file}: {remark.warning}")
        self._tick()


def _restore(output: Path) -> None:
    """Clears up what a kill left, see `restore_folders`; also an earlier version's."""
    hidden = output / _ASIDE
    for aside in (hidden, *hidden.glob(f"{glob.escape(_WRITING)}*")):
        restore_folders(aside, output)
        if aside != hidden:
            aside.rmdir()


def _remarks(
    remark: Callable[[Mapping[str, Any]], Remark],
    places: Sequence[tuple[Path, Path]],
) -> list[tuple[Path, Remark]]:
    """What is told of each photo whose folder is there."""
    records = [(file, photo_folders.read_record(folder)) for file, folder in places]
    return [(file, remark(record)) for file, record in records if record is not None]


def _summarise(
    output: Path,
    files: Sequence[Path],
    folders: Mapping[Path, Path],
    remarks: Mapping[Path, Remark],
    broken: Sequence[tuple[Path, str]],
) -> None:
    """Writes `SUMMARY`: a row for each photo that is done or cannot be read.

    Raises:
        OSError: if it cannot be written.
    """
    reasons = dict(broken)
    names = list(dict.fromkeys(k for found in remarks.values() for k in found.columns))
    rows: list[list[Any]] = [["photo", "folder", *names, "remark"]]
    for file in files:
        if file in reasons:
            rows.append([file, "", *[""] * len(names), reasons[file]])
        elif file in remarks:
            found = remarks[file]
            cells = [_cell(found.columns.get(name)) for name in names]
            rows.append([file, folders[file].name, *cells, found.warning])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # Names of files need not be text.
    sound = text.getvalue().encode(errors="backslashreplace").decode()
    write_atomically(output / SUMMARY, sound)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _floats(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return np.asarray(pixels, np.float32) / 255.0


def list_photos(source: Path, output: Path) -> list[Path]:
    """The photos that --input names: one, or all of a folder but for the output's.

    Raises:
        UserError: if there are none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"--input: {source} does not exist.")
    written = output.resolve()
    # Of an output around the photos, or in their very folder, only what was written
    # is left out, which `look` does.
    inside = source.resolve() in written.parents
    found = photos.look(source)
    names = [
        name
        for name in found.images
        if not (inside and written in (source / name).resolve().parents)
    ]
    clauses = "; ".join(left_out(found))
    if not names:
        kinds = " ".join(sorted(suffix[1:] for suffix in image_files.EXTENSIONS))
        why = f"; {clauses}" if clauses else ""
        raise UserError(f"--input: no image files ({kinds}) under {source}{why}.")
    if clauses:
        say(f"{source}: {clauses}.")
    return [source / name for name in names]


def _crop_of(file: Path, trained: tuple[int, ...], data_path: str) -> tuple[int, ...]:
    """What is cut from a photo: as in training if it is one of the data set's."""
    if data_path and Path(data_path).expanduser().resolve() in file.resolve().parents:
        return trained
    return (0,)
