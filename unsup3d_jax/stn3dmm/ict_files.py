"""The light ICT face model (ICT-FaceKit, MIT licence): a folder of .obj meshes.

`generic_neutral_mesh.obj`, `identity000.obj` and on, and one mesh an expression. All
list the same vertices in the same order, which is what a reader must keep; so the few
kinds of line needed are read here, not by a library that may merge or reorder. Only
the full face area is kept, its first 9,409 vertices: teeth, eyeballs and the back of
the head are meshes of their own.
"""

import math
import re
from pathlib import Path

import numpy as np

from unsup3d_jax.data.open_face.model import LANDMARK_FLIP
from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.nets.file_guard import existing, reading
from unsup3d_jax.stn3dmm import model_checks
from unsup3d_jax.stn3dmm.parts import restricted
from unsup3d_jax.stn3dmm.types import LandmarkSet, MorphableModel

NEUTRAL = "generic_neutral_mesh.obj"
NUM_VERTICES, NUM_FACE = 26_719, 9_409  # of the whole, of the full face area
_LARGEST = 100 * 2**20  # bytes of a mesh; they have 3 MB
_MOST = 1000  # meshes
_LARGEST_FACE = 0.5  # metres, from a side of a head to the other
# Multi-PIE's 68 points, which iBUG's follow, as the kit lists them.
LANDMARKS = (
    *(1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924),
    *(2608, 3272, 4088, 3443, 268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734),
    *(2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360, 1507, 1542, 1537),
    *(1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695, 2081, 0),
    *(4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841, 5702, 5711, 5533, 6216, 6207),
    *(6470, 5517, 5966),
)


def read_ict(folder: str | Path) -> MorphableModel:
    """Reads a folder of meshes of one topology.

    Identities are per standard deviation, expressions per whole unit. Meshes of
    another size than the kit's are taken whole, without landmarks.

    Raises:
        UserError: naming the mesh that is missing, damaged, or unlike the neutral one.
    """
    folder = Path(folder)
    neutral_path = existing(folder / NEUTRAL)
    with reading(neutral_path, "OBJ mesh"):
        text = _text(neutral_path)
        neutral, faces = _vertices(text), _triangles(text)
    others = sorted(p for p in folder.glob("*.obj") if p.name != NEUTRAL)
    if len(others) > _MOST:
        raise UserError(f"{folder}: holds {len(others)} meshes, at most {_MOST} go.")
    moved: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for path in others:
        with reading(existing(path), "OBJ mesh"):
            points = _vertices(_text(path))
        if points.shape != neutral.shape:
            raise UserError(
                f"{path}: has {len(points)} vertices, {NEUTRAL} has {len(neutral)}; "
                "all meshes of a model must list the same."
            )
        is_identity = re.fullmatch(r"identity\d+", path.stem) is not None
        moved[is_identity].append((points - neutral).astype(np.float32))
    if not moved[True]:
        raise UserError(f"{folder}: has no meshes named identity000.obj and so on.")
    none = np.zeros((0, *neutral.shape), np.float32)
    whole = len(neutral) == NUM_VERTICES
    model = MorphableModel(
        mean=neutral.astype(np.float32),
        identity=np.stack(moved[True]),
        expression=np.stack(moved[False]) if moved[False] else none,
        faces=faces,
        landmarks={"ibug68": _landmarks()} if whole else {},
        mirror=None,
        uv=None,
        unit=_unit_of(neutral),
        name=folder.name,
        licence="MIT (ICT-FaceKit)" if whole else "",
    )
    with refusing(f"{folder}: "):
        model = model_checks.checked(model)
        if whole:
            model = restricted(model, np.all(model.faces < NUM_FACE, axis=1))
        return model_checks.with_mirror(model)


def _unit_of(points: np.ndarray) -> float:
    """The power of ten, metres, by which a head is 5 to 50 cm large; .obj has none."""
    extent = float(np.ptp(points, axis=0).max())
    return 10.0 ** -math.ceil(math.log10(max(extent, 1e-30) / _LARGEST_FACE))


def _landmarks() -> LandmarkSet:
    return LandmarkSet(
        ids=np.array(LANDMARKS, np.int32)[:, None],
        weights=np.ones((len(LANDMARKS), 1), np.float32),
        flip=np.array(LANDMARK_FLIP, np.int32),
    )


def _text(path: Path) -> list[str]:
    size = path.stat().st_size
    if size > _LARGEST:
        raise UserError(f"{path}: has {size:,} bytes; a mesh has at most {_LARGEST:,}.")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _vertices(lines: list[str]) -> np.ndarray:
    """Positions (n, 3) float64; what may follow x, y, z, such as colours, is left."""
    rows = [line.split()[1:4] for line in lines if line.startswith(("v ", "v\t"))]
    points = np.array(rows, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ValueError("its vertices are not finite x, y, z")
    return points


def _triangles(lines: list[str]) -> np.ndarray:
    """Polygons (f, 3) cut into fans; indices count from 1, or back from the end."""
    seen, triangles = 0, []
    for line in lines:
        if line.startswith(("v ", "v\t")):
            seen += 1
        elif line.startswith(("f ", "f\t")):
            corners = [int(word.split("/", 1)[0]) for word in line.split()[1:]]
            ids = [i - 1 if i > 0 else seen + i for i in corners]
            triangles += [
                (ids[0], b, c) for b, c in zip(ids[1:], ids[2:], strict=False)
            ]
    if not triangles:
        raise ValueError("it has no polygons")
    array = np.array(triangles, np.int64)
    if array.min() < 0 or array.max() >= seen:
        raise ValueError(f"its polygons name vertices beyond the {seen} there are")
    return array.astype(np.int32)
