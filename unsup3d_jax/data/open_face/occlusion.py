"""Ambient occlusion: how much of the sky each vertex of a head sees."""

import numpy as np


def ambient_occlusion(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Cosine-weighted share (v,) of 96 directions that see each vertex, 0 to 1.

    The surface is splatted as a dense cloud of points, finer than the pixels of
    the orthographic depth map of each direction.

    Args:
        points: (v, 3) in decimetres.
        faces: (f, 3).
    """
    size, bias, directions = 384, 0.015, 96
    cloud = surface_points(points, faces, spacing=0.005)
    radius = 1.02 * np.linalg.norm(cloud - cloud.mean(0), axis=1).max()
    normals = vertex_normals(points, faces)
    k = np.arange(directions) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / directions), np.pi * (1 + 5**0.5) * k
    lit, total = np.zeros(len(points)), np.zeros(len(points))
    for p, a in zip(polar, azimuth, strict=True):
        toward = np.array([np.cos(a) * np.sin(p), np.sin(a) * np.sin(p), np.cos(p)])
        side = np.cross(toward, [0.3, 1.0, 0.2])
        side /= np.linalg.norm(side)
        frame = np.stack([side, np.cross(toward, side), -toward])

        def project(q, frame=frame):
            x, y, z = ((q - cloud.mean(0)) @ frame.T).T
            pixel = [((t / radius + 1) / 2 * size).astype(int) for t in (x, y)]
            return pixel[1] * size + pixel[0], z

        nearest = np.full(size * size, np.inf)
        np.minimum.at(nearest, *project(cloud))
        index, depth = project(points)
        cosine = (normals @ toward).clip(0)
        lit += cosine * (depth < nearest[index] + bias)
        total += cosine
    return lit / total.clip(1e-9)


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (v, 3) of points (v, 3), faces (f, 3) weighted by their area."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    normal = np.zeros_like(points)
    for i in range(3):
        np.add.at(normal, faces[:, i], np.cross(b - a, c - a))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)


def surface_points(points, faces, *, spacing: float) -> np.ndarray:
    """A cloud (n, 3) over the faces (f, 3), no wider than `spacing`, unit of points."""
    corners = points[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    steps = np.ceil(longest / spacing).astype(int)
    cloud = []
    for n in np.unique(steps):
        i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        inside = i + j <= n
        u, v = i[inside] / n, j[inside] / n
        barycentrics = np.stack([1 - u - v, u, v], axis=1)
        cloud.append(np.einsum("pk,fkc->fpc", barycentrics, corners[steps == n]))
    return np.concatenate([c.reshape(-1, 3) for c in cloud])


def smooth_once(values, faces) -> np.ndarray:
    """Values (v,), each halfway to the mean of its neighbours by faces (f, 3)."""
    total, count = np.zeros_like(values), np.zeros_like(values)
    for i in range(3):
        for j in range(3):
            if i != j:
                np.add.at(total, faces[:, i], values[faces[:, j]])
                np.add.at(count, faces[:, i], 1.0)
    return 0.5 * values + 0.5 * total / count.clip(1)
