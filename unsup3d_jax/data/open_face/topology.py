"""The head cut out of the hm08 mesh: which vertices, which polygons, which mirror.

Eye and mouth pockets are cut away and closed by membranes, and a stub of neck is
added. All of it is linear in hm08, so that one matrix takes any target along. Frame
and unit are those of `hm08`: decimetres, x to the subject's left, y up, z forward.
"""

import dataclasses

import numpy as np
from scipy import sparse

from unsup3d_jax.data.open_face.hm08 import (
    EYE_SEED,
    EYEBALLS,
    LEFT_EYE_RIM,
    MOUTH_RIM,
    MOUTH_SEED,
)

CROP_Y, CROP_X = 5.90, 1.06


def flood(quads: np.ndarray, rim: list[int], seed: int) -> np.ndarray:
    """Mask (q,) of the quads joined to vertex `seed` without crossing a closed rim.

    Args:
        quads: (q, 4) vertex ids.
        rim: vertex ids along an edge loop, the first not repeated.
        seed: a vertex on the wanted side.
    """
    walls = {frozenset(e) for e in zip(rim, rim[1:] + rim[:1], strict=True)}
    by_edge: dict[frozenset, list[int]] = {}
    edges = [
        [frozenset((int(q[i]), int(q[(i + 1) % 4]))) for i in range(4)] for q in quads
    ]
    for i, quad_edges in enumerate(edges):
        for edge in quad_edges:
            by_edge.setdefault(edge, []).append(i)
    if not walls <= by_edge.keys():
        raise ValueError(f"the rim starting at {rim[0]} is no edge loop of the mesh.")
    todo = np.nonzero((quads == seed).any(1))[0].tolist()
    inside = np.zeros(len(quads), bool)
    inside[todo] = True
    while todo:
        for edge in edges[todo.pop()]:
            for other in by_edge[edge] if edge not in walls else ():
                if not inside[other]:
                    inside[other] = True
                    todo.append(other)
    return inside


@dataclasses.dataclass(frozen=True)
class Topology:
    """The head as a linear function of hm08: head = matrix @ hm08 + offset.

    Rows 0..v-1 are mesh vertices; the last two are the eye centres (left, right).
    """

    matrix: sparse.csr_matrix  # (v + 2, 19158), rows sum to one
    offset: np.ndarray  # (v + 2, 3)
    polygons: list[list[int]]  # of 3 or 4 corners
    labels: np.ndarray  # one a polygon: 0 skin, 1 left eye, 2 right eye, 3 mouth
    body_ids: np.ndarray  # hm08 id of the first vertices
    lash: np.ndarray
    membrane: np.ndarray  # 0 at the upper lid or lip, 1 at the lower
    num_core: int  # vertices before the neck stub

    def apply(self, points: np.ndarray, *, displacement: bool) -> np.ndarray:
        """Positions or displacements (19158, 3) of hm08 as the head's (v + 2, 3)."""
        moved = self.matrix @ points
        return moved if displacement else moved + self.offset


def build_topology(base: np.ndarray, quads: np.ndarray, mirror: np.ndarray) -> Topology:
    """Cuts the head, closes its eyes and mouth and adds the stub of neck.

    Args:
        base: (19158, 3) vertices of hm08, decimetres.
        quads: (q, 4) quads of its skin.
        mirror: (19158,) the vertex across the middle.

    Raises:
        ValueError: if the cut does not yield the parts it is written for.
    """
    right_eye_rim = [int(mirror[i]) for i in LEFT_EYE_RIM]
    keep = (base[quads, 1] > CROP_Y).all(1) & (np.abs(base[quads, 0]) < CROP_X).all(1)
    for rim, seed, count in (
        (LEFT_EYE_RIM, EYE_SEED, 321),
        (right_eye_rim, int(mirror[EYE_SEED]), 321),
        (MOUTH_RIM, MOUTH_SEED, 474),
    ):
        inside = flood(quads, rim, seed)
        if inside.sum() != count:
            raise ValueError(f"{inside.sum()} quads around {seed}, expected {count}.")
        keep &= ~inside
    quads = quads[keep]
    body_ids = np.unique(quads)
    if (len(quads), len(body_ids)) != (3138, 3206):
        raise ValueError(f"cropped head has {len(quads)} quads, {len(body_ids)} v.")
    new_id = {int(old): i for i, old in enumerate(body_ids)}
    polygons = [[new_id[int(i)] for i in q] for q in quads]
    labels = [0] * len(polygons)

    rows: list[dict[int, float]] = [{int(i): 1.0} for i in body_ids]
    offsets = [np.zeros(3)] * len(rows)
    lash, membrane = np.zeros(4000), np.zeros(4000)

    def add(row: dict[int, float], offset: np.ndarray, t: float) -> int:
        rows.append(row)
        offsets.append(offset)
        membrane[len(rows) - 1] = t
        return len(rows) - 1

    def add_polygon(corners: list[int], label: int) -> None:
        # Repeated corners stand for a collapsed column: slivers would flip.
        unique = [c for i, c in enumerate(corners) if c != corners[i - 1]]
        polygons.append(unique)
        labels.append(label)

    eyes = ((LEFT_EYE_RIM, EYEBALLS[0], 1, 1), (right_eye_rim, EYEBALLS[1], 2, -1))
    for rim, ball, label, side in eyes:
        centre = base[ball].mean(0)
        radius = np.linalg.norm(base[ball] - centre, axis=1).mean()
        # Start at the corner near the nose, walk over the upper lid.
        start = int(np.argmin(side * base[rim, 0]))
        loop = rim[start:] + rim[:start]
        end = int(np.argmax(side * base[loop, 0]))
        one, other = loop[1:end], loop[end + 1 :][::-1]
        one_is_upper = base[one, 1].mean() > base[other, 1].mean()
        upper, lower = (one, other) if one_is_upper else (other, one)
        if len(upper) != 13 or len(lower) != 13:
            raise ValueError(f"eye rim splits into {len(upper)} and {len(lower)}.")
        lash[[new_id[i] for i in upper]] = 1.0
        lash[[new_id[i] for i in lower]] = 0.45
        membrane[[new_id[i] for i in lower]] = 1.0
        corners = [new_id[loop[0]], new_id[loop[end]]]
        membrane[corners] = 0.5
        lash[corners] = 0.7
        columns = []
        for up, low in zip(upper, lower, strict=True):
            column = [new_id[up]]
            for t in (0.25, 0.5, 0.75):
                chord = (1 - t) * base[up] + t * base[low] - centre
                on_ball = chord * (radius / np.linalg.norm(chord) - 1.0)
                column.append(add({up: 1 - t, low: t}, on_ball, t))
            columns.append([*column, new_id[low]])
        columns = [[corners[0]] * 5, *columns, [corners[1]] * 5]
        for a, b in zip(columns, columns[1:], strict=False):
            for j in range(4):
                quad = [a[j], a[j + 1], b[j + 1], b[j]]
                # Seen from the front the left eye runs inwards-out, the right mirrored.
                add_polygon(quad if side > 0 else quad[::-1], label)

    upper = [MOUTH_RIM[i] for i in range(-9, 10)]
    lower = [MOUTH_RIM[i] for i in range(28, 9, -1)]
    if base[upper, 1].mean() < base[lower, 1].mean():
        raise ValueError("the mouth rim does not start on the upper lip.")
    columns = []
    for j, (up, low) in enumerate(zip(upper, lower, strict=True)):
        column = [new_id[up]] * 2 + [new_id[low]] * 2
        membrane[new_id[low]] = 1.0
        if 0 < j < 18:
            for k, t in ((1, 1 / 3), (2, 2 / 3)):
                recess = -0.06 * np.sin(np.pi * j / 18) * np.sqrt(np.sin(np.pi * t))
                column[k] = add({up: 1 - t, low: t}, np.array([0, 0, recess]), t)
        columns.append(column)
    for a, b in zip(columns, columns[1:], strict=False):
        for k in range(3):
            add_polygon([a[k], a[k + 1], b[k + 1], b[k]], 3)

    num_core = len(rows)
    loops = boundary_loops(polygons)
    if [len(loop) for loop in loops] != [46]:
        raise ValueError(f"boundary loops {[len(x) for x in loops]}, expected [46].")
    ring, top = loops[0], [int(body_ids[i]) for i in loops[0]]
    mean_z = base[top, 2].mean()
    for r in (1, 2):
        below = []
        for old in top:
            x, _, z = base[old]
            stub = np.array(
                [
                    x * (1 - 0.06 * r),
                    CROP_Y - 0.45 * r,
                    z + 0.03 * r - 0.10 * r * (z - mean_z),
                ]
            )
            below.append(add({old: 1.0}, stub - base[old], 0.0))
        for i in range(46):
            k = (i + 1) % 46
            # The boundary edge runs i -> k in its own quad, so k -> i here.
            add_polygon([ring[k], ring[i], below[i], below[k]], 0)
        ring = below

    num_vertices = len(rows)
    for ball in EYEBALLS:
        ids = range(ball.start, ball.stop)
        rows.append({i: 1.0 / len(ids) for i in ids})
        offsets.append(np.zeros(3))
    entries = [(w, i, old) for i, row in enumerate(rows) for old, w in row.items()]
    value, row_index, column_index = (np.array(x) for x in zip(*entries, strict=True))
    matrix = sparse.csr_matrix(
        (value, (row_index, column_index)), shape=(len(rows), len(base))
    )
    return Topology(
        matrix=matrix,
        offset=np.array(offsets),
        polygons=polygons,
        labels=np.array(labels),
        body_ids=body_ids,
        lash=lash[:num_vertices],
        membrane=membrane[:num_vertices],
        num_core=num_core,
    )


def boundary_loops(polygons: list[list[int]]) -> list[list[int]]:
    """Loops, as vertex ids, of directed edges that no neighbour walks the other way."""
    edges = {(p[i - 1], p[i]) for p in polygons for i in range(len(p))}
    after = {a: b for a, b in edges if (b, a) not in edges}
    loops = []
    while after:
        loop = [min(after)]
        while (step := after.pop(loop[-1])) != loop[0]:
            loop.append(step)
        loops.append(loop)
    return loops


def mirror_map(points: np.ndarray) -> np.ndarray:
    """Index (n,) of the mirror image of points (n, 3); the eye centres, last, swap."""
    flipped = points * [-1, 1, 1]
    gap = ((flipped[:, None] - points[None]) ** 2).sum(-1)
    mirror = gap.argmin(1)
    if gap.min(1).max() > 1e-10 or (mirror[mirror] != np.arange(len(points))).any():
        raise ValueError(f"head is not mirror-symmetric: {gap.min(1).max()=}.")
    return mirror


def triangulate(topology: Topology, points: np.ndarray, mirror: np.ndarray):
    """Splits quads by the shorter diagonal, ties mirror-symmetrically.

    Args:
        topology: whose polygons are split.
        points: (v + 2, 3) the resting head.
        mirror: (v + 2,) index of the mirrored vertex.

    Returns:
        faces (f, 3) and the label (f,) of the polygon each comes from.
    """
    faces, labels = [], []
    rank = np.minimum(np.arange(len(mirror)), mirror)
    for polygon, label in zip(topology.polygons, topology.labels, strict=True):
        if len(polygon) == 4:
            a, b, c, d = polygon
            ac = np.linalg.norm(points[a] - points[c])
            bd = np.linalg.norm(points[b] - points[d])
            tie = abs(ac - bd) < 1e-6
            first = min(rank[a], rank[c]) < min(rank[b], rank[d]) if tie else ac < bd
            split = [[a, b, c], [a, c, d]] if first else [[b, c, d], [b, d, a]]
        else:
            split = [polygon]
        faces += split
        labels += [label] * len(split)
    return np.array(faces), np.array(labels)
