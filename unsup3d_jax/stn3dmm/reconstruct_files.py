"""Mode `reconstruct`: photos in, a folder of flattened face, pose, mesh each out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from unsup3d_jax.data.tiles import to_bytes
from unsup3d_jax.engine import photo_folders
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.photo_job import Picture, Result, Work, photos_to_folders
from unsup3d_jax.errors import writing
from unsup3d_jax.files import replacing
from unsup3d_jax.stn3dmm import export, textures
from unsup3d_jax.stn3dmm.export import ExportOptions
from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.morphable import GridModel

MEAN = "mean_flattened.png"
# Photos with landmarks are cut by those in training, which others do not have.
_SQUARE = (0,)

# (parameters, images (b, h, w, 3)) -> theta vectors (b, 6 + d)
Localise = Callable[[Any, Float[np.ndarray, "b h w 3"]], Float[Array, "b p"]]


def reconstruct_folder(
    localise: Localise,
    params: Any,
    image_size: int,
    model: GridModel,
    camera: Camera,
    options: ExportOptions,
    source: str | Path,
    output: str | Path,
    *,
    batch_size: int = 8,
) -> Result:
    """Fits the model to a photo, or to all photos of a folder, and exports each.

    Of several photos the mean of their flattened faces is written beside the folders:
    sharp where they show one person, the average face of a group else.

    Args:
        localise: the localiser, for photos of `image_size` pixels a side.
        params: its parameters, which also tell whether a folder is still current.
        image_size: what it takes.
        model: at the resolution of the output, with as many coefficients as theta.
        camera: that of the training.
        options: of the output.
        source, output, batch_size: see `photos_to_folders`; of each photo the largest
            centred square is taken.

    Raises:
        UserError: see `photos_to_folders`.
    """

    made = photo_folders.made_from(
        {"localiser": params, "model": model}, (camera, options, image_size)
    )
    # Once, not with every photo: a fine grid has 14 MB, VGG-Face half a gigabyte.
    params, model = jax.device_put((params, model))
    mean = textures.MeanFlattened()

    def find(images: Float[np.ndarray, "b h w 3"]) -> Callable[[int], Any]:
        vectors = np.asarray(localise(params, images), np.float32)
        return lambda index: vectors[index]

    def write(folder: Path, images: list[Picture], found: Any) -> Mapping[str, Any]:
        numbers, flat = export.export(folder, images[1], found, model, camera, options)
        mean.add(flat.flattened, flat.visibility)
        return numbers

    work = Work(
        made=made,
        sizes=(image_size, options.photo_size),
        find=find,
        write=write,
    )
    result = photos_to_folders(
        source,
        output,
        work,
        crop=_SQUARE,
        data_path="",
        batch_size=batch_size,
    )
    if len(result.written) + len(result.kept) > 1:
        for _, folder in result.kept:
            with np.load(folder / export.ARRAYS) as arrays:
                mean.add(arrays["flattened"], arrays["visibility"])
        _write_mean(Path(output) / MEAN, mean)
    return result


def _write_mean(path: Path, mean: textures.MeanFlattened) -> None:
    texture, _ = mean.result()
    with writing(path), replacing(path) as file:
        Image.fromarray(to_bytes(texture)).save(file, format="png")
    say(f"the mean of {mean.count} flattened faces: {path}")
