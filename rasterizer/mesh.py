"""Meshes as the rasterizer takes them: checks, batching, the depth-map mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def grid_faces(height: int, width: int) -> np.ndarray:
    """Two triangles for each cell of a grid of vertices, row-major.

    Args:
        height, width: vertices a side.

    Returns:
        (2 (height-1) (width-1), 3) int32: all (TL, BL, TR) triangles row-major, then
        all (TR, BL, BR). Empty when a side has fewer than two vertices.

    Raises:
        ValueError: if a side is negative.
    """
    if height < 0 or width < 0:
        raise ValueError(f"grid_faces needs sides >= 0, got {(height, width)}.")
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    tl, tr = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    bl, br = index[1:, :-1].ravel(), index[1:, 1:].ravel()
    return np.concatenate(
        [np.stack([tl, bl, tr], axis=-1), np.stack([tr, bl, br], axis=-1)]
    )


def check_size(size, name: str = "size") -> tuple[int, int]:
    """(height, width) as ints.

    Raises:
        ValueError: unless both are integers >= 1.
    """
    try:
        height, width = (int(n) for n in size)
        whole = all(int(n) == n for n in size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be (height, width), got {size!r}.") from error
    if not whole or height < 1 or width < 1:
        raise ValueError(f"{name} must be two integers >= 1, got {size!r}.")
    return height, width


def check_vertices(vertices) -> jax.Array:
    """Vertices as a float array (..., V, 3).

    Raises:
        ValueError: for another shape or a dtype that is not float32 or float64.
    """
    vertices = jnp.asarray(vertices)
    if vertices.ndim < 2 or vertices.shape[-1] != 3:
        raise ValueError(f"vertices must be (..., V, 3), got {vertices.shape}.")
    if vertices.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"vertices must be float32 or float64, got {vertices.dtype}; "
            "positions of half precision are off by whole samples."
        )
    return vertices


def check_faces(faces, vertex_count: int) -> jax.Array:
    """Faces as int32 (F, 3).

    Indices of a concrete array are checked; traced ones cannot be, and a face with an
    index out of range then draws nothing.

    Raises:
        ValueError: for another shape, a dtype that is not integer, or an index out of
            range.
    """
    if not isinstance(faces, Tracer):
        faces = check_concrete_faces(faces, vertex_count)
    _check_triples(faces)
    if isinstance(faces, Tracer) and faces.size:
        # A narrow type may not hold the count of vertices that it is compared with; a
        # uint32 too large for int32 turns negative.
        faces = faces.astype(jnp.int32) if faces.dtype.itemsize <= 4 else faces
        # Out of range must not come into range by losing its upper bits.
        known = (faces >= 0) & (faces < vertex_count)
        return jnp.where(known, faces.astype(jnp.int32), -1)
    return jnp.asarray(faces, jnp.int32)


def check_index(face_index) -> jax.Array:
    """Indices of faces, one a pixel, as int32.

    Raises:
        ValueError: unless they are integers (..., H, W).
    """
    face_index = jnp.asarray(face_index)
    if face_index.ndim < 2 or not jnp.issubdtype(face_index.dtype, jnp.integer):
        raise ValueError(
            "face_index must be integers (..., H, W), got "
            f"{face_index.dtype} {face_index.shape}."
        )
    return face_index.astype(jnp.int32)


def check_concrete_faces(faces, vertex_count: int) -> np.ndarray:
    """`check_faces` for those who need the numbers themselves, even under `jit`.

    Raises:
        ValueError: as `check_faces`, and for a traced array.
    """
    if isinstance(faces, Tracer):
        raise ValueError("faces must be concrete here, got a traced array.")
    faces = np.asarray(faces)
    if faces.shape == (0,):
        faces = np.zeros((0, 3), np.int32)
    _check_triples(faces)
    if faces.size and (faces.min() < 0 or faces.max() >= vertex_count):
        raise ValueError(
            f"faces must index {vertex_count} vertices, got indices "
            f"{faces.min()} to {faces.max()}."
        )
    return faces.astype(np.int32)


def _check_triples(faces) -> None:
    if faces.ndim != 2 or faces.shape[-1] != 3:
        raise ValueError(f"faces must be (F, 3), got {faces.shape}.")
    # An empty list makes an array of floats.
    if faces.size and not jnp.issubdtype(faces.dtype, jnp.integer):
        raise ValueError(f"faces must be integers, got {faces.dtype}.")
