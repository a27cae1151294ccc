"""The layers again, from the formulas: float64 numpy, loops, nothing shared.

The slow program that `stn3dmm` is compared with: one face at a time, vectors of
coefficients, cells and triangles as they are numbered in Bas et al., ICCVW 2017.
"""

import numpy as np


def cross_matrix(r):
    return np.array([[0, -r[2], r[1]], [r[2], 0, -r[0]], [-r[1], r[0], 0.0]])


def rotation(r):
    """exp([r]x), by the power series of the matrix exponential, after halving."""
    matrix = cross_matrix(np.asarray(r, float)) / 2.0**10
    total, term = np.eye(3), np.eye(3)
    for k in range(1, 15):
        term = term @ matrix / k
        total = total + term
    for _ in range(10):
        total = total @ total
    return total


def rotation_derivative(r):
    """(3, 3, 3): dR / dr_i, Gallego and Yezzi, 2015; [e_i]x at 0."""
    r = np.asarray(r, float)
    eye = np.eye(3)
    angle2 = r @ r
    if angle2 == 0.0:
        return np.stack([cross_matrix(eye[i]) for i in range(3)])
    full = rotation(r)
    return np.stack(
        [
            (r[i] * cross_matrix(r) + cross_matrix(np.cross(r, (eye - full) @ eye[i])))
            / angle2
            @ full
            for i in range(3)
        ]
    )


def points_of(mean, basis, alpha):
    total = np.array(mean, float)
    for coefficient, column in zip(alpha, basis, strict=True):
        total = total + coefficient * np.asarray(column, float)
    return total


def project(points, theta, scale, offset, kappa, size):
    """(turned points, pixels) of model points under theta = (r, t, log s, alpha)."""
    theta = np.asarray(theta, float)
    full, s = rotation(theta[:3]), scale * np.exp(theta[5])
    half = (size - 1) / 2
    turned, pixels = [], []
    for point in points:
        p = full @ point
        denominator = 1 - kappa * s * p[2]
        x = (s * p[0] + theta[3] + offset[0]) / denominator
        y = (s * p[1] + theta[4] + offset[1]) / denominator
        turned.append(p)
        pixels.append([half * (1 + x), half * (1 - y)])
    return np.array(turned), np.array(pixels)


def sample(image, u, v):
    """One bilinear sample; each of the four taps outside the image counts as 0."""
    h, w, c = image.shape
    u0, v0 = int(np.floor(u)), int(np.floor(v))
    total = np.zeros(c)
    for vv in (v0, v0 + 1):
        for uu in (u0, u0 + 1):
            if 0 <= uu < w and 0 <= vv < h:
                total += (1 - abs(u - uu)) * (1 - abs(v - vv)) * image[vv, uu]
    return total


def _angle(a, b):
    return np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


def vertex_normals(points, grid, *, last_write):
    """(g*g, 3) sums of normals times angles, not normalised; as the release has them.

    Triangles of cell (i, j), clockwise from the front: (i,j) (i,j+1) (i+1,j), then
    (i+1,j+1) (i+1,j) (i,j+1); columns outside, rows inside. With `last_write` each of
    the three assignments, one a corner, keeps for a vertex the last triangle only.
    """
    triangles = []
    for j in range(grid - 1):
        for i in range(grid - 1):
            a, b, c, d = (p * grid + q for p in (i, i + 1) for q in (j, j + 1))
            triangles += [(a, b, c), (d, c, b)]
    total = np.zeros((grid * grid, 3))
    for corner in range(3):
        added = np.zeros_like(total)
        for triangle in triangles:
            a, b, c = (points[k] for k in triangle)
            normal = np.cross(b - a, b - c)
            first, second = _angle(b - a, c - a), _angle(a - b, c - b)
            angle = (first, second, np.pi - first - second)[corner]
            if last_write:
                added[triangle[corner]] = normal * angle
            else:
                added[triangle[corner]] += normal * angle
        total += added
    return total
