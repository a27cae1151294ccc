"""Open synthetic faces: pictures with depth, normals, light and viewpoint known.

    faces = load("train", image_size=64, count=1000, seed=0, pose="natural",
                 cache_dir="cache")
    faces["image"]  # uint8 (n, h, w, 3)

A contact sheet:  python -m unsup3d_jax.data.open_faces --contact_sheet out.png

Each face follows from one number, so splits are disjoint ranges of numbers. The
arrays of a face:

    image, albedo      uint8 (h, w, 3)   display colours; albedo is 0 off the face
    depth              float32 (h, w)    metres at the pixel centre; FAR = 1.1 off it
    mask               bool (h, w)       depth < FAR
    normal             float32 (h, w, 3) unit (-z_x, -z_y, 1)/|.|; 0 off the face
    light              float32 (5,)      ambient, diffuse, direction; camera frame
    view               float32 (6,)      pitch, yaw, roll (radians), tx, ty, tz
    keypoints          float32 (68, 3)   iBUG: u, v (pixels), depth
    keypoints_visible  bool (68,)
    seed               int64             the face's number
    perturb            bool (h, w)       where a patch was laid, if asked for
"""

import argparse
import functools
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from unsup3d_jax.data.dataset import SPLITS
from unsup3d_jax.data.open_face import appearance, model, render
from unsup3d_jax.data.open_face.appearance import Numbers
from unsup3d_jax.data.open_face.render import FAR, FOV_DEG
from unsup3d_jax.data.open_face.scene import POSES
from unsup3d_jax.files import replacing

__all__ = ["FAR", "FOV_DEG", "POSES", "SPLITS", "contact_sheet", "generate", "load"]

logger = logging.getLogger(__name__)
VERSION = 3  # raise it whenever the same seed would give other arrays
_MAX_SEED = 1 << 20
_MAX_COUNT = 1 << 24
_NORMAL_STEPS = 127  # normals are kept as int8: 0.3 degrees


def load(
    split: str,
    *,
    image_size: int,
    count: int,
    seed: int = 0,
    pose: str = "mixed",
    asymmetry: float = 1.0,
    perturb: bool = False,
    cache_dir: str | os.PathLike | None = None,
    fields: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Returns `count` faces of a split, from the cache where it has them.

    Args:
        split: "train", "val" or "test"; no face is in two of them.
        image_size: height and width, pixels.
        count: how many; a smaller count is a prefix of a larger one.
        seed: another seed is another set of faces of that split.
        pose: "natural" (yaw about N(0, 20 degrees)) or "mixed" (wider).
        asymmetry: 0 for exactly symmetric faces, 1 for people.
        perturb: lay one coloured patch over each image (Wu et al., Sec. 4).
        cache_dir: where to keep the arrays; None to make them anew. A cache
            that cannot be read or written costs time, nothing else.
        fields: arrays to return; None for all. Leaving out what is not needed
            saves memory: normals are four times as large here as in the cache.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    seeds = split_seeds(split, count=count, seed=seed)
    options = {
        "image_size": image_size,
        "pose": pose,
        "asymmetry": asymmetry,
        "perturb": perturb,
    }
    make = functools.partial(_generate_compact, seeds, **options)
    if cache_dir is None:
        return _expand(make(), fields)
    request = options | {"split": split, "count": count, "seed": seed}
    path = Path(cache_dir) / f"open_faces-{split}-{_fingerprint(request)}.npz"
    stored = _read_cache(path, fields)
    if stored is None:
        stored = make()
        try:
            _write_cache(path, stored)
        except OSError as error:
            logger.warning("cannot cache the faces in %s: %s", path, error)
    return _expand(stored, fields)


def generate(
    seeds: np.ndarray,
    *,
    image_size: int,
    pose: str = "mixed",
    asymmetry: float = 1.0,
    perturb: bool = False,
) -> dict[str, np.ndarray]:
    """Makes the faces of the given numbers; the same number, the same face."""
    return _expand(
        _generate_compact(
            np.asarray(seeds, np.int64),
            image_size=image_size,
            pose=pose,
            asymmetry=asymmetry,
            perturb=perturb,
        )
    )


def split_seeds(split: str, *, count: int, seed: int = 0) -> np.ndarray:
    """Numbers of the faces of a split: split, seed and index in separate bits."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    if not 0 < count <= _MAX_COUNT or not 0 <= seed < _MAX_SEED:
        raise ValueError(
            f"need 0 < count <= {_MAX_COUNT} and 0 <= seed < {_MAX_SEED}, "
            f"got {count=}, {seed=}."
        )
    start = (SPLITS.index(split) * _MAX_SEED + seed) * _MAX_COUNT
    return np.arange(start, start + count, dtype=np.int64)


def _generate_compact(
    seeds: np.ndarray, *, image_size: int, pose: str, asymmetry: float, perturb: bool
) -> dict[str, np.ndarray]:
    """As `generate`, with normals as int8 and without what follows from depth."""
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8, got {image_size}.")
    if not 0.0 <= asymmetry <= 2.0:
        raise ValueError(f"asymmetry must lie in [0, 2], got {asymmetry}.")
    if pose not in POSES:
        raise ValueError(f"pose must be one of {POSES}, got {pose!r}.")
    if len(seeds) == 0 or seeds.min() < 0:
        raise ValueError("need at least one seed, none of them negative.")
    shape = model.load_model()
    mesh = render.make_mesh(shape, model.basis(shape, asymmetry=asymmetry))
    step = render.chunk_size(image_size)
    faces: dict[str, np.ndarray] = {}
    progress = tqdm(
        total=len(seeds), desc="rendering", unit=" faces", delay=2.0, leave=False,
        disable=None,
    )  # fmt: skip
    for start in range(0, len(seeds), step):
        chunk = seeds[start : start + step]
        people = model.sample_people(shape, chunk, asymmetry=asymmetry)
        look = appearance.sample_appearance(
            shape, chunk, people.attributes, asymmetry=asymmetry
        )
        pictures, where = render.render(
            mesh, chunk, people.coefficients, look, size=image_size, pose=pose
        )
        arrays = {
            "image": _byte(pictures.image),
            "depth": pictures.depth,
            "normal": np.rint(pictures.normal * _NORMAL_STEPS).astype(np.int8),
            "albedo": _byte(pictures.albedo),
            "light": where.light,
            "view": where.view,
            "keypoints": pictures.keypoints,
            "keypoints_visible": pictures.keypoints_visible,
            "seed": chunk,
        }
        if perturb:
            arrays["image"], arrays["perturb"] = lay_patches(arrays["image"], chunk)
        for name, part in arrays.items():
            if name not in faces:
                faces[name] = np.empty((len(seeds), *part.shape[1:]), part.dtype)
            faces[name][start : start + len(chunk)] = part
        progress.update(len(chunk))
    progress.close()
    return faces


def _byte(color: Numbers) -> np.ndarray:
    return np.floor(255 * color + 0.5).astype(np.uint8)


def _expand(
    stored: dict[str, np.ndarray], fields: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    wanted = {*stored, "mask"} if fields is None else set(fields)
    if unknown := wanted - {*stored, "mask"}:
        raise ValueError(f"no such fields: {', '.join(sorted(unknown))}.")
    faces = {name: array for name, array in stored.items() if name in wanted}
    if "mask" in wanted:
        faces["mask"] = stored["depth"] < FAR
    if "normal" in wanted:
        normal = stored["normal"].astype(np.float32)
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        normal /= np.maximum(length, 1.0)  # 0 stays 0 off the face
        faces["normal"] = normal
    return faces


def lay_patches(images: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One patch an image: random colour and place, 20-50 % of the size, alpha 0.5-1.

    The asymmetric perturbation of Wu et al., Sec. 4. It changes the image alone.

    Args:
        images: uint8 (n, h, w, 3).
        seeds: (n,).

    Returns:
        The images, and where the patches are: bool (n, h, w).
    """
    n, h, w, _ = images.shape
    draws = model.Draws(seeds, "patch", 8)
    size = draws.uniform(0.2, 0.5, 2) * [h, w]
    corner = draws.unit(2) * ([h, w] - size)
    alpha = draws.uniform(0.5, 1.0)[:, None, None, None]
    color = 255 * draws.unit(3)[:, None, None, :]
    first, last = np.rint(corner), np.rint(corner + size)
    row, column = np.arange(h), np.arange(w)
    rows = (row >= first[:, :1]) & (row < last[:, :1])
    columns = (column >= first[:, 1:]) & (column < last[:, 1:])
    covered = rows[:, :, None] & columns[:, None, :]
    mixed = np.rint((1 - alpha) * images + alpha * color)
    images = np.where(covered[..., None], mixed, images).astype(np.uint8)
    return images, covered


def _fingerprint(request: dict) -> str:
    digest = hashlib.sha256(model.MODEL_PATH.read_bytes())
    digest.update(json.dumps([VERSION, request], sort_keys=True).encode())
    return digest.hexdigest()[:20]


def _read_cache(
    path: Path, fields: Collection[str] | None = None
) -> dict[str, np.ndarray] | None:
    """The stored arrays; None if there are none or they cannot be read.

    Depth is always among them, because the mask follows from it.
    A zip holds a checksum of each member, so a truncated or altered file shows.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            wanted = stored.files if fields is None else {*fields, "depth"}
            return {k: stored[k] for k in stored.files if k in wanted}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("cache %s is damaged (%s); making it again.", path, error)
        return None


def _write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Other processes may read or make the same set at this moment."""
    with replacing(path, shared=True) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def contact_sheet(faces: dict[str, np.ndarray], *, columns: int = 10) -> Image.Image:
    """Images in rows; below them the layers of the first faces, near = white."""

    def rows(pictures: np.ndarray) -> np.ndarray:
        n = len(pictures) // columns * columns
        grid = pictures[:n].reshape(-1, columns, *pictures.shape[1:])
        return grid.transpose(0, 2, 1, 3, 4).reshape(-1, columns * grid.shape[3], 3)

    first = {k: v[:columns] for k, v in faces.items()}
    near = (FAR - first["depth"]) / (FAR - 0.9)
    mask = first["mask"][..., None]
    shading = first["light"][:, None, None, :1] + first["light"][
        :, None, None, 1:2
    ] * np.maximum(
        np.einsum("nhwc,nc->nhw", first["normal"], first["light"][:, 2:])[..., None], 0
    )
    layers = [
        first["albedo"],
        _byte(np.repeat(near.clip(0, 1)[..., None], 3, axis=-1)),
        _byte((first["normal"] / 2 + 0.5) * mask),
        _byte(np.repeat((shading / 1.2).clip(0, 1) * mask, 3, axis=-1)),
    ]
    return Image.fromarray(
        np.concatenate([rows(x) for x in (faces["image"], *layers)], axis=0)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contact_sheet", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pose", choices=POSES, default="mixed")
    parser.add_argument("--asymmetry", type=float, default=1.0)
    parser.add_argument("--perturb", action="store_true")
    parser.add_argument("--zoom", type=int, default=2)
    args = vars(parser.parse_args())
    path, zoom = args.pop("contact_sheet"), args.pop("zoom")
    sheet = contact_sheet(load(args.pop("split"), **args))
    size = (zoom * sheet.width, zoom * sheet.height)
    sheet.resize(size, Image.Resampling.NEAREST).save(path)
    print(f"{path}: {args['count']} faces, {args['image_size']} px.")


if __name__ == "__main__":
    main()
