"""Triangle meshes as graphs: edges, components, boundary, discs.

Numpy on the host. A directed edge (a, b) belongs to the triangle that has a before b;
in a closed surface of one winding its neighbour holds (b, a).
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse import csgraph

from unsup3d_jax.data.open_face.topology import boundary_loops


def directed_edges(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "e 2"]:
    """All (a, b), then all (b, c), then all (c, a), of 3 f edges."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def boundary_edges(faces: Int[np.ndarray, "f 3"]) -> Bool[np.ndarray, " e"]:
    """Which of the `directed_edges` no neighbour walks the other way."""
    edges = directed_edges(faces).astype(np.int64)
    count = int(edges.max(initial=0)) + 1
    return ~np.isin(
        edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0]
    )


def components(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, " f"]:
    """A number for each triangle, equal where they hang together by edges."""
    edges = np.sort(directed_edges(faces).astype(np.int64), axis=1)
    owner = np.tile(np.arange(len(faces)), 3)
    key = edges[:, 0] * (int(edges.max(initial=0)) + 1) + edges[:, 1]
    order = np.argsort(key, kind="stable")
    same = np.nonzero(key[order][1:] == key[order][:-1])[0]
    one, other = owner[order[same]], owner[order[same + 1]]
    joined = sparse.csr_matrix(
        (np.ones(len(one)), (one, other)), shape=(len(faces), len(faces))
    )
    return csgraph.connected_components(joined, directed=False)[1]


def largest(faces: Int[np.ndarray, "f 3"]) -> Bool[np.ndarray, " f"]:
    """Which triangles belong to the component with the most of them."""
    if not len(faces):
        return np.zeros(0, bool)
    label = components(faces)
    return label == np.bincount(label).argmax()


def disc(
    faces: Int[np.ndarray, "f 3"], wanted: Bool[np.ndarray, " f"]
) -> Bool[np.ndarray, " f"]:
    """The wanted triangles made a disc: one piece, without holes or loose ends.

    The largest piece is kept, what it encloses is added, and triangles that hang on by
    one edge, or by a vertex that the boundary passes twice, are dropped until there
    are none.

    Args:
        faces: of a surface without holes inside the wanted part.
        wanted: which triangles to begin with.
    """
    keep = np.zeros(len(faces), bool)
    keep[np.nonzero(wanted)[0][largest(faces[wanted])]] = True
    outside = np.nonzero(~keep)[0]
    keep[outside[~largest(faces[outside])]] = True
    return trimmed(faces, keep)


def trimmed(
    faces: Int[np.ndarray, "f 3"], keep: Bool[np.ndarray, " f"]
) -> Bool[np.ndarray, " f"]:
    """Without what hangs on by one edge, or by a vertex that the rim passes twice."""
    keep = keep.copy()
    while True:
        ids = np.nonzero(keep)[0]
        edge = boundary_edges(faces[ids])
        start = directed_edges(faces[ids])[edge][:, 0]
        passes = np.bincount(start, minlength=int(faces.max()) + 1)
        loose = edge.reshape(3, -1).sum(0) >= 2
        loose |= (passes[faces[ids]] >= 2).any(1)
        if not loose.any():
            return keep
        keep[ids[loose]] = False


def outer_boundary(faces: Int[np.ndarray, "f 3"], count: int) -> list[int]:
    """The boundary of a disc, as vertices in the order in which its faces walk it.

    Args:
        count: of vertices; each must belong to a face.

    Raises:
        ValueError: if the mesh is no disc, saying how not.
    """
    edges = directed_edges(faces).astype(np.int64)
    key = edges[:, 0] * count + edges[:, 1]
    if len(np.unique(key)) != len(key):
        raise ValueError("three triangles meet in one edge, or neighbours differ in "
                         "their winding")  # fmt: skip
    if len(np.unique(faces)) != count:
        raise ValueError(f"{count - len(np.unique(faces))} vertices have no triangle")
    pieces = int(components(faces).max()) + 1
    if pieces != 1:
        raise ValueError(f"it is in {pieces} pieces")
    rim = edges[boundary_edges(faces)]
    if len(np.unique(rim[:, 0])) != len(rim):
        raise ValueError("its boundary passes a vertex twice")
    loops = boundary_loops(faces.tolist())
    if len(loops) != 1:
        raise ValueError(f"it has {len(loops)} boundaries; one is needed")
    euler = count - (len(faces) * 3 + len(rim)) // 2 + len(faces)
    if euler != 1:
        raise ValueError(f"its Euler number is {euler}, that of a disc is 1")
    return loops[0]


def areas(
    points: Float[np.ndarray, "n 2"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, " f"]:
    """Signed areas of triangles in the plane, positive counter-clockwise; float64."""
    a, b, c = np.asarray(points, np.float64)[faces].swapaxes(0, 1)
    (bx, by), (cx, cy) = (b - a).T, (c - a).T
    return 0.5 * (bx * cy - by * cx)


def normals(
    points: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3"]:
    """Outward normals of triangles, as long as their area; float64."""
    a, b, c = np.asarray(points, np.float64)[faces].swapaxes(0, 1)
    return 0.5 * np.cross(b - a, c - a)
