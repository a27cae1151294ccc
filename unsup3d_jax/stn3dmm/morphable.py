"""The morphable model as the layers use it: points that are linear in coefficients."""

from flax import struct
from jaxtyping import Float, Int

from unsup3d_jax.formation.types import Leaf


@struct.dataclass
class GridModel:
    """A morphable model laid out on a g x g grid of its UV map, row-major.

    Row 0 lies at the top (forehead); the mirror image reverses the columns. Model
    frame: x to the subject's left, y up, z out of the face.

    Attributes:
        mean: (g*g, 3) model units.
        basis: (d, g*g, 3) per standard deviation, identity first, then expression.
        landmark_mean, landmark_basis: (l, 3), (d, l, 3) of the landmarks themselves.
        coefficient_mirror: (d, d); a mirrored face has coefficients M @ alpha.
        landmark_flip: (l,) the landmark that each one becomes in the mirror.
        size: g; static.
        num_identity: columns of the basis that are identity; static.
        unit: metres in a model unit; static.
    """

    mean: Float[Leaf, "*b n 3"]
    basis: Float[Leaf, "*b d n 3"]
    landmark_mean: Float[Leaf, "*b l 3"]
    landmark_basis: Float[Leaf, "*b d l 3"]
    coefficient_mirror: Float[Leaf, "*b d d"]
    landmark_flip: Int[Leaf, "*b l"]
    size: int = struct.field(pytree_node=False)
    num_identity: int = struct.field(pytree_node=False)
    unit: float = struct.field(pytree_node=False)
