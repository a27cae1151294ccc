"""Clipping at the near plane: faces that reach behind the camera lose that part only.

A face with one vertex before the plane keeps a triangle, with two a quadrilateral of
two triangles (Sutherland and Hodgman, Reentrant Polygon Clipping, CACM 1974, with one
plane):

    one before              two before
        a                    a ------- b
       / \\                    \\     /
    --x---y--  near plane    ---y---x---
     /     \\                     \\ /
    c ------ b                    c

A cut edge from a, before the plane, to b is cut at a + t (b - a), with
t = (z_a - near) / (z_a - z_b). The same edge is cut alike in both its faces, so that no
crack opens.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .batching import flatten_lead
from .sums import gather_rows
from .types import Fragments

# The corners of both triangles, among the four that a face is given.
_HALVES = np.array([[0, 1, 2], [0, 2, 3]], np.int32)


class ClippedMesh(NamedTuple):
    """A mesh before the near plane, and how it hangs on the one that it was cut from.

    Attributes:
        points: (..., 4 F, 3) in the camera's frame, four corners a face; all z >= near.
        faces: (2 F, 3) int32; 2 f and 2 f + 1 are of face f. One that is not needed has
            no area, and draws nothing.
        weights: (..., 2 F, 3, 3): each corner of a face as a mean of the three vertices
            of the face it was cut from.
    """

    points: jax.Array
    faces: np.ndarray
    weights: jax.Array


def clip_near(
    points: jax.Array, faces: jax.Array | np.ndarray, *, near: float
) -> ClippedMesh:
    """The part of a mesh at z > near, for `rasterize` by way of `to_pixels`.

    A face wholly before the plane keeps its corners, bit by bit; ties between faces go
    as without clipping. One with an infinite or NaN vertex, or with an index out of
    range, is dropped. Gradients reach all vertices of a face that is cut.

    Draw with the default `near`, or a smaller one than here: corners lie on the plane
    itself. And mind that a point at a small z is far from the image: at `near` it may
    lie up to 522,240 pixels from the centre, or its face is dropped. Soft drawing takes
    both triangles of a quadrilateral for faces of their own.

    Args:
        points: (..., V, 3) float32 or float64 in the camera's frame; z along the view.
        faces: (F, 3) integers, shared by the batch.
        near: depth of the plane, > 0, in units of z; static.

    Returns:
        ClippedMesh; `unclip` takes fragments of it back to the mesh it was cut from.

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    points = mesh_lib.check_vertices(points)
    faces = mesh_lib.check_faces(faces, points.shape[-2])
    try:
        near = float(near)
    except (TypeError, ValueError) as error:
        raise ValueError(f"near must be a Python number: {error}") from error
    if not 0.0 < near < float("inf"):
        raise ValueError(f"near must be positive and finite, got {near}.")
    count = faces.shape[0] if points.shape[-2] else 0
    first = 4 * np.arange(count, dtype=np.int32)[:, None, None]
    halves = (first + _HALVES).reshape(-1, 3)
    lead = points.shape[:-2]
    if count == 0:
        none = jnp.zeros((*lead, 0, 3, 3), points.dtype)
        return ClippedMesh(none[..., 0, :], halves, none)
    found, weights = _clip(points, faces, near)
    return ClippedMesh(found, halves, weights)


@partial(jax.jit, static_argnames="near")
def _clip(points, faces, near: float):
    lead, count = points.shape[:-2], points.shape[-2]
    flat = flatten_lead(points, 2)
    known = jnp.all((faces >= 0) & (faces < count), axis=-1)
    ids = jnp.clip(faces, 0, count - 1).reshape(-1)
    ids = jnp.broadcast_to(ids, (flat.shape[0], ids.size))
    corners = gather_rows(flat, ids).reshape(*lead, -1, 3, 3)
    whole = known & jnp.all(jnp.isfinite(corners), axis=(-2, -1))
    corners = jnp.where(whole[..., None, None], corners, 0.0)  # 0 is behind
    before = corners[..., 2] > near
    kept = jnp.sum(before, axis=-1)
    # Turned so that those before the plane come first; unless cut, as they were.
    alone = jnp.where(kept == 1, jnp.argmax(before, axis=-1), 0)
    turn = jnp.where(kept == 2, jnp.argmin(before, axis=-1) + 1, alone) % 3
    order = (turn[..., None] + jnp.arange(3)) % 3
    unit = jax.nn.one_hot(order, 3, dtype=points.dtype)  # (..., F, 3, 3)
    turned = jnp.take_along_axis(corners, order[..., None], axis=-2)
    a, b, c = (turned[..., k, :] for k in range(3))
    of_a, of_b, of_c = (unit[..., k, :] for k in range(3))

    def cut(there, back, cuts):
        """How far along the edge from `there`, before the plane, to `back` it lies."""
        rise = jnp.where(cuts, there[..., 2] - back[..., 2], 1.0)
        return jnp.where(cuts, (there[..., 2] - near) / rise, 0.0)[..., None]

    def point(there, back, t):
        xy = there[..., :2] + t * (back - there)[..., :2]
        return jnp.concatenate([xy, jnp.full_like(xy[..., :1], near)], axis=-1)

    one, two, three = ((kept == k)[..., None] for k in (1, 2, 3))
    # From a to b or, of a quadrilateral, from b to c; and from a to c.
    to_b = cut(a, b, kept == 1)
    to_c = cut(b, c, kept == 2)
    last = cut(a, c, (kept == 1) | (kept == 2))
    second = jnp.where(one, point(a, b, to_b), b)
    third = jnp.where(two, point(b, c, to_c), c)
    third = jnp.where(one, point(a, c, last), third)
    fourth = jnp.where(two, point(a, c, last), third)
    weights = [
        of_a,
        jnp.where(one, of_a + to_b * (of_b - of_a), of_b),
        jnp.where(two, of_b + to_c * (of_c - of_b), of_c),
        of_a + last * (of_c - of_a),
    ]
    weights[2] = jnp.where(one, weights[3], weights[2])
    found = jnp.stack([a, second, third, fourth], axis=-2)
    # What is all behind shrinks to one harmless point of the plane.
    harmless = jnp.array([0.0, 0.0, near], points.dtype)
    found = jnp.where((one | two | three)[..., None], found, harmless)
    halves = jnp.stack(weights, axis=-2)[..., _HALVES, :]
    return found.reshape(*lead, -1, 3), halves.reshape(*lead, -1, 3, 3)


def unclip(fragments: Fragments, clipped: ClippedMesh) -> Fragments:
    """Fragments of a clipped mesh as fragments of the mesh that it was cut from.

    `interpolate` with the original faces and attributes then gives what the original
    mesh shows there. Depth stays. Gradients reach vertices through where the cut lies,
    too: they are exact.

    Args:
        fragments: of `clipped.faces`, (..., H, W), the axes of the mesh first.
        clipped: from `clip_near`.

    Returns:
        Fragments with original face indices and barycentrics of original vertices.

    Raises:
        ValueError: where the leading axes do not go together.
    """
    index = mesh_lib.check_index(fragments.face_index)
    lead = clipped.weights.shape[:-3]
    if index.shape[: len(lead)] != lead:
        raise ValueError(
            f"fragments {index.shape} do not begin with the leading axes {lead} of the "
            "clipped mesh."
        )
    if clipped.faces.shape[0] == 0 or index.size == 0:
        return Fragments(index, *fragments[1:])
    return _unclip(index, fragments.barycentrics, fragments.depth, clipped.weights)


@jax.jit
def _unclip(index, barycentrics, depth, weights):
    drawn = index >= 0
    table = flatten_lead(weights, 3)
    table = table.reshape(table.shape[0], -1, 9)
    ids = jnp.where(drawn, index, 0).reshape(table.shape[0], -1)
    rows = gather_rows(table, ids).reshape(*index.shape, 3, 3)
    original = jnp.sum(barycentrics[..., None] * rows, axis=-2)
    return Fragments(jnp.where(drawn, index // 2, -1), original, depth)
