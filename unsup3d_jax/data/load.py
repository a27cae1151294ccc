"""Which data set a config names; each split loaded when it is first asked for."""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from unsup3d_jax.data import celeba, folder, synface, tfds_images
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.errors import UserError

Splits = Callable[[str], Dataset]  # train, val or test -> the set


def load_split(config: ConfigDict, split: str) -> Dataset:
    """Loads one split of the configured data set.

    Args:
        config: the full configuration; reads `data`, of synface the depth range
            (`depth`), and of open_faces what must agree with how they are rendered
            (`depth`, `view`).
        split: train, val or test.

    Raises:
        UserError: if the set, the folder or the split is missing, empty or too
            small, or an option is wrong; the message names the key.
    """
    if split not in ds.SPLITS:
        raise UserError(f"split: expected {', '.join(ds.SPLITS)}, got '{split}'.")
    if config.data.name == "folder":
        return folder.load(config, split)
    if config.data.name == "celeba":
        return celeba.load(config, split)
    if config.data.name == "landmarks":
        # Here, as its landmarks are named as those of the open faces.
        from unsup3d_jax.data import landmark_folder

        return landmark_folder.load(config, split)
    if config.data.name == "synface":
        return synface.load(
            config, split, depth_range=(config.depth.min, config.depth.max)
        )
    if config.data.name == "open_faces":
        # Here, not above: who has photos of his own needs no renderer.
        from unsup3d_jax.data.open_face import load

        return load.load(config, split)
    if config.data.name == "tfds":
        return tfds_images.load(config, split)
    raise UserError(
        "data.name: expected celeba, folder, landmarks, open_faces, synface or tfds, "
        f"got '{config.data.name}'."
    )


def lazy_splits(config: ConfigDict, tell: Callable[[str], None] | None) -> Splits:
    """split name -> data set, each loaded when first asked for, and once.

    Args:
        config: as `load_split`.
        tell: is told in a line what a split leaves out, when it is loaded: somebody
            whose photos are mostly of a kind that is not read should not learn it
            from the result. None where another process says it.
    """

    @functools.cache
    def load(split: str) -> Dataset:
        dataset = load_split(config, split)
        remark = ds.remark(dataset.report)
        if remark and tell is not None:
            tell(f"data: {remark}.")
        return dataset

    return load
