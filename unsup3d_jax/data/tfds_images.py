"""Any image set of TensorFlow Datasets, read without TensorFlow.

The set must lie prepared as array records under `data.path`, as
`tfds build NAME --file_format=array_record` leaves it; nothing is downloaded.
"""

import os
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images
from unsup3d_jax.data.file_set import Listing, check_options, from_listing
from unsup3d_jax.errors import UserError


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split of `data.tfds_name`; field `image` only.

    Raises:
        UserError: if the set is not prepared under `data.path`, has no such
            split or no feature "image", or too few usable images.
    """
    check_options(config)
    data = config.data
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds  # 2 s; only those who need it wait

    try:
        # Its decorators hide the parameters of its methods from type checkers.
        builder: Any = tfds.builder(data.tfds_name, data_dir=data.path or None)
        available = builder.info.splits
        name = next((s for s in ds.SPLIT_NAMES[split] if s in available), None)
        if name is None:
            raise UserError(
                f"data.tfds_name: '{data.tfds_name}' has no split for '{split}' under "
                f"'{data.path}' (found: {', '.join(available) or 'none'}). Prepare it "
                "with: tfds build NAME --file_format=array_record --data_dir=DIR"
            )
        source = builder.as_data_source(split=name)
    except UserError:
        raise
    # The library raises many types for "not there" and "not prepared".
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"data.tfds_name: cannot open '{data.tfds_name}' under '{data.path}' "
            f"({type(error).__name__}: {first}). Prepare it with: tfds build NAME "
            "--file_format=array_record --data_dir=DIR, then set data.path=DIR"
        ) from error
    if "image" not in builder.info.features:
        raise UserError(
            f"data.tfds_name: '{data.tfds_name}' has no feature 'image', only "
            f"{', '.join(builder.info.features)}."
        )
    items = [ds.Item(name=f"{name}/{i:08d}", paths=()) for i in range(len(source))]
    size, crop = data.image_size, tuple(data.crop)
    return from_listing(
        config,
        split,
        Listing(items),
        partial(_read, source=source, crop=crop, image_size=size),
        options={
            "image_size": size,
            "crop": crop,
            "tfds": str(builder.info.full_name),
            # Records have no files of their own for the cache to watch.
            "bytes": int(available[name].num_bytes),
        },
        bytes_each=size * size * 3,
    )


def _read(
    item: ds.Item, *, source, crop: tuple[int, ...], image_size: int
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    pixels = source[int(item.name.rsplit("/", 1)[1])]["image"]
    grey = pixels.ndim == 3 and pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    small = images.rgb_square(image, crop=crop, image_size=image_size)
    return {"image": small}, image.size
