"""The images whose shape is wanted: of a data set, or photos; their masks and truth."""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from unsup3d_jax.configuration import changed
from unsup3d_jax.data import images as image_files
from unsup3d_jax.data import load
from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.engine.photo_job import list_photos
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import prior


@dataclasses.dataclass(frozen=True)
class Subjects:
    """Some images.

    Attributes:
        names: of each, for people and files.
        image: in [0, 1].
        mask: of the object, in [0, 1].
        prior: the depth that step 0 fits, scene units.
        dataset: with the truth, its images in the same order; None: photos.
        shared, own: of the projection, see there.
    """

    names: tuple[str, ...]
    image: Float[np.ndarray, "n h w 3"]
    mask: Float[np.ndarray, "n h w"]
    prior: Float[np.ndarray, "n h w"]
    dataset: Dataset | None
    shared: Any = ()
    own: Any = ()

    def __len__(self) -> int:
        return len(self.names)

    def identity(self, rows: slice) -> Mapping[str, Any]:
        """Tells these images from others; JSON-able."""
        pixels = np.ascontiguousarray(np.rint(self.image[rows] * 255).astype(np.uint8))
        return {"names": list(self.names[rows]), "pixels": zlib.crc32(pixels.data)}


def others(config: ConfigDict) -> Subjects:
    """The first `stages.joint_others` images of the training split.

    Raises:
        UserError: see `of_config`; and if there are fewer.
    """
    count = config.stages.joint_others
    changes = {"eval.split": "train", "eval.max_images": count}
    found = of_config(changed(config, changes), None)
    if len(found) < count:
        raise UserError(
            f"stages.joint_others={count}: the training split has {len(found)} images."
        )
    return found


def together(some: Subjects, more: Subjects) -> Subjects:
    """Images of two sets, of which no common truth is known."""

    def joined(one: Any, other: Any) -> np.ndarray:
        return np.concatenate([np.asarray(one), np.asarray(other)])

    return dataclasses.replace(
        some,
        names=some.names + more.names,
        image=joined(some.image, more.image),
        mask=joined(some.mask, more.mask),
        prior=joined(some.prior, more.prior),
        dataset=None,
        own=jax.tree.map(joined, some.own, more.own),
    )


def prior_options(config: ConfigDict) -> prior.PriorOptions:
    """Section prior of a checked config."""
    return prior.PriorOptions(
        shape=config.prior.shape,
        near=config.prior.near,
        far=config.prior.far,
        radius=config.prior.radius,
        category=config.prior.category,
        stretch=config.prior.stretch,
        compat=config.prior.compat,
    )


def of_config(config: ConfigDict, photos: Path | None) -> Subjects:
    """The images of --input, or of split eval.split of the data set.

    Raises:
        UserError: if there are none, or what the config asks of them is not known.
    """
    kind = config.projection.kind
    if kind == "oracle" and photos is not None:
        raise UserError("--input: the oracle knows the scenes of open faces alone.")
    # The control has the oracle's images.
    is_open = config.data.name == "open_faces" and photos is None
    if kind in ("oracle", "none") and is_open:
        return _of_scenes(config)
    if photos is not None:
        return _of_photos(config, photos)
    dataset = load.load_split(config, config.eval.split)
    count = count_of(config, dataset)
    arrays = dataset.take(range(count))
    image = np.asarray(arrays["image"], np.float32) / 255.0
    names = tuple(f"{config.eval.split}-{i:05d}" for i in range(count))
    return _with_prior(config, names, image, arrays.get("mask"), dataset)


def count_of(config: ConfigDict, dataset: Dataset) -> int:
    """How many images of a data set are wanted: the first `eval.max_images`."""
    limit, there = config.eval.max_images, len(dataset)
    return min(limit, there) if limit else there


def _of_photos(config: ConfigDict, source: Path) -> Subjects:
    files = list_photos(source, source / "unsup3d_jax")
    size, found, names = config.data.image_size, [], []
    for file in files:
        try:
            pixels, _ = image_files.read_image(file, crop=(0,), image_size=size)
        except (image_files.ImageError, OSError, MemoryError) as error:
            raise UserError(f"--input: {file} cannot be read ({error}).") from None
        found.append(np.asarray(pixels, np.float32) / 255.0)
        inside = file.relative_to(source) if source.is_dir() else Path(file.name)
        names.append(inside.as_posix())
    return _with_prior(config, tuple(names), np.stack(found), None, None)


def _of_scenes(config: ConfigDict) -> Subjects:
    """People of the open faces before a plain background, which can be drawn again."""
    from unsup3d_jax.gan2shape import scenes

    split = config.eval.split
    dataset = load.load_split(config, split)
    count = count_of(config, dataset)
    mesh, own = scenes.load(config, split, count)
    taken = jax.device_get(scenes.as_taken(mesh, own, size=config.data.image_size))
    names = tuple(f"{split}-{i:05d}" for i in range(count))
    found = _with_prior(config, names, np.asarray(taken.image), taken.mask, dataset)
    return dataclasses.replace(found, shared=mesh, own=own)


def of_images(
    config: ConfigDict, names: tuple[str, ...], images: Float[np.ndarray, "n h w 3"]
) -> Subjects:
    """Images in [0, 1] of which nothing else is known.

    Raises:
        UserError: if their masks cannot be had, see `prior.mask`.
    """
    return _with_prior(config, names, images, None, None)


def _with_prior(
    config: ConfigDict,
    names: tuple[str, ...],
    image: np.ndarray,
    true_mask: Any,
    dataset: Dataset | None,
) -> Subjects:
    mask = np.stack([_mask(config, name, i, true_mask) for i, name in enumerate(names)])
    options = prior_options(config)
    depths = []
    for name, one in zip(names, mask, strict=True):
        try:
            depths.append(prior.prior_depth(one, options))
        except ValueError as error:
            raise UserError(f"prior of {name}: {error}") from None
    return Subjects(names, image, mask, np.stack(depths), dataset)


def _mask(
    config: ConfigDict, name: str, place: int, true_mask: Any
) -> Float[np.ndarray, "h w"]:
    kind, size = config.prior.mask, config.data.image_size
    if kind == "ellipse":
        return prior.fixed_ellipse(size)
    if kind == "true":
        if true_mask is None:
            raise UserError(
                "prior.mask: the true mask of these images is not known; take folder "
                "or ellipse."
            )
        return np.asarray(true_mask[place], np.float32)
    file = Path(config.prior.mask_path).expanduser() / Path(name).with_suffix(".png")
    try:
        return image_files.read_value_map(file, crop=(0,), image_size=size)[0]
    except (image_files.ImageError, OSError) as error:
        raise UserError(
            f"prior.mask_path: the mask {file} cannot be read ({error})."
        ) from None
