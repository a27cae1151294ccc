"""Lays a morphable model out as a regular grid in its UV plane.

Node (i, j) of a g x g grid lies at u = j / (g - 1), v = 1 - i / (g - 1): rows from
the forehead down, and a mirror reverses the columns. Mean and every basis column are
interpolated in the triangle that holds the node (Bas et al., ICCVW 2017, section 2).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from unsup3d_jax.stn3dmm import surface
from unsup3d_jax.stn3dmm.coefficients import mirror_of_columns
from unsup3d_jax.stn3dmm.types import GridModel, MorphableModel

_CANDIDATES = 2_000_000  # pairs of node and triangle that are looked at together
_MARGIN = 1e-9  # of a cell: nodes on the side of a triangle are looked at, too
_INSIDE = -1e-6  # least barycentric of a node that a triangle holds, float32's rounding


def grid_model(
    model: MorphableModel,
    size: int,
    *,
    landmarks: str = "ibug68",
    identity: int | None = None,
    expression: int | None = None,
) -> GridModel:
    """A model resampled to size x size vertices, in float32.

    Args:
        model: with `uv`.
        size: g, at least 2.
        landmarks: which set goes along; its points are kept as they are.
        identity, expression: how many of the first columns; None: all.

    Raises:
        ValueError: if the model has no `uv` or not those landmarks, or a number is
            out of range.
    """
    if model.uv is None:
        raise ValueError(
            f"{model.name}: has no UV layout; make one by "
            "`python -m unsup3d_jax.stn3dmm.uv MODEL.npz`."
        )
    if landmarks not in model.landmarks:
        known = ", ".join(sorted(model.landmarks)) or "none"
        raise ValueError(f"{model.name}: has no landmarks {landmarks!r}; has {known}.")
    if size < 2:
        raise ValueError(f"a grid needs a size of at least 2, got {size}.")
    for name, number, most in (
        ("identity", identity, len(model.identity)),
        ("expression", expression, len(model.expression)),
    ):
        if number is not None and not 0 <= number <= most:
            raise ValueError(
                f"{name} must be from 0 to the {most} columns of {model.name}, got "
                f"{number}."
            )
    first = model.identity[:identity]
    basis = np.concatenate([first, model.expression[:expression]])
    matrix, points = node_weights(model, size), model.landmarks[landmarks]
    mirror = mirror_of_columns(basis, model.mirror)
    return GridModel(
        mean=jnp.asarray(_resampled(matrix, model.mean[None])[0]),
        basis=jnp.asarray(_resampled(matrix, basis)),
        landmark_mean=jnp.asarray(points.of(model.mean)),
        landmark_basis=jnp.asarray(points.of(basis)),
        coefficient_mirror=None if mirror is None else jnp.asarray(mirror),
        landmark_flip=jnp.asarray(points.flip),
        size=size,
        num_identity=len(first),
        unit=model.unit,
    )


def _resampled(
    matrix: sparse.csr_matrix, basis: Float[np.ndarray, "d n 3"]
) -> Float[np.ndarray, "d m 3"]:
    nodes = len(matrix.indptr) - 1
    out = np.empty((len(basis), nodes, 3), np.float32)
    for column, moved in enumerate(basis):
        out[column] = matrix @ moved.astype(np.float64)
    return out


def nodes_of(size: int) -> Float[np.ndarray, "m 2"]:
    """(u, v) of the g*g nodes, row-major; float64."""
    row, column = np.divmod(np.arange(size * size), size)
    return np.stack([column, size - 1 - row], axis=1) / (size - 1)


def node_weights(model: MorphableModel, size: int) -> sparse.csr_matrix:
    """What each vertex counts at each node: (g*g, n), float64, rows sum to one.

    Where the layout is its own mirror image the left half is the mirror image of the
    right half, and a node on the symmetry line counts both sides alike; so mirrored
    columns are equal even where the two halves of the mesh are cut differently.

    Raises:
        ValueError: if the model has no `uv`.
    """
    if model.uv is None:
        raise ValueError(f"{model.name}: has no UV layout.")
    uv = np.asarray(model.uv, np.float64)
    nodes, column = nodes_of(size), np.arange(size * size) % size
    twin = model.mirror
    if twin is None or (uv[twin] != uv * [-1.0, 1.0] + [1.0, 0.0]).any():
        return _weights(uv, model.faces, nodes)
    right = np.nonzero(2 * column >= size - 1)[0]
    half = _weights(uv, model.faces, nodes[right])
    entry = sparse.coo_matrix(half)
    middle = 2 * column[right[entry.row]] == size - 1
    value = np.where(middle, 0.5 * entry.data, entry.data)
    node = right[entry.row]
    mirrored = node + size - 1 - 2 * column[node]
    return sparse.csr_matrix(
        (
            np.concatenate([value, value]),
            (
                np.concatenate([node, mirrored]),
                np.concatenate([entry.col, np.asarray(twin)[entry.col]]),
            ),
        ),
        shape=(size * size, len(uv)),
    )


def _weights(
    uv: Float[np.ndarray, "n 2"],
    faces: Int[np.ndarray, "f 3"],
    nodes: Float[np.ndarray, "m 2"],
) -> sparse.csr_matrix:
    ids, weights = locate(uv, faces, nodes)
    rows = np.repeat(np.arange(len(nodes)), 3)
    return sparse.csr_matrix(
        (weights.ravel(), (rows, ids.ravel())), shape=(len(nodes), len(uv))
    )


def locate(
    uv: Float[np.ndarray, "n 2"],
    faces: Int[np.ndarray, "f 3"],
    nodes: Float[np.ndarray, "m 2"],
) -> tuple[Int[np.ndarray, "m 3"], Float[np.ndarray, "m 3"]]:
    """The triangle that holds each point, or the nearest point of the boundary.

    Args:
        uv: of the vertices, float64.
        faces: counter-clockwise; those without area hold nothing.
        nodes: points anywhere.

    Returns:
        Vertices, and their weights: from 0 up, of sum 1.
    """
    order = np.argsort(nodes[:, 0], kind="stable")
    a, b, c = uv[faces].swapaxes(0, 1)
    low = np.minimum(np.minimum(a, b), c) - _MARGIN
    high = np.maximum(np.maximum(a, b), c) + _MARGIN
    whole = surface.areas(uv, faces)
    begin = np.searchsorted(nodes[order, 0], low[:, 0], "left")
    end = np.searchsorted(nodes[order, 0], high[:, 0], "right")
    best = np.full(len(nodes), -np.inf)
    owner = np.full(len(nodes), -1)
    counts = np.where(whole > 0.0, end - begin, 0)
    for some in _parts(counts):
        face = np.repeat(some, counts[some])
        within = np.arange(len(face)) - np.repeat(
            np.cumsum(counts[some]) - counts[some], counts[some]
        )
        node = order[begin[face] + within]
        near = (nodes[node, 1] >= low[face, 1]) & (nodes[node, 1] <= high[face, 1])
        face, node = face[near], node[near]
        least = _barycentrics(a[face], b[face], c[face], nodes[node]).min(1)
        # The last of equals stays: sorted, the best of each node comes last.
        rank = np.lexsort((-face, least, node))
        last = np.append(node[rank][1:] != node[rank][:-1], True)[: len(rank)]
        face, node, least = (x[rank][last] for x in (face, node, least))
        better = least > best[node]
        best[node[better]], owner[node[better]] = least[better], face[better]
    outside = np.nonzero(best < _INSIDE)[0]
    owner[outside] = 0
    ids = faces[owner].astype(np.int64)
    weights = _barycentrics(a[owner], b[owner], c[owner], nodes).clip(0.0)
    if len(outside):
        ids[outside], weights[outside] = _nearest(uv, faces, nodes[outside])
    return ids, weights / weights.sum(1, keepdims=True)


def _parts(counts: Int[np.ndarray, " f"]) -> list[Int[np.ndarray, " p"]]:
    """Triangles in turn, so many at a time that their candidates stay few."""
    part = np.cumsum(counts) // _CANDIDATES
    some = np.nonzero(counts)[0]
    return np.split(some, np.nonzero(np.diff(part[some]))[0] + 1) if len(some) else []


def _barycentrics(a, b, c, point) -> Float[np.ndarray, "m 3"]:
    """Barycentrics of points in the plane; NaN never, as areas are positive or the
    triangle is not asked."""
    (bx, by), (cx, cy), (px, py) = (b - a).T, (c - a).T, (point - a).T
    area = bx * cy - by * cx
    area = np.where(area == 0.0, 1.0, area)
    of_b, of_c = (px * cy - py * cx) / area, (bx * py - by * px) / area
    return np.stack([1.0 - of_b - of_c, of_b, of_c], axis=1)


def _nearest(
    uv: Float[np.ndarray, "n 2"],
    faces: Int[np.ndarray, "f 3"],
    nodes: Float[np.ndarray, "m 2"],
) -> tuple[Int[np.ndarray, "m 3"], Float[np.ndarray, "m 3"]]:
    """As `locate`, for points outside: the nearest point of a boundary edge."""
    edges = surface.directed_edges(faces)[surface.boundary_edges(faces)]
    start, way = uv[edges[:, 0]], uv[edges[:, 1]] - uv[edges[:, 0]]
    square = np.maximum((way * way).sum(1), np.finfo(np.float64).tiny)
    ids = np.empty((len(nodes), 3), np.int64)
    weights = np.zeros((len(nodes), 3))
    for i, point in enumerate(nodes):
        along = (((point - start) * way).sum(1) / square).clip(0.0, 1.0)
        gap = point - start - along[:, None] * way
        edge = int((gap * gap).sum(1).argmin())
        ids[i] = edges[edge, 0], edges[edge, 1], edges[edge, 1]
        weights[i, :2] = 1.0 - along[edge], along[edge]
    return ids, weights
