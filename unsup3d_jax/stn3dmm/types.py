"""Morphable models: as files hold them, and as the layers use them.

Model frame: right-handed, x to the subject's left (image right), y up, z out of the
face towards the viewer; the origin where the head turns; lengths in model units.
"""

import dataclasses

import numpy as np
from flax import struct
from jaxtyping import Float, Float32, Int, Int32

from unsup3d_jax.formation.types import Leaf

_Numbers = np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LandmarkSet:
    """Points of a surface, each a weighted mean of a few vertices.

    Attributes:
        ids: (l, k) vertices; unused places repeat one, with weight 0.
        weights: (l, k), each row sums to one.
        flip: (l,) the landmark that each one becomes in a mirror.
    """

    ids: Int32[_Numbers, "l k"]
    weights: Float32[_Numbers, "l k"]
    flip: Int32[_Numbers, " l"]

    def of(self, points: Float[_Numbers, "*d n 3"]) -> Float[_Numbers, "*d l 3"]:
        """The landmarks of a surface, or how they move with each basis column."""
        taken = points[..., self.ids, :] * self.weights[..., None]
        return taken.sum(-2, dtype=np.float64).astype(points.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class MorphableModel:
    """A linear model of faces: vertices = mean + identity . a + expression . b.

    On the host; what it must satisfy is said in `model_checks.checked`.

    Attributes:
        mean: (n, 3) model units.
        identity: (di, n, 3) per standard deviation.
        expression: (de, n, 3) per standard deviation.
        faces: (f, 3) counter-clockwise from outside: (b - a) x (c - a) is outward.
        landmarks: by name, such as "ibug68" and "aflw21".
        mirror: (n,) the vertex that each one becomes in a mirror; None: not known.
        uv: (n, 2) in [0, 1], v upwards, faces counter-clockwise; None: none yet.
        unit: metres a model unit.
        name: for messages.
        licence: of the model, in a word or a line; "" if the file does not say.
    """

    mean: Float32[_Numbers, "n 3"]
    identity: Float32[_Numbers, "di n 3"]
    expression: Float32[_Numbers, "de n 3"]
    faces: Int32[_Numbers, "f 3"]
    landmarks: dict[str, LandmarkSet]
    mirror: Int32[_Numbers, " n"] | None
    uv: Float32[_Numbers, "n 2"] | None
    unit: float
    name: str
    licence: str

    @property
    def basis(self) -> Float32[_Numbers, "d n 3"]:
        """Identity, then expression, together."""
        return np.concatenate([self.identity, self.expression])


@struct.dataclass
class GridModel:
    """A morphable model laid out as a regular grid, as layers and losses use it.

    Vertices are row-major, row 0 at the top (forehead); node (i, j) lies at
    u = j / (g - 1), v = 1 - i / (g - 1); a mirror reverses the columns. Triangles:
    `rasterizer.grid_faces(g, g)`. Bas et al., ICCVW 2017, section 2.

    Attributes:
        mean: (g*g, 3) model units.
        basis: (d, g*g, 3) per standard deviation: identity, then expression.
        landmark_mean: (l, 3) the landmarks of the mean, kept exactly.
        landmark_basis: (d, l, 3).
        coefficient_mirror: (d, d) alpha of the mirrored face = this @ alpha; None
            where the model has no mirror.
        landmark_flip: (l,) the landmark that each one becomes in a mirror.
        size: g.
        num_identity: how many of d are identity; those come first.
        unit: metres a model unit.
    """

    mean: Float[Leaf, "*b n 3"]
    basis: Float[Leaf, "*b d n 3"]
    landmark_mean: Float[Leaf, "*b l 3"]
    landmark_basis: Float[Leaf, "*b d l 3"]
    coefficient_mirror: Float[Leaf, "*b d d"] | None
    landmark_flip: Int[Leaf, "*b l"]
    size: int = struct.field(pytree_node=False)
    num_identity: int = struct.field(pytree_node=False)
    unit: float = struct.field(pytree_node=False)
