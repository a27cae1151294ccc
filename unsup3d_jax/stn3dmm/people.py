"""Whose faces are learnt: people in several views, with theta where it is known.

An example of a data set of this method is a person: `image` (n, views, s, s, 3), and so
are the others. Photos with landmarks from files are people in one view.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import load as data_sets
from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.data.load import Splits
from unsup3d_jax.data.open_face import load as open_face_load
from unsup3d_jax.data.open_face import scene
from unsup3d_jax.stn3dmm import layers
from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.morphable import alpha_of
from unsup3d_jax.stn3dmm.open_model import Columns
from unsup3d_jax.stn3dmm.options import OPEN_MODELS, Face

# Light stays as it is in the camera's frame, so that flattened faces can be compared.
VARIES_IN_EVAL = ("pose", "expression")
_FIELDS = ("image", "keypoints", "keypoints_visible")
# Posed frame to camera frame of `scene` and back: y and z are turned round.
_FRAMES = np.array([1.0, -1.0, -1.0])


def lazy_splits(config: ConfigDict, face: Face, tell: Callable[[str], None]) -> Splits:
    """split name -> data set, each loaded when first asked for, and once.

    Args:
        config: data.
        face: of the config; gives theta its meaning.
        tell: is told in a line what a split leaves out.
    """

    @functools.cache
    def load(split: str) -> Dataset:
        dataset = load_split(config, face, split)
        if remark := ds.remark(dataset.report):
            tell(f"data: {remark}.")
        return dataset

    return load


def load_split(config: ConfigDict, face: Face, split: str) -> Dataset:
    """One split of the configured data set.

    Returns:
        Arrays "image" and "keypoints" of every set; of open faces also "truth" (n,
        views, 6 + 94), their theta in the open model, and where the config's model is
        one of theirs "latent" (n, views, 6 + d), theta in that.

    Raises:
        UserError: if the set or the split is missing or an option is wrong.
    """
    if config.data.name != "open_faces":
        return data_sets.load_split(config, split)
    # Of the test split every image is another person.
    views = config.data.views if split == "train" else 1
    dataset = open_face_load.load_people(config, split, views=views, fields=_FIELDS)
    return with_theta(dataset, face, asymmetry=config.data.asymmetry)


def load_views(config: ConfigDict, face: Face, split: str) -> Dataset:
    """The same people in several poses and expressions, under one light."""
    dataset = open_face_load.load_people(
        config,
        split,
        views=config.eval.views,
        count=config.eval.people,
        vary=VARIES_IN_EVAL,
        fields=(*_FIELDS, "mask"),
    )
    return with_theta(dataset, face, asymmetry=config.data.asymmetry)


def with_theta(dataset: Dataset, face: Face, *, asymmetry: float) -> Dataset:
    """Adds "truth" and "latent" to a set of open faces, and the mirror of the latter.

    Args:
        asymmetry: that the faces were made with.
    """
    arrays = dict(dataset.arrays)
    lead = arrays["scale"].shape
    known = [arrays.pop(name) for name in ("coefficients", "scale", "view")]
    coefficients, *where = [x.reshape(-1, *x.shape[len(lead) :]) for x in known]
    pose = pose_of(*where, camera=face.camera)

    def theta(columns: Columns) -> np.ndarray:
        alpha = alpha_of(coefficients, columns=columns, asymmetry=asymmetry)
        return np.concatenate([pose, alpha], axis=1).reshape(*lead, -1)

    arrays["truth"] = theta("raw")
    if face.name in OPEN_MODELS:
        arrays["latent"] = theta(OPEN_MODELS[face.name])[..., face.columns]
    of_shape = face.grid.coefficient_mirror
    mirror = None if of_shape is None else layers.mirror_matrix(of_shape)
    return dataclasses.replace(dataset, arrays=arrays, latent_mirror=mirror)


def open_face_perspective() -> float:
    """kappa of the camera that sees the open faces."""
    return layers.perspective_of(scene.FOV_DEG)


def pose_of(
    scale: Float[np.ndarray, " n"], view: Float[np.ndarray, "n 6"], *, camera: Camera
) -> Float[np.ndarray, "n 6"]:
    """Theta of open faces without its coefficients: r, t, log s.

    Exact through a camera with their perspective. Through another one the rotation is
    the same; what shows the same place then depends on depth.

    Args:
        scale, view: of the heads, as `open_face.truth` has them.
        camera: its scale and offset.

    Returns:
        (n, 6) float32.
    """
    kappa = open_face_perspective()
    view = view.astype(np.float64)
    turn = scene.rotation(view) * _FRAMES * _FRAMES[:, None]
    distance = kappa * (scene.CENTRE_DEPTH + view[:, 5])
    log_scale = np.log(scale / distance) - math.log(camera.scale)
    move = view[:, 3:5] * _FRAMES[:2] / distance[:, None] - np.array(camera.offset)
    rotation = Rotation.from_matrix(turn).as_rotvec()
    return np.column_stack([rotation, move, log_scale]).astype(np.float32)
