"""What a morphable model must be, and what of a file's is mended to make it so.

Indices and numbers are checked; the winding and the axes, which every format chooses
for itself, are turned to those of `types`, with a line that says so.
"""

import dataclasses
import logging

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from unsup3d_jax.stn3dmm import surface
from unsup3d_jax.stn3dmm.types import LandmarkSet, MorphableModel

logger = logging.getLogger(__name__)
MOST_VERTICES = 1_000_000
_FLAT = 0.2  # of the area: less than this all normals together, and the mesh is closed
_SAME_PLACE = 1e-4  # of the face's size: a vertex and the mirror image of its twin


def checked(model: MorphableModel) -> MorphableModel:
    """The model, its nose towards +z and its triangles counter-clockwise from outside.

    Raises:
        ValueError: if it is none, or its axes cannot be told; without the file's name.
    """
    count = len(model.mean)
    if not 3 <= count <= MOST_VERTICES:
        raise ValueError(f"a model has 3 to {MOST_VERTICES:,} vertices, found {count}.")
    for name in ("mean", "identity", "expression", "uv"):
        array = getattr(model, name)
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{name} must hold finite numbers.")
    _check_indices("faces", model.faces, count)
    if not len(model.faces):
        raise ValueError("a model needs triangles, found none.")
    if not (np.isfinite(model.unit) and model.unit > 0.0):
        raise ValueError(f"unit must be the metres of a unit, found {model.unit}.")
    if model.mirror is not None:
        _check_indices("mirror", model.mirror, count)
        if (model.mirror[model.mirror] != np.arange(count)).any():
            raise ValueError("mirror must lead back to each vertex when taken twice.")
    for name, points in model.landmarks.items():
        _check_landmarks(name, points, count)
    model = _axes_mended(_winding_mended(model))
    if model.uv is not None and (fault := _fault_of_uv(model.uv, model.faces)):
        logger.warning("%s: its UV layout %s; left out.", model.name, fault)
        model = dataclasses.replace(model, uv=None)
    return model


def _check_indices(name: str, ids: Int[np.ndarray, "..."], count: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < count:
        raise ValueError(
            f"{name} must number vertices from 0 to {count - 1}, found {ids.min()} to "
            f"{ids.max()}."
        )


def _check_landmarks(name: str, points: LandmarkSet, count: int) -> None:
    number = len(points.ids)
    _check_indices(f"landmarks {name}", points.ids, count)
    if not np.allclose(points.weights.sum(1), 1.0, atol=1e-3):
        raise ValueError(f"landmarks {name}: the weights of each must sum to one.")
    _check_indices(f"landmarks {name}, flip", points.flip, number)
    if (points.flip[points.flip] != np.arange(number)).any():
        raise ValueError(f"landmarks {name}: flip must lead back when taken twice.")


def _fault_of_uv(uv: Float[np.ndarray, "n 2"], faces: Int[np.ndarray, "f 3"]) -> str:
    if uv.min() < 0.0 or uv.max() > 1.0:
        return "leaves [0, 1]"
    wrong = int((surface.areas(uv, faces) <= 0.0).sum())
    if not wrong:
        return ""
    return f"turns {wrong} of {len(faces)} triangles over or flattens them"


def _winding_mended(model: MorphableModel) -> MorphableModel:
    """Most triangles, by area, look away from the middle of the face."""
    normal = surface.normals(model.mean, model.faces)
    middle = model.mean[model.faces].mean(1, dtype=np.float64)
    area = np.linalg.norm(normal, axis=1)
    if not area.sum() > 0.0:
        raise ValueError("the mean face has no area.")
    centre = (middle * area[:, None]).sum(0) / area.sum()
    if (normal * (middle - centre)).sum() >= 0.0:
        return model
    logger.warning("%s: triangles were clockwise from outside; turned.", model.name)
    return dataclasses.replace(model, faces=model.faces[:, [0, 2, 1]])


def _axes_mended(model: MorphableModel) -> MorphableModel:
    turn = _turn_of_landmarks(model)
    turn = _turn_of_normals(model) if turn is None else turn
    if (turn == np.eye(3)).all():
        return model
    axes = ", ".join(map(_axis, turn))
    logger.warning(
        "%s: axes were not left, up and out of the face; (%s) became (x, y, z).",
        model.name,
        axes,
    )

    def turned(points: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(points @ turn.T.astype(points.dtype))

    faces = model.faces if np.linalg.det(turn) > 0.0 else model.faces[:, [0, 2, 1]]
    return dataclasses.replace(
        model,
        mean=turned(model.mean),
        identity=turned(model.identity),
        expression=turned(model.expression),
        faces=faces,
    )


def _axis(row: np.ndarray) -> str:
    place = int(np.abs(row).argmax())
    return ("-" if row[place] < 0 else "") + "xyz"[place]


def _turn_of_landmarks(model: MorphableModel) -> np.ndarray | None:
    """The signed permutation of axes that the 68 landmarks show; None without them."""
    points = model.landmarks.get("ibug68")
    if points is None or len(points.ids) != 68:
        return None
    at = points.of(model.mean).astype(np.float64)
    ways = (at[16] - at[0], at[27] - at[8], at[30] - 0.5 * (at[0] + at[16]))
    places = [int(np.abs(way).argmax()) for way in ways]
    if len(set(places)) != 3:
        raise ValueError(
            "the landmarks show no left, up and front along the axes; turn the model "
            "so that x is the subject's left, y up, z out of the face."
        )
    turn = np.zeros((3, 3))
    for row, (way, place) in enumerate(zip(ways, places, strict=True)):
        turn[row, place] = np.sign(way[place])
    return turn


def _turn_of_normals(model: MorphableModel) -> np.ndarray:
    """Upright, the face where the open surface looks.

    A face that looks back is turned about the vertical, as if its axes were
    right-handed: left and right of a mirrored file cannot be told without landmarks.
    """
    normal = surface.normals(model.mean, model.faces)
    together = normal.sum(0)
    if np.linalg.norm(together) < _FLAT * np.linalg.norm(normal, axis=1).sum():
        return np.eye(3)  # a whole head
    place = int(np.abs(together).argmax())
    if place != 2:
        raise ValueError(
            f"the face looks along {'xyz'[place]}; turn the model so that x is the "
            "subject's left, y up, z out of the face."
        )
    return np.diag([1.0, 1.0, 1.0] if together[2] > 0.0 else [-1.0, 1.0, -1.0])


def find_mirror(points: Float[np.ndarray, "n 3"]) -> np.ndarray | None:
    """The vertex (n,) int32 that each becomes in the mirror x -> -x.

    None where the points are not their own mirror image, to a ten-thousandth of their
    size.
    """
    flipped = points * np.asarray([-1.0, 1.0, 1.0], points.dtype)
    gap, mirror = map(np.asarray, KDTree(points).query(flipped))
    size = float(np.ptp(points, axis=0).max())
    is_own_inverse = (mirror[mirror] == np.arange(len(points))).all()
    if gap.max() > _SAME_PLACE * size or not is_own_inverse:
        return None
    return mirror.astype(np.int32)


def with_mirror(model: MorphableModel) -> MorphableModel:
    """The model with the mirror that its mean face shows, if it shows one."""
    if model.mirror is not None:
        return model
    return dataclasses.replace(model, mirror=find_mirror(model.mean))
