"""Depth at keypoints of any folder of images: the measure of the paper's Table 5.

    python -m unsup3d_jax.keypoints --config=configs/celeba.py --workdir=runs/celeba \\
        --input=FOLDER --output=scores.json

Three layouts (`--layout`), k keypoints an image, the same k everywhere:

csv (default)  Beside each image `photo.jpg` a file `photo.csv`: k lines
               `u,v,depth`. Lines that do not start with a number are comments.
npz            `FOLDER/keypoints.npz` with `names` (n,), paths of the images
               relative to FOLDER, and `keypoints` (n, k, 3).
3dfaw          The 3DFAW challenge: `FOLDER/<split>_img/ID.jpg` with
               `FOLDER/<split>_lm/ID_lm.csv`, 66 lines x,y,z; `--split=valid`, or
               `--split=test` for the 225 images that `list_valid_test.txt`
               (lines `ID,test,orientation`) takes out of `valid`.

u and v are pixels of the image file, to the right and down. Depth is in any
unit; larger is farther unless `--near=large`. Images are cropped by the config's
`data.crop` (where that is empty, to the largest centred square); those whose
keypoints leave the crop are left out and counted.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unsup3d_jax.data import folder, images
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.evaluation import metrics
from unsup3d_jax.files import write_atomically
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import ModelOptions, loss_weights, options_from_config

LAYOUTS = ("csv", "npz", "3dfaw")
NPZ_NAME = "keypoints.npz"
_3DFAW_LIST = "list_valid_test.txt"


def find(
    root: str | Path, layout: str, *, split: str = "valid"
) -> tuple[list[Path], Float[np.ndarray, "n k 3"]]:
    """Lists the images of a folder and their keypoints.

    Args:
        root: see the module's head.
        layout: one of `LAYOUTS`.
        split: of 3dfaw: train, valid or test.

    Returns:
        Image files, and u, v (pixels of the file) and depth of each keypoint.

    Raises:
        UserError: if the layout is not as described, naming the file.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"--input: {root} is not a folder.")
    if layout == "npz":
        return _find_npz(root)
    if layout == "csv":
        files = [root / name for name in folder.list_images(root)]
        pairs = [(file, file.with_suffix(".csv")) for file in files]
        pairs = [(file, table) for file, table in pairs if table.is_file()]
        where = f"{root}: no image has a .csv of the same name beside it"
    elif layout == "3dfaw":
        pairs = _pairs_3dfaw(root, split)
        where = f"{root}: no ID.jpg with ID_lm.csv for split {split!r}"
    else:
        raise UserError(
            f"--layout must be one of {', '.join(LAYOUTS)}, got {layout!r}."
        )
    if not pairs:
        raise UserError(f"--input: {where}.")
    tables = [read_csv(table) for _, table in pairs]
    for (_, table), points in zip(pairs, tables, strict=True):
        if len(points) != len(tables[0]):
            raise UserError(
                f"{table} holds {len(points)} keypoints, {pairs[0][1]} holds "
                f"{len(tables[0])}."
            )
    return [file for file, _ in pairs], np.stack(tables)


def read_csv(path: Path) -> Float[np.ndarray, "k 3"]:
    """Reads lines `u,v,depth`.

    Raises:
        UserError: if a line has other than three numbers, or there is none.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = [field.strip() for field in line.split(",")]
        if not fields[0] or fields[0][0] not in "+-.0123456789":
            continue  # a header, a comment, an empty line
        try:
            values = [float(field) for field in fields if field]
        except ValueError:
            values = []
        if len(values) != 3 or not np.isfinite(values).all():
            raise UserError(f"{path}, line {number}: need u,v,depth, got {line!r}.")
        rows.append(values)
    if not rows:
        raise UserError(f"{path}: no line u,v,depth.")
    return np.array(rows)


def _find_npz(root: Path) -> tuple[list[Path], np.ndarray]:
    path = root / NPZ_NAME
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, points = archive["names"], archive["keypoints"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: need an .npz with 'names' and 'keypoints' ({error})."
        ) from None
    if points.ndim != 3 or points.shape[2] != 3 or names.shape != points.shape[:1]:
        raise UserError(
            f"{path}: need names (n,) and keypoints (n, k, 3), got {names.shape} and "
            f"{points.shape}."
        )
    files = [root / str(name) for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{path}: names {missing[0]}, which does not exist.")
    return files, points.astype(np.float64)


def _pairs_3dfaw(root: Path, split: str) -> list[tuple[Path, Path]]:
    if split not in ("train", "valid", "test"):
        raise UserError(f"--split must be train, valid or test, got {split!r}.")
    home = "valid" if split == "test" else split
    image_folder, table_folder = root / f"{home}_img", root / f"{home}_lm"
    for place in (image_folder, table_folder):
        if not place.is_dir():
            raise UserError(f"--input: 3DFAW needs the folder {place}.")
    stems = sorted(path.stem for path in image_folder.glob("*.jpg"))
    if split == "test":
        listed = root / _3DFAW_LIST
        if not listed.is_file():
            raise UserError(f"--split=test needs the file {listed}.")
        lines = [line.split(",") for line in listed.read_text().splitlines()]
        chosen = {x[0].strip() for x in lines if len(x) > 1 and x[1].strip() == "test"}
        stems = [stem for stem in stems if stem in chosen]
    pairs = [(image_folder / f"{s}.jpg", table_folder / f"{s}_lm.csv") for s in stems]
    return [pair for pair in pairs if pair[1].is_file()]


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
        files, points: of `find`; larger depth is farther.
        crop: `data.crop`; () is read as the largest centred square.
        batch_size: images at a time.
        view_range: see `model.decompose`.

    Returns:
        What `metrics.keypoint_depth_correlation` returns, and "left_out": the
        number of images that cannot be read or whose keypoints leave the crop.

    Raises:
        UserError: if fewer than two images are left.
    """
    size = options.networks.image_size
    crop = tuple(crop) or (0,)
    pictures, kept = [], []
    for file, table in zip(files, points, strict=True):
        try:
            picture, file_size = images.read_image(file, crop=crop, image_size=size)
        except Exception:  # PIL raises nearly anything on broken bytes
            continue
        moved = to_model_pixels(table, file_size, crop=crop, image_size=size)
        if np.all((moved[:, :2] > -0.5) & (moved[:, :2] < size - 0.5)):
            pictures.append(picture)
            kept.append(moved)
    if len(kept) < 2:
        raise UserError(
            f"--input: {len(kept)} of {len(files)} images can be read and hold their "
            "keypoints inside the crop; a correlation needs two."
        )
    depth = []
    for first in range(0, len(kept), batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), len(kept) - 1)
        batch = np.stack([pictures[i] for i in rows]).astype(np.float32) / 255.0
        where = np.stack([kept[i][:, :2] for i in rows]).astype(np.float32)
        pixels = jnp.asarray(batch), jnp.asarray(where)
        depth.append(_depth_at(params, *pixels, options, view_range))
    found = np.concatenate(depth)[: len(kept)]
    result = metrics.keypoint_depth_correlation(found, np.stack(kept)[..., 2])
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
    return jax.vmap(metrics.depth_at)(plain.depth, plain.valid, where)


def contact_sheet(
    files: Sequence[Path], points: Float[np.ndarray, "n k 3"], *, image_size: int = 128
) -> UInt8[np.ndarray, "H W 3"]:
    """The first images with their keypoints drawn: red is near, blue is far."""
    from unsup3d_jax.show import pictures as show_pictures

    pictures = []
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
        pictures.append(picture)
    return show_pictures.grid_of_images(pictures)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    from configs import default
    from unsup3d_jax import cli
    from unsup3d_jax.engine import checkpoint
    from unsup3d_jax.unsup3d import train

    head, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m unsup3d_jax.keypoints",
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="of the run that trained")
    parser.add_argument("--workdir", help="default: runs/<config name>")
    parser.add_argument("--checkpoint", help="another workdir or checkpoint folder")
    parser.add_argument("--input", required=True, help="folder of images")
    parser.add_argument("--layout", default="csv", choices=LAYOUTS)
    parser.add_argument("--split", default="valid", help="of 3dfaw")
    parser.add_argument("--near", default="small", choices=("small", "large"))
    parser.add_argument("--output", help="scores, a .json file")
    parser.add_argument("--sheet", help="picture of the first images, a .png file")
    flags = parser.parse_args(argv)
    try:
        config = cli.load_config(Path(flags.config), default.get_config())
        train.check_config(config)
        files, points = find(flags.input, flags.layout, split=flags.split)
        if flags.near == "large":
            points = points * [1.0, 1.0, -1.0]
        if flags.sheet:
            from PIL import Image

            sheet = Image.fromarray(contact_sheet(files, points))
            with writing(flags.sheet):
                sheet.save(flags.sheet)
        place = Path(flags.checkpoint or flags.workdir or f"runs/{config.name}")
        params, step = checkpoint.load_params(place)
        checkpoint.check_meaning(config, place)
        result = score(
            params,
            options_from_config(config),
            files,
            points,
            crop=config.data.crop,
            view_range=loss_weights(config, step).view_range,
        )
        result |= {"checkpoint_step": step, "input": str(flags.input)}
        text = json.dumps(result, indent=2)
        print(text)
        if flags.output:
            with writing(flags.output):
                write_atomically(Path(flags.output), text + "\n")
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
