"""Mode `reconstruct`: photos in, one folder of shapes, pictures, videos each out."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.data import images as image_files
from unsup3d_jax.data import photos
from unsup3d_jax.data.dataset import left_out, reason_of
from unsup3d_jax.engine.log import Progress, duration, say
from unsup3d_jax.engine.workdir import lock_workdir
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.files import replacing_folder, restore_folders
from unsup3d_jax.formation.types import AnyArray, Factors, Reconstruction
from unsup3d_jax.unsup3d import export, model, photo_folders
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config

# Hidden in the output: what is being written, and the lock of who writes.
_ASIDE = ".unsup3d_jax"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the photos.

    Attributes:
        written: (input file, output folder), in order.
        kept: the same of those that were complete already.
        broken: (input file, reason) of each file skipped.
    """

    written: tuple[tuple[Path, Path], ...]
    kept: tuple[tuple[Path, Path], ...]
    broken: tuple[tuple[Path, str], ...]


def reconstruct_folder(
    config: ConfigDict,
    params: dict,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = 8,
    view_range: Float[Array, ""] | None = None,
) -> Result:
    """Decomposes a photo, or all photos of a folder, and exports each.

    A photo's folder is there whole or not at all, so that whatever ends the command,
    the same command goes on with the photos that lack; folders that are complete and
    of the same photo, parameters and options are kept as they are.

    Photos of the data set, below `data.path`, are cropped by `data.crop` as in
    training. Of any other photo the largest centred square is taken: a box in
    pixels was meant for the files of one data set, and no crop would squash a photo
    that is not square. A message says so where `data.crop` is something else. Files
    below `output` are not taken as photos.

    Args:
        config: of the run that made the parameters.
        params: of `model.init_params`.
        source: an image file, or a folder that is searched recursively.
        output: gets one folder per photo, see `photo_folders.folders_of`.
        batch_size: photos decomposed at a time.
        view_range: see `model.decompose`.

    Raises:
        UserError: if there is no photo, none can be read, the output is a file, or
            another process writes there.
    """
    source, output = Path(source), Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file; name a folder.")
    files = _list_photos(source, output)
    crops = {file: _crop_of(file, config) for file in files}
    trained = tuple(config.data.crop)
    if any(crop != trained for crop in crops.values()):
        say(
            f"the largest centred square of each photo is taken; the model was trained "
            f"with data.crop={trained}, which photos below --config.data.path get."
        )
    options = options_from_config(config)
    whole = config.export.whole_surface
    unlearnt = _unlearnt(config)
    made = photo_folders.made_from(params, options, view_range, whole, unlearnt)
    with lock_workdir(output / _ASIDE, "--output"):
        with writing(output):
            restore_folders(output / _ASIDE, output)
        folders = photo_folders.folders_of(files, output)
        kept = [
            (file, folders[file])
            for file in files
            if photo_folders.is_current(folders[file], file, crops[file], made)
        ]
        done = {file for file, _ in kept}
        job = _Job(
            params,
            options,
            view_range,
            made,
            whole,
            unlearnt,
            crops,
            folders,
            # One size, however many are left: the last bits depend on it.
            batch_size=min(batch_size, len(files)),
            files=[file for file in files if file not in done],
        )
        try:
            job.run()
        finally:
            parts = [f"{len(job.written)} reconstructed"]
            parts += [f"{len(kept)} were there already"] if kept else []
            parts += [f"{len(job.broken)} cannot be read"] if job.broken else []
            if (left := job.left) > 0:
                parts.append(f"{left} left")
            say(f"{len(files)} photos: {', '.join(parts)}; in {output}")
    if not job.written and not kept:
        file, reason = job.broken[0]
        raise UserError(
            f"--input: none of {len(files)} image files could be read; the first, "
            f"{file}: {reason}"
        )
    return Result(tuple(job.written), tuple(kept), tuple(job.broken))


@dataclasses.dataclass
class _Job:
    """The photos that are to be reconstructed, and how far that is.

    Attributes:
        params, options, view_range: of `model.decompose`.
        made: what all folders are made from.
        whole_surface: see `export.export`.
        unlearnt: names of factors that are not exported.
        crops: what is cut from each photo.
        folders: where each is to go.
        batch_size: of every call of the model.
        files: the photos.
        written, broken: as in `Result`, so far.
    """

    params: dict
    options: ModelOptions
    view_range: Float[Array, ""] | None
    made: photo_folders.Made
    whole_surface: bool
    unlearnt: Sequence[str]
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
                image, _ = image_files.read_image(
                    file,
                    crop=self.crops[file],
                    image_size=self.options.networks.image_size,
                )
            except (image_files.ImageError, OSError, MemoryError) as error:
                reason = reason_of(error)
                self.broken.append((file, reason))
                self._progress.message(f"skipped {file}: {reason}")
                continue
            readable.append((file, photo))
            pixels.append(np.asarray(image, np.float32) / 255.0)
        if not readable:
            return
        # Filled up with copies of the last, so that one compilation serves all.
        images = np.stack(pixels + [pixels[-1]] * (self.batch_size - len(pixels)))
        found = _decompose(self.params, images, self.options, self.view_range)
        for i, (file, photo) in enumerate(readable):
            target = self.folders[file]
            self._export(target, file, photo, pixels[i], _photo(found, i))
            self.written.append((file, target))
            self._tell(file, target)

    def _export(
        self,
        target: Path,
        file: Path,
        photo: photo_folders.Photo,
        pixels: Float[np.ndarray, "h w 3"],
        found: tuple[Factors, Reconstruction],
    ) -> None:
        factors, reconstruction = found
        ours = photo_folders.written_names(target)
        with (
            writing(target),
            replacing_folder(target, target.parent / _ASIDE, ours=ours) as new,
        ):
            numbers = export.export(
                new,
                pixels,
                dataclasses.replace(factors, **dict.fromkeys(self.unlearnt)),
                reconstruction,
                self.options,
                whole_surface=self.whole_surface,
            )
            photo_folders.write_record(new, photo, self.crops[file], self.made, numbers)

    def _seconds(self) -> float:
        """A photo takes; 0: not known yet."""
        if len(self.written) < 2:
            return 0.0
        return (time.monotonic() - self._first) / (len(self.written) - 1)

    def _tick(self) -> None:
        self._progress.tick(len(self.files) - self.left, self._seconds)

    def _tell(self, file: Path, target: Path) -> None:
        if len(self.written) == 1:
            self._first = time.monotonic()
        count = f"{len(self.files) - self.left} of {len(self.files)}"
        seconds = self._seconds()
        eta = f", eta {duration(self.left * seconds)}" if seconds > 0 else ""
        self._progress.message(f"{count}{eta}: {file} -> {target}")
        self._tick()


def _list_photos(source: Path, output: Path) -> list[Path]:
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


def _crop_of(file: Path, config: ConfigDict) -> tuple[int, ...]:
    """What is cut from a photo: as in training if it is one of the data set's."""
    root = config.data.path
    if root and Path(root).expanduser().resolve() in file.resolve().parents:
        return tuple(config.data.crop)
    return (0,)


def _unlearnt(config: ConfigDict) -> list[str]:
    """The confidence maps of losses that were off: they still are as initialised."""
    loss, names = config.loss, []
    no_flip = loss.flip == 0 and loss.flip_start == 0
    if no_flip:
        names += ["conf_sigma_flip", "conf_sigma_perceptual_flip"]
    if loss.perceptual == 0:
        names += ["conf_sigma_perceptual", "conf_sigma_perceptual_flip"]
    return sorted(set(names))


@functools.partial(jax.jit, static_argnames="options")
def _decompose(
    params: dict,
    images: Float[AnyArray, "b h w 3"],
    options: ModelOptions,
    view_range: Float[Array, ""] | None,
) -> tuple[Factors, Reconstruction]:
    images = jnp.asarray(images)
    factors = model.decompose(params, images, options, view_range=view_range)
    return factors, model.reconstruct(factors, options)


@jax.jit
def _photo(
    found: tuple[Factors, Reconstruction], index: Array | int
) -> tuple[Factors, Reconstruction]:
    """What was found of one photo of a batch."""
    return jax.tree.map(lambda a: a[index], found)
