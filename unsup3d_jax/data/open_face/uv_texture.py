"""The true colours of open faces at given points of their surface.

Faces are painted as functions of where on the head a point lies, so their texture is
known wherever a layout of the surface asks for it, at any resolution and without a
picture: truth for what somebody flattens out of one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unsup3d_jax.data.open_face import appearance, model, render, scene
from unsup3d_jax.data.open_face.appearance import Appearance
from unsup3d_jax.data.open_face.generate import on_cpu
from unsup3d_jax.data.open_face.model import FaceModel, Seeds

# Points of one chunk, over all its faces; bounds memory.
_POINTS_AT_ONCE = 1 << 17


class Points(NamedTuple):
    """p points of the surface, the same of every head.

    Attributes:
        corners: three vertices of `FaceModel` around each.
        weights: barycentrics; each row sums to 1.
        labels: of the face that holds it, see `FaceModel.labels`.
    """

    corners: Int[np.ndarray, "p 3"]
    weights: Float[np.ndarray, "p 3"]
    labels: Int[np.ndarray, " p"]


class Light(NamedTuple):
    """What shading needs to know of n pictures, as `dataset` returns it.

    Attributes:
        view: pitch, yaw, roll (radians), translation.
        light: ambient, diffuse, unit direction of travel, camera frame.
    """

    view: Float[np.ndarray, "n 6"]
    light: Float[np.ndarray, "n 5"]


def points_of(
    shape: FaceModel,
    corners: Int[np.ndarray, "p 3"],
    weights: Float[np.ndarray, "p 3"],
) -> Points:
    """Points within the model's faces, or on their edges.

    Args:
        shape: the model.
        corners: of the face that holds each point, whichever comes first; on an edge
            two of them may be equal, and it counts as skin.
        weights: its barycentrics there.

    Raises:
        ValueError: if three corners are no face of the model's.
    """
    label_of = {
        frozenset(face): int(label)
        for face, label in zip(shape.faces.tolist(), shape.labels, strict=True)
    }
    labels = []
    for face in map(frozenset, corners.tolist()):
        if len(face) == 3 and face not in label_of:
            raise ValueError(f"the open face has no triangle {sorted(face)}.")
        labels.append(label_of.get(face, 0))
    return Points(corners, weights.astype(np.float32), np.array(labels))


def colours_of(
    seeds: Seeds, points: Points, *, asymmetry: float, lit: Light | None = None
) -> Float[np.ndarray, "n p 3"]:
    """Colours of the faces of the given numbers, as they are painted in pictures.

    Args:
        seeds: of n pictures, see `dataset`.
        points: where on the heads.
        asymmetry: as the pictures'.
        lit: None: the albedo. Else as it is seen in these n pictures, shaded and
            clipped to [0, 1], whether or not the camera sees the point.

    Returns:
        Display colours in [0, 1].
    """
    shape = model.load_model()
    with on_cpu():  # as the pictures: an accelerator rounds otherwise
        mesh = render.make_mesh(shape, model.basis(shape, asymmetry=asymmetry))
    step = max(1, _POINTS_AT_ONCE // max(1, len(points.labels)))
    count = len(seeds.person)
    turns = None if lit is None else scene.rotation(lit.view.astype(np.float64))
    chunks = []
    for start in range(0, count, step):
        # Filled up with copies of the last, so that one compilation serves all.
        rows = np.minimum(start + np.arange(min(step, count)), count - 1)
        chunk = Seeds(*(numbers[rows] for numbers in seeds))
        people = model.sample_people(shape, chunk, asymmetry=asymmetry)
        look = appearance.sample_appearance(
            shape, chunk.person, people.attributes, asymmetry=asymmetry
        )
        with on_cpu():
            heads = render.shape_heads(mesh, people.coefficients, look)
            colours = _albedo(mesh, heads, look, *map(jnp.asarray, points))
            if lit is not None and turns is not None:
                shading = _shading(
                    heads.normals,
                    *map(jnp.asarray, points[:2]),
                    jnp.asarray(turns[rows], jnp.float32),
                    jnp.asarray(lit.light[rows]),
                )
                colours = jnp.clip(colours * shading[..., None], 0.0, 1.0)
        chunks.append(np.asarray(colours)[: count - start])
    return np.concatenate(chunks)


def _between(
    values: Float[Array, "v c"],
    corners: Int[Array, "p 3"],
    weights: Float[Array, "p 3"],
) -> Float[Array, "p c"]:
    """Values of the vertices at points between them."""
    return (values[corners] * weights[..., None]).sum(-2)


@jax.jit
@jax.default_matmul_precision("highest")
def _albedo(
    mesh: render.Mesh,
    heads: render.Heads,
    look: Appearance,
    corners: Int[Array, "p 3"],
    weights: Float[Array, "p 3"],
    labels: Int[Array, " p"],
) -> Float[Array, "n p 3"]:
    fixed = render.fixed_attributes(mesh)

    def one(head: Array, eyes: Array, look: Appearance) -> Array:
        broad = appearance.broad_noise(look, mesh.rest)
        values = jnp.concatenate([head[:, :2], broad[:, None], fixed], axis=1)
        values = _between(values, corners, weights)
        surface = render.surface_of(
            values[:, :2], values[:, 2], values[:, 3:], labels, eyes
        )
        return appearance.paint(look, surface)

    return jax.vmap(one)(heads.vertices, heads.eyes, look)


@jax.jit
@jax.default_matmul_precision("highest")
def _shading(
    normals: Float[Array, "n v 3"],
    corners: Int[Array, "p 3"],
    weights: Float[Array, "p 3"],
    turns: Float[Array, "n 3 3"],
    light: Float[Array, "n 5"],
) -> Float[Array, "n p"]:
    between = functools.partial(_between, corners=corners, weights=weights)
    inward = jax.vmap(between)(-(normals @ render.to_camera(turns)))
    return jax.vmap(render.shade)(light, render.face_away(inward))
