"""What makes a natural picture of a pseudo sample: a GAN, the truth, or nothing.

A projection is pure. `shared` holds its arrays that all images use, `own` those of each
image, with a leading axis of images; both are arguments of the compiled programs.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from unsup3d_jax.data.open_face import render as open_face
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.types import Leaf
from unsup3d_jax.gan2shape.scenes import TrueScene

_NO_ENCODER = "there is no encoder to train."


@struct.dataclass
class Pseudo:
    """What the shape that is known so far looks like from elsewhere; of one image.

    Attributes:
        image: (b, h, w, 3) in [0, 1].
        mask: (b, h, w) true where the picture shows the canonical image.
        view: (b, 6) radians and scene units, canonical frame to camera.
        light: (b, 5) ambient, diffuse, direction in the canonical frame.
        image_view: (6,) of the image itself.
    """

    image: Float[Leaf, "b h w 3"]
    mask: Bool[Leaf, "b h w"]
    view: Float[Leaf, "b 6"]
    light: Float[Leaf, "b 5"]
    image_view: Float[Leaf, "6"]


@struct.dataclass
class Projected:
    """What became of pseudo samples.

    Attributes:
        image: (b, h, w, 3) in [0, 1].
        offset: (b, style) in the latent space; None without one.
    """

    image: Float[Leaf, "b h w 3"]
    offset: Float[Leaf, "b s"] | None = None


@runtime_checkable
class Projection(Protocol):
    """See above; hashable, as it is static.

    Attributes:
        learns: whether there is an encoder to be trained, in step 2.
    """

    @property
    def learns(self) -> bool: ...

    def init_encoder(self, key: Array) -> Any:
        """Parameters of the encoder; asked for only if it learns."""
        ...

    def project(self, encoder: Any, pseudo: Pseudo, shared: Any, own: Any) -> Projected:
        """Pseudo samples of one image -> natural pictures."""
        ...

    def loss(self, encoder: Any, pseudo: Pseudo, shared: Any, own: Any) -> Array:
        """What step 2 minimises over the encoder."""
        ...

    def lesson(self, encoder: Any, key: Array, shared: Any) -> Array:
        """What the encoder learns from before it sees any sample."""
        ...


@dataclasses.dataclass(frozen=True)
class NoProjection:
    """The pseudo samples themselves: a control, from which nothing can be learnt."""

    learns: bool = False

    def init_encoder(self, key: Array) -> Any:
        return {}

    def project(self, encoder: Any, pseudo: Pseudo, shared: Any, own: Any) -> Projected:
        return Projected(pseudo.image)

    def loss(self, encoder: Any, pseudo: Pseudo, shared: Any, own: Any) -> Array:
        raise ValueError(_NO_ENCODER)

    def lesson(self, encoder: Any, key: Array, shared: Any) -> Array:
        raise ValueError(_NO_ENCODER)


@dataclasses.dataclass(frozen=True)
class OracleProjection:
    """The true scene, drawn again at the view and light of a pseudo sample.

    The canonical frame is the network's own: it is where V's view of the image says.
    With (R, t) that view, (R', t') the sample's and (R*, t*) the true pose of the head,
    a point of the head appears in the sample at

        p' = R' R^T (R* x + t* - t) + t',

    all about the rotation's centre. The light, too, is turned from the canonical frame
    to the sample's camera. So a network whose depth is the true one in its own frame
    explains all samples exactly.

    Attributes:
        size: pixels.
    """

    size: int
    learns: bool = False

    def init_encoder(self, key: Array) -> Any:
        return {}

    def project(
        self, encoder: Any, pseudo: Pseudo, shared: open_face.Mesh, own: TrueScene
    ) -> Projected:
        return Projected(jnp.asarray(self.pictures(pseudo, shared, own).image))

    def pictures(
        self, pseudo: Pseudo, mesh: open_face.Mesh, scene: TrueScene
    ) -> open_face.Pictures:
        """All that is true of the projected samples."""
        matrix = jax.vmap(geometry.rotation_matrix)(pseudo.view[:, :3])
        back = geometry.rotation_matrix(pseudo.image_view[:3]).T
        relative = jnp.matmul(matrix, back, precision="highest")
        turn = jnp.matmul(relative, scene.turn, precision="highest")
        shift = jnp.sum(relative * (scene.shift - pseudo.image_view[3:]), axis=-1)
        direction = jnp.sum(matrix * pseudo.light[:, None, 2:], axis=-1)
        light = jnp.concatenate([pseudo.light[:, :2], direction], axis=1)
        return scene.draw(mesh, turn, shift + pseudo.view[:, 3:], light, size=self.size)

    def loss(self, encoder: Any, pseudo: Pseudo, shared: Any, own: Any) -> Array:
        raise ValueError(_NO_ENCODER)

    def lesson(self, encoder: Any, key: Array, shared: Any) -> Array:
        raise ValueError(_NO_ENCODER)
