"""Parts of a morphable model, and what makes a disc of one that is nearly one."""

import dataclasses
import logging

import numpy as np
from jaxtyping import Bool, Float

from unsup3d_jax.data.open_face.topology import boundary_loops
from unsup3d_jax.stn3dmm import surface
from unsup3d_jax.stn3dmm.types import LandmarkSet, MorphableModel

logger = logging.getLogger(__name__)


def restricted(model: MorphableModel, keep: Bool[np.ndarray, " f"]) -> MorphableModel:
    """The model of some triangles and their vertices.

    Sets of landmarks that lose a point are left out, and so is a mirror that leads
    out of the part.
    """
    ids = np.unique(model.faces[keep])
    new_id = np.full(len(model.mean), -1, np.int32)
    new_id[ids] = np.arange(len(ids))
    mirror = None if model.mirror is None else new_id[model.mirror[ids]]
    landmarks = {}
    for name, points in model.landmarks.items():
        moved = np.where(points.weights == 0.0, -2, new_id[points.ids])
        if (moved != -1).all():  # what does not count may lie anywhere
            landmarks[name] = dataclasses.replace(
                points, ids=np.maximum(moved, 0).astype(np.int32)
            )
        else:
            logger.warning("%s: landmarks %s lie off the part.", model.name, name)
    return dataclasses.replace(
        model,
        mean=model.mean[ids],
        identity=model.identity[:, ids],
        expression=model.expression[:, ids],
        faces=new_id[model.faces[keep]],
        landmarks=landmarks,
        mirror=mirror if mirror is not None and (mirror >= 0).all() else None,
        uv=None if model.uv is None else model.uv[ids],
    )


def as_disc(model: MorphableModel) -> MorphableModel:
    """The largest piece of a model, loose triangles off, holes closed by fans.

    The middle of a fan is the mean of the rim, so it is linear in the coefficients as
    all vertices are: membranes over open eyes and an open mouth.

    Raises:
        ValueError: if the surface has no boundary to lay around a square.
    """
    keep = surface.trimmed(model.faces, surface.largest(model.faces))
    if not keep.any():
        raise ValueError(f"{model.name}: no part of it is a disc.")
    used = len(np.unique(model.faces))
    if not keep.all() or used < len(model.mean):
        logger.warning(
            "%s: %d triangles are loose or off the largest piece, %d vertices without "
            "any; left out.", model.name, (~keep).sum(), len(model.mean) - used,
        )  # fmt: skip
        model = restricted(model, keep)
    loops = boundary_loops(model.faces.tolist())
    if not loops:
        raise ValueError(
            f"{model.name}: is closed all around; cut the face out of the head first."
        )
    around = [_length(model.mean[loop]) for loop in loops]
    outer = int(np.argmax(around))
    holes = [loop for i, loop in enumerate(loops) if i != outer]
    if not holes:
        return model
    logger.warning("%s: %d holes closed.", model.name, len(holes))
    return _closed(model, holes)


def _length(points: Float[np.ndarray, "k 3"]) -> float:
    return float(np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum())


def _closed(model: MorphableModel, holes: list[list[int]]) -> MorphableModel:
    count = len(model.mean)

    def with_middles(points: np.ndarray) -> np.ndarray:
        middles = [points[..., hole, :].mean(-2, keepdims=True) for hole in holes]
        return np.concatenate([points, *middles], axis=-2).astype(points.dtype)

    faces = [model.faces]
    for i, hole in enumerate(holes):
        # The rim runs a -> b in its own triangles, so b -> a here.
        after = np.roll(hole, -1)
        middle = np.full(len(hole), count + i)
        faces.append(np.stack([after, hole, middle], axis=1).astype(np.int32))
    return dataclasses.replace(
        model,
        mean=with_middles(model.mean),
        identity=with_middles(model.identity),
        expression=with_middles(model.expression),
        faces=np.concatenate(faces),
        mirror=_mirror_with_middles(model.mirror, holes),
        uv=None,
    )


def _mirror_with_middles(
    mirror: np.ndarray | None, holes: list[list[int]]
) -> np.ndarray | None:
    if mirror is None:
        return None
    rims = [frozenset(hole) for hole in holes]
    found = [frozenset(mirror[hole].tolist()) for hole in holes]
    if any(rim not in rims for rim in found):
        return None
    middles = [len(mirror) + rims.index(rim) for rim in found]
    return np.append(mirror, middles).astype(np.int32)


def with_landmarks(
    model: MorphableModel, name: str, ids: np.ndarray, flip: np.ndarray
) -> MorphableModel:
    """The model with a set of landmarks at vertices (l,), `flip` of `LandmarkSet`.

    Raises:
        ValueError: if a vertex is none of the model's.
    """
    if ids.min() < 0 or ids.max() >= len(model.mean):
        raise ValueError(
            f"landmarks must be vertices from 0 to {len(model.mean) - 1}, found "
            f"{ids.min()} to {ids.max()}."
        )
    points = LandmarkSet(
        ids=ids.astype(np.int32)[:, None],
        weights=np.ones((len(ids), 1), np.float32),
        flip=flip.astype(np.int32),
    )
    return dataclasses.replace(model, landmarks={**model.landmarks, name: points})
