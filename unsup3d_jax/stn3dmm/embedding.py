"""Flattens a disc of triangles onto the unit square: Tutte's embedding.

The boundary goes around the square by arc length; every other vertex is a weighted
mean of its neighbours. Cotangent weights make it nearly conformal (Bas et al.,
ICCVW 2017); where such a weight is negative a triangle may flip, and then positive
ones are taken, with which none can (Tutte 1963, Floater 2003). All float64.
"""

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import sparse
from scipy.sparse.linalg import splu

from unsup3d_jax.stn3dmm import surface

# In the order in which they are tried, from the most conformal to the safest.
WEIGHTS = ("cotangent", "clamped", "mean_value")
_LEAST_COTANGENT = 1e-3  # of `clamped`; an equilateral mesh has 0.58


def embed(
    points: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "f 3"],
    mirror: Int[np.ndarray, " n"] | None = None,
    *,
    weights: str = "cotangent",
) -> tuple[Float32[np.ndarray, "n 2"], str]:
    """The layout of a disc on the unit square, v upwards.

    With a mirror only half of the mesh is solved for: the other half is its mirror
    image to the last bit (u = 1 - u), and what is its own mirror image has u = 0.5.

    Args:
        points: of the mean face, model frame.
        faces: counter-clockwise from outside; a disc.
        mirror: the vertex that each becomes in a mirror.
        weights: of `WEIGHTS`; those behind it are tried where a triangle flips.

    Returns:
        (u, v) in [0, 1], with every triangle counter-clockwise in float32, and the
        weights that were used.

    Raises:
        ValueError: if the mesh is no disc, its boundary has too few vertices or no
            middle, or no weights lay it out.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights}.")
    points = np.asarray(points, np.float64)
    try:
        loop = surface.outer_boundary(faces, len(points))
    except ValueError as error:
        raise ValueError(f"the mesh cannot be laid out: {error}.") from None
    border = boundary_positions(points, loop, mirror)
    flipped = 0
    for kind in WEIGHTS[WEIGHTS.index(weights) :]:
        matrix = edge_weights(points, faces, kind)
        uv = _solve(matrix, loop, border, points, mirror)
        flipped = int((surface.areas(uv, faces) <= 0.0).sum())
        if not flipped:
            return uv, kind
    raise ValueError(
        f"the mesh cannot be laid out: {flipped} triangles flip or lose their area, "
        "such as those that join three vertices of one side of the square."
    )


def boundary_positions(
    points: Float[np.ndarray, "n 3"],
    loop: list[int],
    mirror: Int[np.ndarray, " n"] | None,
) -> Float[np.ndarray, "b 2"]:
    """Where the vertices of a boundary go on the unit square.

    The lowest vertex of the middle goes to (0.5, 0), the highest to (0.5, 1); between
    them by arc length, the vertices nearest to the corners exactly there, so that the
    square is covered whole.

    Args:
        loop: vertices, counter-clockwise seen from outside.
        mirror: without one the middle is half-way between the outermost in x.
    """
    ids = np.asarray(loop)
    middle = (
        _nearest_to_middle(points, ids) if mirror is None else ids[mirror[ids] == ids]
    )
    if len(middle) != 2:
        raise ValueError(
            "the symmetry line must meet the boundary in two vertices, it does in "
            f"{len(middle)}."
        )
    bottom, top = middle[points[middle, 1].argmin()], middle[points[middle, 1].argmax()]
    start = int(np.nonzero(ids == bottom)[0][0])
    ids = np.roll(ids, -start)
    turn = int(np.nonzero(ids == top)[0][0])
    right = _half_way(points[ids[: turn + 1]])
    if mirror is None:
        left = _half_way(points[ids[turn:].tolist() + [int(bottom)]])
        way = np.concatenate([right[:-1], 2.0 + left[:-1]])
        placed = _on_the_square(way)
    else:
        half = dict(zip(ids[: turn + 1].tolist(), _on_the_square(right), strict=True))
        placed = np.array(
            [half[i] if i in half else _mirrored(half, int(mirror[i])) for i in ids]
        )
    return np.roll(placed, start, axis=0)


def _nearest_to_middle(
    points: Float[np.ndarray, "n 3"], ids: Int[np.ndarray, " b"]
) -> Int[np.ndarray, " m"]:
    """The two vertices of a boundary, below and above, nearest to its middle in x."""
    x, y = points[ids, 0], points[ids, 1]
    off = np.abs(x - 0.5 * (x.min() + x.max()))
    lower = y < 0.5 * (y.min() + y.max())
    return np.array([ids[part][off[part].argmin()] for part in (lower, ~lower)])


def _mirrored(half: dict[int, np.ndarray], other: int) -> np.ndarray:
    if other not in half:
        raise ValueError("the mirror does not map the boundary onto itself.")
    return np.array([1.0 - half[other][0], half[other][1]])


def _half_way(chain: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, " k"]:
    """Arc lengths from 0 to 2 along half of the square's boundary.

    The vertices nearest to its two corners, at 0.5 and 1.5, are put there.
    """
    if len(chain) < 4:
        raise ValueError(f"half a boundary needs 4 vertices, it has {len(chain)}.")
    length = np.linalg.norm(np.diff(chain, axis=0), axis=1)
    way = np.append(0.0, np.cumsum(length))
    way *= 2.0 / way[-1]
    one = int(np.clip(np.abs(way - 0.5).argmin(), 1, len(way) - 3))
    two = int(np.clip(np.abs(way - 1.5).argmin(), one + 1, len(way) - 2))
    return np.interp(way, way[[0, one, two, -1]], [0.0, 0.5, 1.5, 2.0])


def _on_the_square(way: Float[np.ndarray, " k"]) -> Float[np.ndarray, "k 2"]:
    """Points of the boundary, `way` counter-clockwise from the middle of the bottom."""
    corners = [[0.5, 0], [1, 0], [1, 1], [0.5, 1], [0, 1], [0, 0], [0.5, 0]]
    at = [0.0, 0.5, 1.5, 2.0, 2.5, 3.5, 4.0]
    u, v = np.transpose(corners)
    return np.stack([np.interp(way, at, u), np.interp(way, at, v)], axis=1)


def edge_weights(
    points: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"], kind: str
) -> sparse.csr_matrix:
    """What each neighbour counts: (n, n), row i for vertex i; see `WEIGHTS`.

    Cotangent: (cot alpha + cot beta) / 2 of the angles opposite the edge. Mean value:
    (tan(alpha/2) + tan(beta/2)) / length, of the angles at the vertex beside the edge.
    """
    count, rows, columns, values = len(points), [], [], []
    for turn in range(3):
        a, b, c = np.roll(faces, -turn, axis=1).T
        ab, ac = points[b] - points[a], points[c] - points[a]
        dot = (ab * ac).sum(1)
        cross = np.linalg.norm(np.cross(ab, ac), axis=1)
        one, other = np.linalg.norm(ab, axis=1), np.linalg.norm(ac, axis=1)
        tiny = np.finfo(np.float64).tiny  # a triangle without area has no angles
        if kind == "mean_value":
            half = cross / np.maximum(one * other + dot, tiny)
            rows += [a, a]
            columns += [b, c]
            values += [half / np.maximum(one, tiny), half / np.maximum(other, tiny)]
        else:
            cotangent = 0.5 * dot / np.maximum(cross, tiny)
            rows += [b, c]
            columns += [c, b]
            values += [cotangent, cotangent]
    matrix = sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(count, count),
    )  # entries of one place add up
    if kind == "clamped":
        matrix.data = np.maximum(matrix.data, _LEAST_COTANGENT)
    return matrix


def _solve(
    weights: sparse.csr_matrix,
    loop: list[int],
    border: Float[np.ndarray, "b 2"],
    points: Float[np.ndarray, "n 3"],
    mirror: Int[np.ndarray, " n"] | None,
) -> Float32[np.ndarray, "n 2"]:
    count = len(points)
    own = np.arange(count)
    twin = own if mirror is None else np.asarray(mirror, np.int64)
    if mirror is not None:  # the two ways to cut a quad may differ between the halves
        weights = sparse.csr_matrix(0.5 * (weights + weights[twin][:, twin]))
    laplacian = sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights
    laplacian = sparse.csr_matrix(laplacian)
    known = np.zeros((count, 2))
    known[loop] = border - [0.5, 0.0]  # odd and even in the mirror
    # Of each pair the one on the subject's left is solved for.
    left = points[own, 0] - points[twin, 0]
    head = np.where((left > 0) | ((left == 0) & (own < twin)), own, twin)
    head[twin == own] = own[twin == own]
    inner = np.ones(count, bool)
    inner[loop] = False
    flat = np.empty((count, 2))
    for axis, sign in ((0, -1.0), (1, 1.0)):
        free = np.nonzero(inner & (head == own))[0]
        if mirror is not None and sign < 0:
            free = free[twin[free] != free]  # u = 0.5
        column = np.full(count, -1)
        column[free] = np.arange(len(free))
        moved = np.nonzero(inner & (column[head] >= 0))[0]
        spread = sparse.csr_matrix(
            (np.where(head[moved] == moved, 1.0, sign), (moved, column[head[moved]])),
            shape=(count, len(free)),
        )
        flat[:, axis] = known[:, axis]
        if len(free):
            reduced = sparse.csc_matrix(laplacian[free] @ spread)
            found = splu(reduced).solve(-(laplacian[free] @ known[:, axis]))
            flat[:, axis] += spread @ found
    if mirror is None:
        return (flat + [0.5, 0.0]).astype(np.float32)
    # 1 - u is exact for u from 0.5 up, in float32 too, so halves match to the bit.
    outer = (0.5 + np.abs(flat[head, 0])).astype(np.float32)
    u = np.where(flat[:, 0] >= 0.0, outer, np.float32(1) - outer)
    return np.stack([u, flat[head, 1].astype(np.float32)], axis=1)
