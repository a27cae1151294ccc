"""What theta is worth: pose, landmarks, shape, visibility, flattened faces.

A row of the table is theta of every image, from wherever; all rows are scored by the
same functions, image by image. `evaluation.report.RULES` says what the numbers are.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.evaluation.angles import rotation_angle_deg, view_angles_deg
from unsup3d_jax.evaluation.landmarks import box_size, mean_error
from unsup3d_jax.evaluation.summary import spread
from unsup3d_jax.evaluation.surfaces import aligned, mask_agreement, rms_distance
from unsup3d_jax.formation.losses import mean_share
from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.stn3dmm import layers, localiser, losses, morphable
from unsup3d_jax.stn3dmm import visibility as sight
from unsup3d_jax.stn3dmm.layers import POSE_SIZE, Camera
from unsup3d_jax.stn3dmm.localiser import LocaliserOptions
from unsup3d_jax.stn3dmm.morphable import GridModel
from unsup3d_jax.stn3dmm.options import OPEN_MODELS, Face
from unsup3d_jax.stn3dmm.people import open_face_perspective

YAW_BINS = (0.0, 30.0, 60.0, 90.0)  # degrees
TURNED = 40.0  # degrees of yaw: beyond, much of one side is hidden
_OUTER_EYES = (36, 45)  # of iBUG's 68
_MASK_SIZE = 224  # pixels: masks are compared at a resolution of their own
_MM = 1000.0


@struct.dataclass
class Surface:
    """A model's own vertices, which are even on the face as the grid's are not.

    Attributes:
        mean: (n, 3) model units.
        basis: (d, n, 3).
    """

    mean: Float[Leaf, "n 3"]
    basis: Float[Leaf, "d n 3"]


@struct.dataclass
class Judge:
    """What images are scored with; an argument of the compiled functions.

    Attributes:
        grid: of the theta that is scored.
        surface: the same model's own vertices.
        true_grid, true_surface: of the true theta; None where no truth is known.
        camera, true_camera, image_size, mode: static.
    """

    grid: GridModel
    surface: Surface
    true_grid: GridModel | None
    true_surface: Surface | None
    camera: Camera = struct.field(pytree_node=False)
    true_camera: Camera = struct.field(pytree_node=False)
    image_size: int = struct.field(pytree_node=False)
    mode: str = struct.field(pytree_node=False)


def judge_of(config: ConfigDict, face: Face) -> Judge:
    """What scores theta of a config's model.

    The truth of open faces is in the open model, seen through their camera.
    """
    columns = face.columns[POSE_SIZE:] - POSE_SIZE
    true_grid = true_surface = None
    if face.name in OPEN_MODELS:
        whole = morphable.load_model("open")
        true_grid = _on_device(morphable.grid_model(whole, face.grid.size))
        true_surface = Surface(jnp.asarray(whole.mean), jnp.asarray(whole.basis))
    return Judge(
        grid=_on_device(face.grid),
        surface=Surface(
            jnp.asarray(face.model.mean), jnp.asarray(face.model.basis[columns])
        ),
        true_grid=true_grid,
        true_surface=true_surface,
        camera=face.camera,
        true_camera=dataclasses.replace(
            face.camera, perspective=open_face_perspective()
        ),
        image_size=config.data.image_size,
        mode=config.visibility.eval,
    )


def _on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


# --- theta of images ------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="options")
def _localise(params: Any, images: Array, options: LocaliserOptions) -> Array:
    return localiser.localise(params, images.astype(jnp.float32) / 255.0, options)


def predict(
    params: Any,
    images: AnyArray,
    options: LocaliserOptions,
    batch_size: int,
) -> Float[np.ndarray, "n p"]:
    """Theta of images (n, h, w, 3) uint8, a few at a time."""
    params = jax.device_put(params)  # once, where a checkpoint gave NumPy arrays
    parts = []
    for first in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), len(images) - 1)
        found = np.asarray(_localise(params, jnp.asarray(images[rows]), options))
        parts.append(found[: len(images) - first])
    return np.concatenate(parts)


# --- scores of images -----------------------------------------------------------------


def score(
    theta: Float[AnyArray, "n p"],
    images: Mapping[str, AnyArray],
    judge: Judge,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """What theta scores on every image.

    Args:
        theta: a row's, of `judge.grid`.
        images: n of each of "image" (h, w, 3) uint8, "keypoints" (l, 2 or 3) pixels,
            perhaps NaN; where known "keypoints_visible" (l,) and "truth" (6 + 94,).
        batch_size: changes speed only.

    Returns:
        Name -> (n, ...): "nme", "nme_visible" and what else the truth is known for.
        Errors of images of which nothing is known are NaN.
    """
    names = ("image", "keypoints", "keypoints_visible", "truth")
    known = {name: images[name] for name in names if name in images}
    if judge.true_grid is None or "truth" not in known:
        # Only flattened faces, which are compared with true ones, need the images.
        known = {name: known[name] for name in known if name.startswith("keypoints")}
    parts, count = [], len(theta)
    for first in range(0, count, batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), count - 1)
        batch = {name: jnp.asarray(array[rows]) for name, array in known.items()}
        found = jax.device_get(_score(jnp.asarray(theta[rows]), batch, judge))
        parts.append({name: x[: count - first] for name, x in found.items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


@jax.jit
def _score(
    theta: Float[Array, "b p"], batch: dict[str, Array], judge: Judge
) -> dict[str, Array]:
    return jax.vmap(functools.partial(_score_one, judge=judge))(theta, batch)


def _score_one(
    vector: Float[Array, " p"], known: dict[str, Array], *, judge: Judge
) -> dict[str, Array]:
    theta = layers.split(vector)
    points = known["keypoints"][:, :2]
    posed = layers.posed(judge.grid, theta, judge.camera, image_size=judge.image_size)
    there = jnp.all(jnp.isfinite(points), axis=-1)
    box = box_size(points, there)
    result = {"nme": mean_error(posed.landmarks, points, there, box)}
    if "keypoints_visible" in known:
        seen = there & known["keypoints_visible"]
        result["nme_visible"] = mean_error(posed.landmarks, points, seen, box)
    if len(points) > max(_OUTER_EYES):
        eyes = jnp.linalg.norm(points[_OUTER_EYES[0]] - points[_OUTER_EYES[1]])
        result["nme_eyes"] = mean_error(posed.landmarks, points, there, eyes)
    if "truth" in known:
        result |= _against_truth(vector, known, posed, box, judge)
    return result


def _against_truth(
    vector: Array, known: dict[str, Array], posed: Any, box: Array, judge: Judge
) -> dict[str, Array]:
    """What only the true theta tells."""
    assert judge.true_grid is not None and judge.true_surface is not None
    theta, true = layers.split(vector), layers.split(known["truth"])
    size, grid = judge.image_size, judge.grid.size
    true_posed = layers.posed(judge.true_grid, true, judge.true_camera, image_size=size)
    result = {}
    turn, true_turn = (layers.rotation_matrix(x.rotation) for x in (theta, true))
    result["rotation_deg"] = rotation_angle_deg(turn, true_turn)
    angles, true_angles = (_angles(x) for x in (turn, true_turn))
    apart = jnp.abs(angles - true_angles)
    result["angles_deg"] = jnp.minimum(apart, 360.0 - apart)  # the other way round
    result["true_yaw_deg"] = jnp.abs(true_angles[1])
    distance = jnp.linalg.norm(posed.pixels - true_posed.pixels, axis=-1)
    result["vertex_nme"] = jnp.mean(distance) / box

    shape = _shape(judge.surface, theta.alpha)
    true_shape = _shape(judge.true_surface, true.alpha)
    unit = _MM * judge.true_grid.unit
    mean = judge.true_surface.mean
    found, floor = (
        rms_distance(aligned(x, true_shape), true_shape) for x in (shape, mean)
    )
    eyes = true_posed.landmark_points[jnp.array(_OUTER_EYES)]
    result["shape_mm"], result["mean_shape_mm"] = unit * found, unit * floor
    result["shape_eyes"] = found / jnp.linalg.norm(eyes[0] - eyes[1])
    # How far the found shape departs from the mean, against how far it should.
    moved, should = shape - judge.surface.mean, true_shape - mean
    result["shape_slope"] = jnp.sum(moved * should) / jnp.sum(should * should)

    fine, true_fine = (
        layers.posed(model, x, camera, image_size=_MASK_SIZE)
        for model, x, camera in (
            (judge.grid, theta, judge.camera),
            (judge.true_grid, true, judge.true_camera),
        )
    )
    options = {"grid": grid, "image_size": _MASK_SIZE}
    true_seen = sight.zbuffer(true_fine, true, judge.true_camera, **options)
    mask = jnp.zeros((grid, grid), bool)
    for name, mode in (("visible", judge.mode), ("facing", "facing")):
        mask_of = sight.visibility(fine, theta, judge.camera, mode=mode, **options)
        overlap, accuracy = mask_agreement(mask_of > 0.5, true_seen)
        result[f"{name}_iou"], result[f"{name}_accuracy"] = overlap, accuracy
        if name == "visible":
            mask = mask_of > 0.5

    image = known["image"].astype(jnp.float32)[None] / 255.0
    flat, true_flat = (
        layers.flatten_image(image, x.pixels[None], grid) for x in (posed, true_posed)
    )
    counted = (true_seen & sight.inside(true_posed.pixels, grid, size))[None]
    error = jnp.mean(jnp.abs(flat - true_flat), axis=-1)
    result["texture_l1"] = _mean(error, counted.astype(error.dtype))
    mask = (mask & sight.inside(posed.pixels, grid, size))[None].astype(flat.dtype)
    for name, weight in (("masked", mask), ("unmasked", jnp.ones_like(mask))):
        result[f"symmetry_{name}"] = mean_share(losses.symmetry(flat, weight))
    return result


def _mean(values: Array, weight: Array) -> Array:
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def _angles(turn: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """Pitch, yaw and roll in the camera's frame, where y and z are turned round."""
    frames = jnp.array([1.0, -1.0, -1.0])
    return view_angles_deg(turn * frames * frames[:, None])


def _shape(surface: Surface, alpha: Float[Array, " d"]) -> Float[Array, "n 3"]:
    return surface.mean + jnp.tensordot(
        alpha, surface.basis, axes=1, precision="highest"
    )


# --- rows -----------------------------------------------------------------------------

_SPREADS = (
    *("nme", "nme_visible", "nme_eyes", "vertex_nme", "rotation_deg"),
    *("shape_mm", "mean_shape_mm", "shape_eyes", "shape_slope"),
    *("visible_iou", "visible_accuracy", "facing_iou", "facing_accuracy"),
    "texture_l1",
)


def row_of(name: str, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The scores of images as one row, JSON-able; means with their spreads.

    Returns:
        "name", "images", "ground_truth", each of `score`'s numbers, "yaw_deg",
        "pitch_deg", "roll_deg", "shape_ratio", "by_yaw", "symmetry".
    """
    row: dict[str, Any] = {
        "name": name,
        "images": len(scores["nme"]),
        "ground_truth": "rotation_deg" in scores,
    }
    row |= _means(scores)
    if not row["ground_truth"]:
        return row
    yaw = scores["true_yaw_deg"]
    row["by_yaw"] = {}
    for low, high in zip(YAW_BINS[:-1], YAW_BINS[1:], strict=True):
        inside = (yaw >= low) & (yaw < high)
        if inside.any():
            part = {key: values[inside] for key, values in scores.items()}
            row["by_yaw"][f"{low:g}-{high:g}"] = _means(part)
    turned = yaw > TURNED
    row["symmetry"] = {
        f"{name}_{where}": spread(scores[f"symmetry_{name}"], counts)
        for name in ("masked", "unmasked")
        for where, counts in (("turned", turned), ("other", ~turned))
    }
    return row


def _means(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key in _SPREADS:
        if key in scores:
            values = scores[key]
            result[key] = spread(np.nan_to_num(values), np.isfinite(values))
    if "angles_deg" in scores:
        for i, angle in enumerate(("pitch", "yaw", "roll")):
            result[f"{angle}_deg"] = spread(scores["angles_deg"][:, i])
        floor = float(scores["mean_shape_mm"].mean())
        result["shape_ratio"] = float(scores["shape_mm"].mean()) / floor
    return result


def validation(
    params: Any, dataset: Dataset, judge: Judge, options: LocaliserOptions, size: int
) -> dict[str, float]:
    """The few numbers that are worth a curve; "total", the NME, chooses the best."""
    images = flat_images(dataset)
    theta = predict(params, images["image"], options, size)
    row = row_of("val", score(theta, images, judge, size))
    names = ("nme", "rotation_deg", "yaw_deg", "shape_mm", "visible_iou", "texture_l1")
    numbers = {name: row[name]["mean"] for name in names if name in row}
    if "shape_ratio" in row:
        numbers["shape_ratio"] = row["shape_ratio"]
    return {"total": numbers["nme"], **numbers}


def flat_images(dataset: Dataset, most: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a data set, every view an image of its own.

    Args:
        most: use only the first images; 0: all.
    """
    arrays = (
        dataset.take(range(len(dataset))) if dataset.is_streamed else dataset.arrays
    )
    several = arrays["image"].ndim == 5
    flat = {
        name: array.reshape(-1, *array.shape[2:]) if several else array
        for name, array in arrays.items()
    }
    return {name: array[: most or None] for name, array in flat.items()}
