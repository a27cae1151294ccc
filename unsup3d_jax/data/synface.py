"""The authors' synthetic faces on disk: images with true depth maps.

Layout: <path>/{train,val,test}/{image,depth}/...; the depth map of an image
has the same path with every "image" replaced by "depth".
"""

import os
from functools import partial

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import folder, images
from unsup3d_jax.errors import UserError


def decode_depth(
    value: Float[np.ndarray, "h w"], *, depth_min: float, depth_max: float
) -> Float[np.ndarray, "h w"]:
    """Maps file values in [0, 1] to depth: white is near, black is far.

    depth = rescale(2 (1 - v) - 1), so v = 1 -> depth_min, v = 0 -> depth_max,
    scene units. Black is background and holds exactly depth_max.
    """
    far = 1.0 - value.astype(np.float64)
    depth = far * depth_max + (1.0 - far) * depth_min
    return depth.astype(np.float32)


def pair_items(config: ConfigDict, split: str) -> tuple[list[ds.Item], list[str]]:
    """Lists the image/depth pairs of a split.

    Returns:
        The pairs, sorted by the image's name, and the images without partner
        (which the authors' loader drops in silence).

    Raises:
        UserError: if the folder is missing or holds no pair.
    """
    root = folder.data_root(config)
    base = root / split / "image"
    if not base.is_dir():
        raise UserError(
            f"data.path: synface needs '{root}/{split}/image' and '.../depth'; "
            f"'{base}' is not a folder."
        )
    items, unpaired = [], []
    for name in folder.list_images(base):
        name = f"image/{name}"
        partner = root / split / name.replace("image", "depth")
        if partner.is_file():
            paths = (str(root / split / name), str(partner))
            items.append(ds.Item(f"{split}/{name}", paths))
        else:
            unpaired.append(f"{split}/{name}")
    if not items:
        raise UserError(
            f"data.path: split '{split}' is empty: '{base}' holds {len(unpaired)} "
            f"images, none with a partner under '{root / split / 'depth'}'."
        )
    return items, unpaired


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split: image uint8, depth float32 (scene units), mask bool.

    Raises:
        UserError: see `pair_items` and `folder.from_items`.
    """
    folder.check_options(config)
    items, unpaired = pair_items(config, split)
    options = {
        "image_size": config.data.image_size,
        "crop": tuple(config.data.crop),
        "depth_min": config.depth.min,
        "depth_max": config.depth.max,
    }
    return folder.from_items(
        config,
        split,
        items,
        partial(_read, **options),
        options=options,
        bytes_each=options["image_size"] ** 2 * (3 + 4 + 1),
        unpaired=unpaired,
    )


def _read(
    item: ds.Item,
    *,
    image_size: int,
    crop: tuple[int, ...],
    depth_min: float,
    depth_max: float,
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    image_path, depth_path = item.paths
    image, size = images.read_image(image_path, crop=crop, image_size=image_size)
    try:
        value, depth_size = images.read_value_map(
            depth_path, crop=crop, image_size=image_size
        )
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"depth map {os.path.basename(depth_path)}: {error}") from None
    if depth_size != size:  # a crop in pixels would cut different parts
        raise ValueError(f"the image has {size} pixels, its depth map {depth_size}")
    depth = decode_depth(value, depth_min=depth_min, depth_max=depth_max)
    mask = depth < np.float32(depth_max)
    return {"image": image, "depth": depth, "mask": mask}, size
