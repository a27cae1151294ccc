"""Small random face-like meshes, and models on them, for tests of layouts and files."""

import numpy as np
from scipy.spatial import Delaunay

from unsup3d_jax.stn3dmm import surface
from unsup3d_jax.stn3dmm.types import LandmarkSet, MorphableModel


def _right_half(rng, inner, rim):
    """Points of a half disc: those of the middle, of the rim, and inside."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rim)
    edge = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    edge[[0, -1], 0] = 0.0
    middle = np.stack([np.zeros(6), np.linspace(-0.8, 0.8, 6)], axis=1)
    radius, turn = np.sqrt(rng.uniform(0.02, 0.7, inner)), rng.uniform(-1.4, 1.4, inner)
    inside = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    return np.concatenate([edge, middle, inside])


def symmetric_disc(seed=0, *, inner=40, rim=14, stretch=1.0):
    """Points (n, 3), faces (f, 3) and mirror (n,) of a bump, its own mirror image."""
    rng = np.random.default_rng(seed)
    half = _right_half(rng, inner, rim)
    triangles = Delaunay(half).simplices.astype(np.int32)
    flat = surface.areas(half, triangles)
    triangles = triangles[np.abs(flat) > 1e-9]
    flat = surface.areas(half, triangles)
    triangles[flat < 0] = triangles[flat < 0][:, [0, 2, 1]]
    count, on_line = len(half), half[:, 0] == 0.0
    twin = np.where(on_line, np.arange(count), count + np.cumsum(~on_line) - 1)
    plane = np.concatenate([half, half[~on_line] * [-1.0, 1.0]])
    faces = np.concatenate([triangles, twin[triangles][:, [0, 2, 1]]])
    mirror = np.empty(len(plane), int)
    mirror[:count], mirror[twin] = twin, np.arange(count)
    faces = faces[surface.trimmed(faces, np.ones(len(faces), bool))]
    used = np.unique(faces)
    new = np.full(len(plane), -1)
    new[used] = np.arange(len(used))
    plane = plane[used] * [1.0, stretch]
    z = 0.6 * np.exp(-(plane**2).sum(1)) + 0.1 * np.cos(3 * plane[:, 1])
    points = np.concatenate([plane, z[:, None]], axis=1)
    return points, new[faces].astype(np.int32), new[mirror[used]].astype(np.int32)


def model(seed=0, *, identity=4, expression=2, uv=None, mirrored=True, **mesh):
    """A MorphableModel on such a disc; columns alternate symmetric, antisymmetric."""
    points, faces, mirror = symmetric_disc(seed, **mesh)
    rng = np.random.default_rng(seed + 1)
    columns = 0.1 * rng.normal(size=(identity + expression, len(points), 3))
    flipped = columns[:, mirror] * [-1, 1, 1]
    sign = np.where(np.arange(len(columns)) % 2, -1.0, 1.0)[:, None, None]
    columns = (0.5 * (columns + sign * flipped)).astype(np.float32)
    spot = int(points[:, 0].argmax())
    ids = np.array([[spot, spot], [mirror[spot], mirror[spot]], [spot, mirror[spot]]])
    return MorphableModel(
        mean=points.astype(np.float32),
        identity=columns[:identity],
        expression=columns[identity:],
        faces=faces,
        landmarks={
            "three": LandmarkSet(
                ids=ids.astype(np.int32),
                weights=np.full((3, 2), 0.5, np.float32),
                flip=np.array([1, 0, 2], np.int32),
            )
        },
        mirror=mirror if mirrored else None,
        uv=uv,
        unit=0.1,
        name="bump",
        licence="none",
    )
