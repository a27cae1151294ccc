"""Mode `reconstruct`: photos in, one folder of shapes, pictures, videos each out."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.data import folder as folder_data
from unsup3d_jax.data import images as image_files
from unsup3d_jax.data.dataset import closed_text, kinds_text, reason_of
from unsup3d_jax.engine.log import say
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.formation.types import AnyArray, Factors, Reconstruction
from unsup3d_jax.unsup3d import export, model
from unsup3d_jax.unsup3d.options import ModelOptions, options_from_config


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the photos.

    Attributes:
        written: (input file, output folder), in order.
        broken: (input file, reason) of each file skipped.
    """

    written: tuple[tuple[Path, Path], ...]
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

    Photos of the data set, below `data.path`, are cropped by `data.crop` as in
    training. Of any other photo the largest centred square is taken: a box in
    pixels was meant for the files of one data set, and no crop would squash a photo
    that is not square. A message says so where `data.crop` is something else. Files
    below `output` are not taken as photos.

    Args:
        config: of the run that made the parameters.
        params: of `model.init_params`.
        source: an image file, or a folder that is searched recursively.
        output: gets one folder per photo, named after its stem; photos of the
            same stem get a number behind it.
        batch_size: photos decomposed at a time.
        view_range: see `model.decompose`.

    Raises:
        UserError: if there is no photo, none can be read, or the output is a file.
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
    written, broken = [], []
    names = _folder_names(files)
    for first in range(0, len(files), batch_size):
        readable, pixels = [], []
        for file in files[first : first + batch_size]:
            try:
                image, _ = image_files.read_image(
                    file, crop=crops[file], image_size=options.networks.image_size
                )
            except Exception as error:  # PIL raises nearly anything on broken bytes
                reason = reason_of(error, [str(file)])
                broken.append((file, reason))
                say(f"skipped {file}: {reason}")
                continue
            readable.append(file)
            pixels.append(np.asarray(image, np.float32) / 255.0)
        if not readable:
            continue
        # Filled up with copies of the last, so that one compilation serves all.
        fill = [pixels[-1]] * (min(batch_size, len(files)) - len(pixels))
        found = _decompose(params, np.stack(pixels + fill), options, view_range)
        for i, file in enumerate(readable):
            target = output / names[file]
            with writing(target):
                factors, reconstruction = _photo(found, i)
                export.export(target, pixels[i], factors, reconstruction, options)
            written.append((file, target))
            say(f"{file} -> {target}")
    say(f"{len(written)} of {len(files)} photos reconstructed, in {output}")
    if not written:
        file, reason = broken[0]
        raise UserError(
            f"--input: none of {len(files)} image files could be read; the first, "
            f"{file}: {reason}"
        )
    return Result(tuple(written), tuple(broken))


def _list_photos(source: Path, output: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"--input: {source} does not exist.")
    written = output.resolve()
    # Of an output around the photos, or in their very folder, only what was written
    # is left out, which `list_images` does.
    inside = source.resolve() in written.parents
    names = [
        name
        for name in folder_data.list_images(source)
        if not (inside and written in (source / name).resolve().parents)
    ]
    others = folder_data.other_types(source)
    closed = folder_data.closed_folders(source)
    parts = [f"left out: {kinds_text(others)}"] if others else []
    left_out = "; ".join(parts + ([closed_text(closed)] if closed else []))
    if not names:
        kinds = " ".join(sorted(suffix[1:] for suffix in image_files.EXTENSIONS))
        found = f"; {left_out}" if left_out else ""
        raise UserError(f"--input: no image files ({kinds}) under {source}{found}.")
    if left_out:
        say(f"{source}: {left_out}.")
    return [source / name for name in names]


def _crop_of(file: Path, config: ConfigDict) -> tuple[int, ...]:
    """What is cut from a photo: as in training if it is one of the data set's."""
    root = config.data.path
    if root and Path(root).expanduser().resolve() in file.resolve().parents:
        return tuple(config.data.crop)
    return (0,)


def _folder_names(files: Sequence[Path]) -> dict[Path, str]:
    """Stems, made unique: face, face-2, face-3, in the order of the files.

    A file may be called "...jpg", whose stem is the folder above.
    """
    taken: set[str] = set()
    names = {}
    # Case is folded because some file systems do.
    for file in files:
        stem = file.stem if file.stem.strip(". ") else "photo"
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name.casefold())
        names[file] = name
    return names


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
