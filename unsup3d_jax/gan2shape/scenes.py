"""Open faces that can be drawn again from any side and under any light."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.data.open_face import (
    appearance,
    dataset,
    generate,
    model,
    render,
    scene,
)
from unsup3d_jax.data.open_face.generate import Options
from unsup3d_jax.data.open_face.model import Seeds
from unsup3d_jax.formation.types import Leaf

# Behind every face, on all channels: a plane does not turn with the head, so what is on
# it would speak against every turned sample.
BACKDROP = 128 / 255


@struct.dataclass
class TrueScene:
    """A person, and how its image was taken. Leading axes of people may be there.

    Attributes:
        heads, look, backdrop: of `data.open_face`, arrays.
        scale: of the head.
        turn: (3, 3) rotation of the head in its image, as `formation.geometry`'s.
        shift: (3,) metres, from the centre that heads turn about.
        light: (5,) ambient, diffuse, direction in the camera's frame.
    """

    heads: Any
    look: Any
    backdrop: Any
    scale: Float[Leaf, "*n"]
    turn: Float[Leaf, "*n 3 3"]
    shift: Float[Leaf, "*n 3"]
    light: Float[Leaf, "*n 5"]

    def draw(
        self,
        mesh: render.Mesh,
        turn: Float[Array, "b 3 3"],
        shift: Float[Array, "b 3"],
        light: Float[Array, "b 5"],
        *,
        size: int,
    ) -> render.Pictures:
        """One person's head, turned, moved and lit in several ways.

        Args:
            turn, shift, light: see above; in the camera's frame.
            size: pixels; static.
        """
        count = len(turn)

        def repeated(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), tree
            )

        where = scene.Scene(
            view=jnp.concatenate([jnp.zeros((count, 3)), shift], axis=1),  # pyright: ignore
            scale=repeated(self.scale),
            light=light,  # pyright: ignore
            backdrop=repeated(self.backdrop),
        )
        heads, look = repeated(self.heads), repeated(self.look)
        return render.render_chunk(mesh, heads, look, where, turn, size=size)


@functools.partial(jax.jit, static_argnames="size")
def as_taken(mesh: render.Mesh, scenes: TrueScene, *, size: int) -> render.Pictures:
    """The images of n people, one at a time."""

    def draw(one: TrueScene) -> render.Pictures:
        found = one.draw(
            mesh, one.turn[None], one.shift[None], one.light[None], size=size
        )
        return jax.tree.map(lambda x: x[0], found)

    return jax.lax.map(draw, scenes)


def load(config: ConfigDict, split: str, count: int) -> tuple[render.Mesh, TrueScene]:
    """The first people of a split, as in its images.

    Returns:
        The mesh of all heads, and n scenes.
    """
    data = config.data
    seeds = model.of_one_number(dataset.split_seeds(split, count=count, seed=data.seed))
    options = Options(data.image_size, data.pose, data.asymmetry, perturb=False)
    parts = list(generate.by_chunks(seeds, options, _chunk))
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    shape = model.load_model()
    mesh = render.make_mesh(shape, model.basis(shape, asymmetry=data.asymmetry))
    return mesh, jax.tree.map(jnp.asarray, whole)


def _chunk(
    shape: model.FaceModel, mesh: render.Mesh, seeds: Seeds, options: Options
) -> TrueScene:
    people = model.sample_people(shape, seeds, asymmetry=options.asymmetry)
    look = appearance.sample_appearance(
        shape, seeds.person, people.attributes, asymmetry=options.asymmetry
    )
    placed = render.place(
        mesh,
        seeds,
        people.coefficients,
        look,
        size=options.image_size,
        pose=options.pose,
    )
    where, count = placed.where, len(seeds.pose)
    turn = scene.rotation(where.view.astype(np.float64))
    found = TrueScene(
        heads=placed.heads,
        look=placed.look,
        backdrop=_plain(where.backdrop),
        scale=jnp.asarray(where.scale),
        turn=jnp.asarray(turn.astype(np.float32)),
        shift=jnp.asarray(where.view[:, 3:]),
        light=jnp.asarray(where.light),
    )
    return jax.tree.map(lambda x: np.asarray(x)[:count], found)


def _plain(backdrop: scene.Backdrop) -> scene.Backdrop:
    """A gradient between equal colours, without grain."""
    return backdrop._replace(
        colors=np.full_like(backdrop.colors, BACKDROP),
        tint=np.zeros_like(backdrop.tint),
        grain=np.zeros_like(backdrop.grain),
    )
