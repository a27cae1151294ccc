"""The authors' synthetic faces on disk: images with true depth maps.

Layout: <path>/{train,val,test}/{image,depth}/...; the depth map of an image lies at the
same place below depth/, and every "image" of the file's name is "depth", as in the
authors' loader. Where there is none, the same in the names of sub-folders too; else the
only one that differs by its extension, or by upper and lower case: a photo may be .jpg,
its map .png. White is near, black far and background (`decode_depth`); 8 or 16 bits.
"""

import collections
import dataclasses
import os
from functools import partial

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import folder, images, photos
from unsup3d_jax.data.file_set import Listing, check_options, from_listing
from unsup3d_jax.errors import UserError

# Maps that use less of their range than this are hardly meant so: millimetres in 16
# bits use 1 %, the authors' faces a half.
_SLIVER = 0.05
_LOOKED_AT = 64  # maps of a split, evenly spread


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


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The images of a split and what became of them.

    Attributes:
        items: image and depth map, sorted by the image's name.
        unpaired: names of images without a depth map (which the authors' loader drops
            in silence).
        ambiguous: names of images that could have several, or share one: nobody
            guesses, and they are left out too.
    """

    items: list[ds.Item]
    unpaired: list[str]
    ambiguous: list[str]


def pair_items(config: ConfigDict, split: str) -> Pairs:
    """Lists the image/depth pairs of a split.

    Raises:
        UserError: if the folder is missing or holds no pair.
    """
    root = folder.data_root(config)
    place = root / (folder.split_folder(root, split) or split)
    base = place / "image"
    if not base.is_dir():
        raise UserError(
            f"data.path: synface needs '{root}/{split}/image' and '.../depth'; "
            f"'{base}' is not a folder."
        )
    names = [f"image/{name}" for name in photos.look(base).images]
    exact = {}
    for name in names:
        for partner in (_authors_partner(name), name.replace("image", "depth")):
            if (place / partner).is_file():
                exact.setdefault(name, partner)
    # The maps that no image has by its full name, and the images that have none.
    free = collections.defaultdict(list)
    for name in photos.look(place / "depth").images:
        if (name := f"depth/{name}") not in exact.values():
            free[_stem(name)].append(name)
    others = collections.Counter(
        _stem(n.replace("image", "depth")) for n in names if n not in exact
    )
    pairs = Pairs([], [], [])
    for name in names:
        stem = _stem(name.replace("image", "depth"))
        maps = [exact[name]] if name in exact else free.get(stem, [])
        shown = f"{place.name}/{name}"
        if not maps:
            pairs.unpaired.append(shown)
        elif len(maps) > 1 or (name not in exact and others[stem] > 1):
            pairs.ambiguous.append(shown)
        else:
            paths = (str(place / name), str(place / maps[0]))
            pairs.items.append(ds.Item(shown, paths))
    if not pairs.items:
        unclear = f", {len(pairs.ambiguous)} of them with several"
        raise UserError(
            f"data.path: split '{split}' is empty: '{base}' holds {len(names)} "
            f"images, none with a partner under '{place / 'depth'}'"
            f"{unclear if pairs.ambiguous else ''}."
        )
    return pairs


def _authors_partner(name: str) -> str:
    """image/SUB/x_image.png -> depth/SUB/x_depth.png, whatever SUB is called."""
    folder, file = os.path.split(name)
    inside = folder.removeprefix("image").removeprefix("/")
    return "/".join(filter(None, ["depth", inside, file.replace("image", "depth")]))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].casefold()


def load(
    config: ConfigDict, split: str, *, depth_range: tuple[float, float]
) -> ds.Dataset:
    """Loads a split: image uint8, depth float32 (scene units), mask bool.

    Args:
        config: reads section data.
        split: train, val or test.
        depth_range: what white and black mean, scene units.

    Raises:
        UserError: see `pair_items` and `file_set.from_listing`.
    """
    check_options(config)
    pairs = pair_items(config, split)
    options = {
        "image_size": config.data.image_size,
        "crop": tuple(config.data.crop),
        "depth_min": depth_range[0],
        "depth_max": depth_range[1],
    }
    dataset = from_listing(
        config,
        split,
        Listing(pairs.items, pairs.unpaired, partner="a depth map"),
        partial(_read, **options),
        options=options,
        bytes_each=options["image_size"] ** 2 * (3 + 4 + 1),
    )
    notes = sliver(dataset, depth_range)
    if unclear := pairs.ambiguous:
        notes += (
            f"{len(unclear):,} images of {split} are skipped, whose names fit several "
            f"depth maps, or one map several of them: {ds.printable(unclear[0])} first",
        )
    return dataclasses.replace(
        dataset, report=dataclasses.replace(dataset.report, notes=notes)
    )


def sliver(dataset: ds.Dataset, depth_range: tuple[float, float]) -> tuple[str, ...]:
    """A clause about depth maps that use next to nothing of their range.

    Their object is nearly a plane, and scores against it mean nothing.
    """
    name, count = dataset.report.split, min(_LOOKED_AT, len(dataset))
    index = np.linspace(0, len(dataset) - 1, count).astype(int)
    some = dataset.take(index, ["depth", "mask"])
    depth, (near, far) = some["depth"][some["mask"]], depth_range
    if not depth.size:
        return (
            f"the depth maps of {dataset.report.split} are all black, which means far",
        )
    share = float(depth.max() - depth.min()) / (far - near)
    if share >= _SLIVER:
        return ()
    return (
        f"the depth maps of {name} use {100 * share:.2g} % of their "
        f"range, {depth.min():.4g} to {depth.max():.4g} scene units: white is "
        f"{near:g} (depth.min), black {far:g} (depth.max); spread them over 8 or 16 "
        "bits",
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
    except images.CropError:
        raise
    except images.ImageError as error:
        raise ValueError(
            f"depth map {os.path.basename(depth_path)}: {error.reason}"
        ) from None
    if depth_size != size:  # a crop in pixels would cut different parts
        raise ValueError(f"the image has {size} pixels, its depth map {depth_size}")
    depth = decode_depth(value, depth_min=depth_min, depth_max=depth_max)
    mask = depth < np.float32(depth_max)
    return {"image": image, "depth": depth, "mask": mask}, size
