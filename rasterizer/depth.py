"""Depth images of meshes, with analytic gradients."""

from functools import partial

import jax
import jax.numpy as jnp

from rasterizer import mesh as mesh_lib
from rasterizer.coverage import SampleGrid
from rasterizer.rasterize import screen_weights, smallest_area
from rasterizer.types import DepthImage
from rasterizer.visibility import grid_visibility, mesh_visibility


def render_depth(
    vertices: jax.Array,
    faces: jax.Array,
    size: tuple[int, int],
    *,
    background: float,
    supersample: int = 1,
    near: float = 0.0,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> DepthImage:
    """Camera depth of the nearest face, averaged over the samples of each pixel.

    The gradient is exact for the visible face: with respect to its vertices' z, and to
    their x and y through the slope of its depth. It is zero where the visible face
    changes (silhouettes, occlusions), and for uncovered samples. Which faces are drawn
    is as in `rasterize`.

    Args:
        vertices: (..., V, 3) float32 or float64: x, y in pixels, centres on integers;
            z camera depth > 0.
        faces: (F, 3) integers, shared by the batch.
        size: (height, width), pixels.
        background: depth of a sample that nothing covers; enters the mean.
        supersample: samples a side of each pixel, spread evenly about the pixel centre:
            at j - 1/4 and j + 1/4 for 2; static.
        near: faces with a vertex at z <= near are dropped; static.
        pixel_offset: (x, y) shift of all samples, pixels; static.

    Returns:
        DepthImage with leading axes (..., height, width).

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    grid = mesh_lib.make_grid(size, supersample, pixel_offset)
    lead = vertices.shape[:-2]
    flat = vertices.reshape(-1, *vertices.shape[-2:])
    index = mesh_visibility(
        jax.lax.stop_gradient(flat), faces[None], grid=grid, near=float(near)
    )
    if faces.shape[0] == 0 or flat.shape[1] == 0:
        depth = jnp.zeros((flat.shape[0], grid.samples), flat.dtype)
    else:
        depth = _mesh_depth(flat, faces, index, grid)
    return _to_pixels(depth, index, lead, grid, background)


def render_grid_depth(
    vertices: jax.Array,
    size: tuple[int, int],
    *,
    background: float,
    supersample: int = 1,
    near: float = 0.0,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> DepthImage:
    """`render_depth` of a grid of vertices, the mesh of `grid_faces`, only faster.

    The gradient is that of `render_depth`; it is summed in a fixed order, so that it is
    bit-equal from run to run.

    Args:
        vertices: (..., h, w, 3) float32 or float64: x, y in pixels, centres on
            integers; z camera depth > 0.
        size: (height, width) of the image, pixels; need not be (h, w).
        background, supersample, near, pixel_offset: as for `render_depth`.

    Returns:
        DepthImage with leading axes (..., height, width).

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    if vertices.ndim < 3:
        raise ValueError(f"vertices must be (..., h, w, 3), got {vertices.shape}.")
    grid = mesh_lib.make_grid(size, supersample, pixel_offset)
    lead = vertices.shape[:-3]
    flat = vertices.reshape(-1, *vertices.shape[-3:])
    if min(flat.shape[1:3]) < 2:
        index = jnp.full((flat.shape[0], grid.samples), -1, jnp.int32)
        depth = jnp.zeros((flat.shape[0], grid.samples), flat.dtype)
    else:
        index = grid_visibility(
            jax.lax.stop_gradient(flat), grid=grid, near=float(near)
        )
        depth = _grid_depth(flat, index, grid)
    return _to_pixels(depth, index, lead, grid, background)


def _to_pixels(depth, index, lead, grid: SampleGrid, background) -> DepthImage:
    """(B, samples) to (..., height, width): background, then the mean over samples."""
    s = grid.supersample
    shape = (*lead, grid.height, s, grid.width, s)
    drawn = index >= 0
    depth = jnp.where(drawn, depth, jnp.asarray(background, depth.dtype))
    return DepthImage(
        depth.reshape(shape).mean(axis=(-3, -1)),
        drawn.reshape(shape).all(axis=(-3, -1)),
    )


def _sample_weights(corners, drawn, grid: SampleGrid):
    """Screen weights, inverse depths and area of each sample's face.

    Args:
        corners: (B, samples, 3 corners, 3 coordinates).
        drawn: (B, samples); other samples get harmless values.
    """
    corners = jnp.where(drawn[..., None, None], corners, 1.0)
    x, y = grid.positions(corners.dtype)
    x = jnp.tile(x, grid.rows)[:, None]
    y = jnp.repeat(y, grid.columns)[:, None]
    weights, _ = screen_weights(corners[..., 0] - x, corners[..., 1] - y, grid)
    return weights, 1.0 / corners[..., 2]


def _gather_corners(vertices, corner_ids):
    """(B, V, 3) at (B, samples, 3) to (B, samples, 3, 3)."""
    batch, samples, _ = corner_ids.shape
    rows = jnp.take_along_axis(vertices, corner_ids.reshape(batch, -1, 1), axis=1)
    return rows.reshape(batch, samples, 3, 3)


def _depth_at(vertices, faces, index, grid):
    drawn = index >= 0
    corners = _gather_corners(vertices, faces[jnp.where(drawn, index, 0)])
    weights, inverse = _sample_weights(corners, drawn, grid)
    depth = 1.0 / jnp.sum(weights * inverse, axis=-1)
    return jnp.where(drawn, depth, 0.0), weights


def _face_pull(cotangent, depth, weights):
    """d loss / d (1/z) of each sample, shared out to the corners: (B, samples, 3)."""
    return (-cotangent * depth * depth)[..., None] * weights


def _corner_gradients(corners, pull, grid):
    """Gradients to the corners of faces, from the sums of their samples' pulls.

    With f = 1/z linear on the screen, moving corner k by (dx, dy) moves f at a sample
    by -w_k grad(f) . (dx, dy), and d f / d z_k = -w_k / z_k**2. So three sums a face,
    q_k = sum over samples of (d loss / d f) w_k, give all nine derivatives.

    Args:
        corners: (..., 3 corners, 3 coordinates).
        pull: (..., 3), q; exactly 0 for a face that is not drawn.

    Returns:
        (..., 3, 3).
    """
    active = jnp.any(pull != 0.0, axis=-1)[..., None, None]
    corners = jnp.where(active, corners, 1.0)
    inverse = 1.0 / corners[..., 2]
    edge1 = corners[..., 1, :2] - corners[..., 0, :2]
    edge2 = corners[..., 2, :2] - corners[..., 0, :2]
    area = edge1[..., 0] * edge2[..., 1] - edge1[..., 1] * edge2[..., 0]
    thick = jnp.abs(area) > smallest_area(grid)
    rise1 = inverse[..., 1] - inverse[..., 0]
    rise2 = inverse[..., 2] - inverse[..., 0]
    slope_x = rise1 * edge2[..., 1] - rise2 * edge1[..., 1]
    slope_y = rise2 * edge1[..., 0] - rise1 * edge2[..., 0]
    slope = jnp.stack([slope_x, slope_y], axis=-1)
    slope = jnp.where(
        thick[..., None], slope / jnp.where(thick, area, 1.0)[..., None], 0.0
    )
    gradient = jnp.concatenate(
        [-pull[..., None] * slope[..., None, :], -(pull * inverse**2)[..., None]], -1
    )
    return jnp.where(active, gradient, 0.0)


def _sum_by_face(pull, index, face_count):
    """(B, samples, 3) to (B, F, 3)."""
    batch = index.shape[0]
    rows = jnp.where(index >= 0, index, face_count)  # dropped
    return (
        jnp.zeros((batch, face_count, 3), pull.dtype)
        .at[jnp.arange(batch)[:, None], rows]
        .add(pull, mode="drop")
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mesh_depth(vertices, faces, index, grid):
    return _depth_at(vertices, faces, index, grid)[0]


def _mesh_depth_fwd(vertices, faces, index, grid):
    depth, weights = _depth_at(vertices, faces, index, grid)
    return depth, (vertices, faces, index, depth, weights)


def _mesh_depth_bwd(grid, residuals, cotangent):
    vertices, faces, index, depth, weights = residuals
    pull = _face_pull(cotangent, depth, weights)
    sums = _sum_by_face(pull, index, faces.shape[0])
    corners = vertices[:, faces]
    gradient = _corner_gradients(corners, sums, grid)
    batch = vertices.shape[0]
    return (
        jnp.zeros_like(vertices)
        .at[:, faces.reshape(-1)]
        .add(gradient.reshape(batch, -1, 3)),
        None,
        None,
    )


_mesh_depth.defvjp(_mesh_depth_fwd, _mesh_depth_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grid_depth(vertices, index, grid):
    return _grid_depth_fwd(vertices, index, grid)[0]


def _grid_depth_fwd(vertices, index, grid):
    batch, h, w, _ = vertices.shape
    faces = jnp.asarray(mesh_lib.grid_faces(h, w))
    depth, weights = _depth_at(vertices.reshape(batch, h * w, 3), faces, index, grid)
    return depth, (vertices, index, depth, weights)


def _grid_depth_bwd(grid, residuals, cotangent):
    vertices, index, depth, weights = residuals
    batch, h, w, _ = vertices.shape
    pull = _face_pull(cotangent, depth, weights)
    sums = _sum_by_face(pull, index, 2 * (h - 1) * (w - 1))
    sums = sums.reshape(batch, 2, h - 1, w - 1, 3)
    tl, tr = vertices[:, :-1, :-1], vertices[:, :-1, 1:]
    bl, br = vertices[:, 1:, :-1], vertices[:, 1:, 1:]
    corners = jnp.stack(
        [jnp.stack([tl, bl, tr], axis=-2), jnp.stack([tr, bl, br], axis=-2)], axis=1
    )
    gradient = _corner_gradients(corners, sums, grid)

    def place(cells, row, column):
        return jnp.pad(cells, ((0, 0), (row, 1 - row), (column, 1 - column), (0, 0)))

    # Every vertex gathers from its at most six faces.
    upper, lower = gradient[:, 0], gradient[:, 1]
    return (
        place(upper[..., 0, :], 0, 0)
        + place(upper[..., 1, :] + lower[..., 1, :], 1, 0)
        + place(upper[..., 2, :] + lower[..., 0, :], 0, 1)
        + place(lower[..., 2, :], 1, 1),
        None,
    )


_grid_depth.defvjp(_grid_depth_fwd, _grid_depth_bwd)
