"""Faces of every integer type draw the same picture, concrete or traced."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from tests.rasterizer import scenes

SIZE = (9, 9)


@pytest.fixture(autouse=True)
def optimised():
    """Not here: every type compiles all functions, and integers do not round."""


def scene(dtype):
    """A mesh of more vertices than the type counts, where it is a narrow one."""
    side = 17 if np.dtype(dtype).itemsize == 1 else 257
    if np.dtype(dtype).itemsize > 2:
        side = 9
    y, x = np.mgrid[:side, :side] * np.float32(8 / (side - 1))
    vertices = np.stack([x, y, 2 + x / 8], axis=-1).reshape(-1, 3).astype(np.float32)
    faces = rasterizer.grid_faces(side, side)
    # Those that the type can name, and that hold a sample at a corner.
    sampled = (vertices[:, :2] % 1 == 0).all(axis=1)
    kept = sampled[faces].any(axis=1) & (faces <= np.iinfo(dtype).max).all(axis=1)
    return vertices, faces[kept]


def everything(vertices, faces):
    """What each function makes of the faces."""
    found = rasterizer.rasterize(vertices, faces, SIZE)
    options = {"background": 3.0}
    return {
        "rasterize": found,
        "barycentrics_at": rasterizer.barycentrics_at(
            vertices, faces, found.face_index.astype(jnp.int16)
        ),
        "interpolate": rasterizer.interpolate(
            vertices,
            faces,
            found._replace(face_index=found.face_index.astype(jnp.int16)),
        ),
        "hard": rasterizer.render_depth(vertices, faces, SIZE, **options),
        "silhouette": rasterizer.render_silhouette(vertices, faces, SIZE, sigma=0.1),
        "normals": rasterizer.vertex_normals(vertices, faces),
    }


@cache
def drawn_by_int32(dtype):
    """What int32 draws of the scene of a type; all wide ones have the same."""
    return jax.jit(everything)(*scene(dtype))


TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int64]
RARE = (np.uint8, np.int8, np.uint16, np.int16, np.uint32)


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(t, marks=[pytest.mark.once] * (t in RARE)) for t in TYPES],
)
def test_faces_of_any_integer_type_draw_what_int32_draws(dtype):
    vertices, faces = scene(dtype)
    wide = np.dtype(dtype).itemsize > 2
    expected = drawn_by_int32(np.int64 if wide else dtype)
    assert (np.asarray(expected["rasterize"].face_index) >= 0).sum() > 9
    with jax.enable_x64(np.dtype(dtype).itemsize == 8):
        traced = jax.jit(everything)(vertices, faces.astype(dtype))
    jax.tree.map(np.testing.assert_array_equal, traced, expected)


@pytest.mark.once
def test_gradients_of_traced_narrow_faces_are_those_of_int32():
    vertices, faces = scene(np.uint8)

    @jax.jit
    @jax.grad
    def gradient(v, f):
        found = rasterizer.rasterize(v, f, SIZE)
        values = rasterizer.interpolate(v, f, found)
        values += rasterizer.interpolate(rasterizer.vertex_normals(v, f), f, found)
        return jnp.sum(values**2)

    expected = gradient(vertices, faces)
    assert np.abs(expected).max() > 0
    found = gradient(vertices, faces.astype(np.uint8))
    np.testing.assert_array_equal(found, expected)


def test_antialias_takes_concrete_faces_of_any_type():
    vertices, faces = scenes.flatten(scenes.grid(4, 4) * np.float32([2, 2, 1]) + 0.3)
    found = rasterizer.rasterize(vertices, faces, SIZE)
    colour = (found.face_index >= 0)[..., None].astype(np.float32)
    expected = rasterizer.antialias(colour, found, vertices, faces)
    assert not np.array_equal(expected, colour)
    narrow = found._replace(face_index=found.face_index.astype(np.int8))
    got = rasterizer.antialias(colour, narrow, vertices, faces.astype(np.uint8))
    np.testing.assert_array_equal(got, expected)


def test_traced_unsigned_faces_out_of_range_draw_nothing():
    vertices = np.array([[0, 0, 1], [4, 0, 1], [0, 4, 1]], np.float32)
    for beyond in (3, 2**31, 2**32 - 1):
        faces = np.array([[0, 1, beyond], [0, 1, 2]], np.uint32)
        draw = jax.jit(lambda f: rasterizer.rasterize(vertices, f, (5, 5)).face_index)
        assert set(np.unique(draw(faces))) == {-1, 1}


@pytest.mark.parametrize("index", [np.zeros((4, 4)), np.zeros(4, np.int32)])
def test_errors_name_what_they_got(index):
    vertices, faces = np.ones((3, 3), np.float32), np.array([[0, 1, 2]])
    with pytest.raises(ValueError, match="face_index must be integers"):
        rasterizer.barycentrics_at(vertices, faces, index)
