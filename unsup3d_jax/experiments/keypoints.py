"""Depth at keypoints of any folder of images: the measure of the paper's Table 5.

Keypoints are read in the layouts of `data.keypoint_files`. Depth is in any unit;
larger is farther, unless `near` is "large". Images are cropped by the config's
`data.crop` (where that is empty, to the largest centred square); those whose keypoints
leave the crop are left out and counted.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from unsup3d_jax.data import images, keypoint_files, tiles
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.evaluation.keypoints import depth_at, keypoint_depth_correlation
from unsup3d_jax.files import write_atomically
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions, loss_weights, options_from_config

NEAR = ("small", "large")


@dataclasses.dataclass(frozen=True)
class KeypointJob:
    """What is scored, and where the result goes.

    Attributes:
        input: folder of images.
        layout: one of `keypoint_files.LAYOUTS`.
        split: of layout 3dfaw: train, valid or test.
        near: which depth of the files is near, one of `NEAR`.
        output: file for the scores, JSON; None: none.
        sheet: file for a picture of the first images, PNG; None: none.
    """

    input: Path
    layout: str
    split: str
    near: str
    output: Path | None
    sheet: Path | None


def run(
    config: ConfigDict, load: Callable[[], tuple[dict, int]], job: KeypointJob
) -> dict:
    """Scores a model on a folder with keypoints, and writes what the job asks for.

    Args:
        config: of the run that trained, checked.
        load: parameters, and the step they are from. Called when the keypoints are
            read and their sheet is written, which needs no model.
        job: see `KeypointJob`.

    Returns:
        What `score` returns, "checkpoint_step" and "input"; as in the output.

    Raises:
        UserError: for anything the user can fix.
    """
    if job.near not in NEAR:
        raise UserError(f"--near must be one of {', '.join(NEAR)}, got {job.near!r}.")
    files, points = keypoint_files.find(job.input, job.layout, split=job.split)
    if job.near == "large":
        points = points * [1.0, 1.0, -1.0]
    if job.sheet:
        sheet = Image.fromarray(contact_sheet(files, points))
        with writing(job.sheet):
            sheet.save(job.sheet)
    params, step = load()
    result = score(
        params,
        options_from_config(config),
        files,
        points,
        crop=config.data.crop,
        view_range=loss_weights(config, step).view_range,
    )
    result |= {"checkpoint_step": step, "input": str(job.input)}
    if job.output:
        with writing(job.output):
            write_atomically(job.output, json.dumps(result, indent=2) + "\n")
    return result


def to_model_pixels(
    points: Float[np.ndarray, "k 3"],
    file_size: tuple[int, int],
    *,
    crop: Sequence[int],
    image_size: int,
) -> Float[np.ndarray, "k 3"]:
    """Moves keypoints from the image file to the cropped and resized image.

    Args:
        points: u, v in pixels of the file, depth (unchanged).
        file_size: (width, height).
        crop: see `images.crop_box`.
        image_size: pixels.
    """
    width, height = file_size
    y0, x0, h, w = images.crop_box(crop, height, width)
    # Resizing keeps the outer edges, half a pixel beyond the outer centres.
    u = (points[:, 0] - x0 + 0.5) * image_size / w - 0.5
    v = (points[:, 1] - y0 + 0.5) * image_size / h - 0.5
    return np.stack([u, v, points[:, 2]], axis=1)


def score(
    params: dict,
    options: ModelOptions,
    files: Sequence[Path],
    points: Float[np.ndarray, "n k 3"],
    *,
    crop: Sequence[int],
    batch_size: int = 32,
    view_range: Float[Array, ""] | None = None,
) -> dict:
    """Reconstructs images and compares the depth at their keypoints.

    Args:
        params: of `model.init_params`.
        options: of the model.
        files, points: of `keypoint_files.find`; larger depth is farther.
        crop: `data.crop`; () is read as the largest centred square.
        batch_size: images at a time.
        view_range: see `model.decompose`.

    Returns:
        What `keypoint_depth_correlation` returns, and "left_out": the number of
        images that cannot be read or whose keypoints leave the crop.

    Raises:
        UserError: if fewer than two images are left.
    """
    size = options.networks.image_size
    crop = tuple(crop) or (0,)
    read, kept = [], []
    for file, table in zip(files, points, strict=True):
        try:
            picture, file_size = images.read_image(file, crop=crop, image_size=size)
        except Exception:  # PIL raises nearly anything on broken bytes
            continue
        moved = to_model_pixels(table, file_size, crop=crop, image_size=size)
        if np.all((moved[:, :2] > -0.5) & (moved[:, :2] < size - 0.5)):
            read.append(picture)
            kept.append(moved)
    if len(kept) < 2:
        raise UserError(
            f"--input: {len(kept)} of {len(files)} images can be read and hold their "
            "keypoints inside the crop; a correlation needs two."
        )
    depth = []
    for first in range(0, len(kept), batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), len(kept) - 1)
        batch = np.stack([read[i] for i in rows]).astype(np.float32) / 255.0
        where = np.stack([kept[i][:, :2] for i in rows]).astype(np.float32)
        pixels = jnp.asarray(batch), jnp.asarray(where)
        depth.append(_depth_at(params, *pixels, options, view_range))
    found = np.concatenate(depth)[: len(kept)]
    result = keypoint_depth_correlation(found, np.stack(kept)[..., 2])
    return result | {"left_out": len(files) - len(kept)}


@functools.partial(jax.jit, static_argnames="options")
def _depth_at(
    params: dict,
    image: Float[Array, "b h w 3"],
    where: Float[Array, "b k 2"],
    options: ModelOptions,
    view_range: Float[Array, ""] | None,
) -> Float[Array, "b k"]:
    factors = model.decompose(params, image, options, view_range=view_range)
    plain = model.reconstruct(factors, options).plain
    return jax.vmap(depth_at)(plain.depth, plain.valid, where)


def contact_sheet(
    files: Sequence[Path], points: Float[np.ndarray, "n k 3"], *, image_size: int = 128
) -> UInt8[np.ndarray, "H W 3"]:
    """The first images with their keypoints drawn: red is near, blue is far."""
    shown = []
    for file, table in list(zip(files, points, strict=True))[:12]:
        picture, size = images.read_image(file, crop=(0,), image_size=image_size)
        picture = picture.copy()
        moved = to_model_pixels(table, size, crop=(0,), image_size=image_size)
        span = np.ptp(moved[:, 2]) or 1.0
        far = (moved[:, 2] - moved[:, 2].min()) / span
        for (u, v, _), f in zip(moved, far, strict=True):
            row, column = int(round(v)), int(round(u))
            window = picture[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            window[:] = (255 * (1 - f), 0, 255 * f)
        shown.append(picture)
    return tiles.grid_of_images(shown)
