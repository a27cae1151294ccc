"""Depth images of meshes, with analytic gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rasterizer import mesh as mesh_lib
from rasterizer.batching import flatten_lead
from rasterizer.coverage import SampleGrid
from rasterizer.rasterize import screen_weights, smallest_area
from rasterizer.soft import soft_coverage, soft_depth
from rasterizer.types import DepthImage
from rasterizer.visibility import grid_face_sums, grid_visibility, mesh_visibility
from rasterizer.worklist import apart, take


def render_depth(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    size: tuple[int, int],
    *,
    background: float,
    supersample: int = 1,
    sigma: float = 0.0,
    gamma: float = 0.0,
    near: float = 0.0,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> DepthImage:
    """Camera depth, averaged over the samples of each pixel; hard or soft.

    Hard (sigma = gamma = 0): the nearest face's depth, the gradient exact for the
    visible face: with respect to its vertices' z, and to their x and y through the
    slope of its depth. It is zero where the visible face changes (silhouettes,
    occlusions), for uncovered samples, and for a face thinner than the snapping unit.

    Soft: the blend of `rasterizer.soft`, with its exact gradient, faces beyond the
    reach of sigma left out. Tends to the hard depth as sigma and gamma go to 0, except
    within a few sigma of edges: there two faces that meet each count half, so keep
    sigma well below the size of a triangle.

    Which faces are drawn is as in `rasterize`.

    Args:
        vertices: (..., V, 3) float32 or float64: x, y in pixels, centres on integers;
            z camera depth > 0.
        faces: (F, 3) integers, shared by the batch.
        size: (height, width), pixels.
        background: depth of a sample that nothing covers; enters the mean.
        supersample: samples a side of each pixel, spread evenly about the pixel centre:
            at j - 1/4 and j + 1/4 for 2; static.
        sigma: softness of edges, pixels; 0 for hard; static.
        gamma: how far behind the nearest a face still shows, in units of depth; 0 for
            hard; static. Both are 0 or neither.
        near: faces with a vertex at z <= near are dropped; static.
        pixel_offset: (x, y) shift of all samples, pixels; static.

    Returns:
        DepthImage with leading axes (..., height, width); `covered` is hard.

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    grid = mesh_lib.make_grid(size, supersample, pixel_offset)
    sigma, gamma = _check_softness(sigma, "sigma"), _check_softness(gamma, "gamma")
    if (sigma > 0.0) != (gamma > 0.0):
        raise ValueError(f"sigma and gamma go together, got {sigma=}, {gamma=}.")
    far = jnp.asarray(background, vertices.dtype)
    return _render_mesh(vertices, faces, far, grid, float(near), sigma, gamma)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _render_mesh(vertices, faces, background, grid, near, sigma, gamma):
    lead = vertices.shape[:-2]
    flat = flatten_lead(vertices, 2)
    shared = jnp.broadcast_to(faces, (flat.shape[0], *faces.shape))
    index = mesh_visibility(jax.lax.stop_gradient(flat), shared, grid=grid, near=near)
    drawn = index >= 0
    if faces.shape[0] == 0 or flat.shape[1] == 0 or flat.shape[0] == 0:
        depth = jnp.broadcast_to(background, index.shape)
    elif sigma > 0.0:
        depth = soft_depth(flat, shared, background, grid, near, sigma, gamma)
    else:
        depth = jnp.where(drawn, _mesh_depth(flat, faces, index, grid), background)
    return _to_pixels(depth, drawn, lead, grid)


def render_silhouette(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    size: tuple[int, int],
    *,
    sigma: float,
    supersample: int = 1,
    near: float = 0.0,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> jax.Array:
    """How much of each pixel a mesh covers, softly: 1 - prod (1 - D) over its faces.

    D = sigmoid(signed distance to the face's outline / sigma). The gradient is exact,
    faces farther than 10 sigma left out; with sigma = 0 it is zero.

    Args:
        vertices, faces, size, supersample, near, pixel_offset: as for `render_depth`.
        sigma: softness of edges, pixels; 0 for hard coverage; static.

    Returns:
        (..., height, width) in [0, 1], of the vertices' dtype.

    Raises:
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    grid = mesh_lib.make_grid(size, supersample, pixel_offset)
    sigma = _check_softness(sigma, "sigma")
    return _render_silhouette(vertices, faces, grid, float(near), sigma)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _render_silhouette(vertices, faces, grid, near, sigma):
    lead = vertices.shape[:-2]
    flat = flatten_lead(vertices, 2)
    shared = jnp.broadcast_to(faces, (flat.shape[0], *faces.shape))
    if faces.shape[0] == 0 or flat.shape[1] == 0 or flat.shape[0] == 0:
        cover = jnp.zeros((flat.shape[0], grid.samples), flat.dtype)
    elif sigma > 0.0:
        cover: jax.Array = soft_coverage(flat, shared, grid, near, sigma)
    else:
        index = mesh_visibility(
            jax.lax.stop_gradient(flat), shared, grid=grid, near=near
        )
        cover = (index >= 0).astype(flat.dtype)
    return _to_pixels(cover, cover > 0, lead, grid).depth


def _check_softness(value, name) -> float:
    try:
        value = float(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a Python number, got {value!r}.") from error
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and >= 0, got {value}.")
    return value


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
    far = jnp.asarray(background, vertices.dtype)
    return _render_grid(vertices, far, grid, float(near))


@partial(jax.jit, static_argnums=(2, 3))
def _render_grid(vertices, background, grid, near):
    lead = vertices.shape[:-3]
    flat = flatten_lead(vertices, 3)
    if min(flat.shape[:1] + flat.shape[1:3]) < 1 or min(flat.shape[1:3]) < 2:
        drawn = jnp.zeros((flat.shape[0], grid.samples), bool)
        depth = jnp.broadcast_to(background, drawn.shape)
    else:
        index, boxes = grid_visibility(
            jax.lax.stop_gradient(flat), grid=grid, near=near
        )
        drawn = index >= 0
        depth = jnp.where(drawn, _grid_depth(flat, index, boxes, grid), background)
    return _to_pixels(depth, drawn, lead, grid)


def _to_pixels(depth, drawn, lead, grid: SampleGrid) -> DepthImage:
    """(B, samples) to (..., height, width): the mean, and all, over samples."""
    s = grid.supersample
    shape = (*lead, grid.height, s, grid.width, s)
    return DepthImage(
        depth.reshape(shape).mean(axis=(-3, -1)),
        drawn.reshape(shape).all(axis=(-3, -1)),
    )


def _depth_at(planes, corner_ids, drawn, grid: SampleGrid):
    """Depth and screen weights of samples.

    Args:
        planes: x, y, z of all vertices of the batch, each flat.
        corner_ids: three (B, samples) int32, into the planes; in range everywhere.
        drawn: (B, samples); elsewhere depth and weights are harmless numbers.

    Returns:
        (B, samples) depth, 0 where not drawn, and three weights, 0 where not drawn.
    """

    def gather(*planes):
        return [[take(p, i) for i in corner_ids] for p in planes]

    def weigh(corners):
        # A face that is not drawn may hold NaN; keep it out of the arithmetic.
        xs, ys, zs = ([jnp.where(drawn, v, 1.0) for v in q] for q in corners)
        x, y = grid.positions(planes[0].dtype)
        x, y = jnp.tile(x, grid.rows), jnp.repeat(y, grid.columns)
        weights = screen_weights([v - x for v in xs], [v - y for v in ys], grid)
        inverse = sum(w / z for w, z in zip(weights, zs, strict=True))
        depth = jnp.where(drawn, 1.0 / inverse, 0.0)
        return depth, *(jnp.where(drawn, w, 0.0) for w in weights)

    some = jnp.any(drawn)
    depth, *weights = apart(some, weigh, apart(some, gather, *planes))
    return depth, weights


def _pulls(cotangent, depth, weights):
    """d loss / d (1/z) of each sample, shared out to the three corners."""
    pull = -cotangent * depth * depth
    return [pull * w for w in weights]


def _corner_gradients(xs, ys, zs, pulls, grid: SampleGrid):
    """Gradients to the corners of faces, from the sums of their samples' pulls.

    With f = 1/z linear on the screen, moving corner k by (dx, dy) moves f at a sample
    by -w_k grad(f) . (dx, dy), and d f / d z_k = -w_k / z_k**2. So three sums a face,
    q_k = sum over samples of (d loss / d f) w_k, give all nine derivatives.

    Args:
        xs, ys, zs: three arrays each, the corners.
        pulls: three arrays, q; exactly 0 for a face that is not drawn.

    Returns:
        For each corner the three arrays (d loss / d x, y, z).
    """
    active = (pulls[0] != 0.0) | (pulls[1] != 0.0) | (pulls[2] != 0.0)
    xs, ys, zs = ([jnp.where(active, v, 1.0) for v in q] for q in (xs, ys, zs))
    inverse = [1.0 / z for z in zs]
    x1, y1, rise1 = xs[1] - xs[0], ys[1] - ys[0], inverse[1] - inverse[0]
    x2, y2, rise2 = xs[2] - xs[0], ys[2] - ys[0], inverse[2] - inverse[0]
    area = x1 * y2 - y1 * x2
    thick = active & (jnp.abs(area) > smallest_area(grid))
    area = jnp.where(thick, area, 1.0)
    slope_x = jnp.where(thick, (rise1 * y2 - rise2 * y1) / area, 0.0)
    slope_y = jnp.where(thick, (rise2 * x1 - rise1 * x2) / area, 0.0)
    return [
        (-q * slope_x, -q * slope_y, -q * i * i)
        for q, i in zip(pulls, inverse, strict=True)
    ]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mesh_depth(vertices, faces, index, grid):
    return _mesh_depth_fwd(vertices, faces, index, grid)[0]


def _mesh_depth_fwd(vertices, faces, index, grid):
    batch, count, _ = vertices.shape
    drawn = index >= 0
    face = jnp.where(drawn, index, 0)
    offset = (jnp.arange(batch, dtype=jnp.int32) * count)[:, None]
    # A face that is drawn has its indices in range; face 0 may not.
    known = jnp.clip(faces, 0, count - 1)
    corner_ids = [known[:, k][face] + offset for k in range(3)]
    planes = [vertices[..., k].reshape(-1) for k in range(3)]
    depth, weights = _depth_at(planes, corner_ids, drawn, grid)
    return depth, (vertices, faces, index, depth, weights)


def _mesh_depth_bwd(grid, residuals, cotangent):
    vertices, faces, index, depth, weights = residuals
    batch, count, _ = vertices.shape
    face_count = faces.shape[0]
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    target = jnp.where(index >= 0, index + rows * face_count, batch * face_count)
    pulls = [
        jnp.zeros(batch * face_count, p.dtype).at[target].add(p, mode="drop")
        for p in _pulls(cotangent, depth, weights)
    ]
    ids = (jnp.clip(faces, 0, count - 1)[None] + rows[..., None] * count).reshape(-1, 3)
    xs, ys, zs = (
        [vertices[..., axis].reshape(-1)[ids[:, k]] for k in range(3)]
        for axis in range(3)
    )
    gradients = _corner_gradients(xs, ys, zs, pulls, grid)
    planes = []
    for axis in range(3):
        plane = jnp.zeros(batch * count, vertices.dtype)
        for k in range(3):
            plane = plane.at[ids[:, k]].add(gradients[k][axis])
        planes.append(plane.reshape(batch, count))
    return jnp.stack(planes, axis=-1), None, None


_mesh_depth.defvjp(_mesh_depth_fwd, _mesh_depth_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grid_depth(vertices, index, boxes, grid):
    return _grid_depth_fwd(vertices, index, boxes, grid)[0]


def _grid_depth_fwd(vertices, index, boxes, grid):
    batch, h, w, _ = vertices.shape
    cells = (h - 1) * (w - 1)
    drawn = index >= 0
    face = jnp.where(drawn, index, 0)
    lower = face >= cells
    cell = jnp.where(lower, face - cells, face)
    row = cell // (w - 1)
    corner = cell + row + (jnp.arange(batch, dtype=jnp.int32) * (h * w))[:, None]
    # (TL, BL, TR) or (TR, BL, BR).
    corner_ids = [
        corner + jnp.where(lower, 1, 0),
        corner + w,
        corner + jnp.where(lower, w + 1, 1),
    ]
    planes = [vertices[..., k].reshape(-1) for k in range(3)]
    depth, weights = _depth_at(planes, corner_ids, drawn, grid)
    return depth, (vertices, index, boxes, depth, weights)


def _grid_depth_bwd(grid, residuals, cotangent):
    vertices, index, boxes, depth, weights = residuals
    batch, h, w, _ = vertices.shape
    pulls = apart(jnp.any(index >= 0), _pulls, cotangent, depth, weights)
    sums = grid_face_sums(boxes, index, tuple(pulls), grid=grid)

    def corner_gradients(vertices, sums):
        upper, lower = ([v.reshape(batch, h - 1, w - 1) for v in t] for t in sums)
        planes = [vertices[..., k] for k in range(3)]
        tl = [p[:, :-1, :-1] for p in planes]
        tr = [p[:, :-1, 1:] for p in planes]
        bl = [p[:, 1:, :-1] for p in planes]
        br = [p[:, 1:, 1:] for p in planes]
        xs, ys, zs = zip(tl, bl, tr, strict=True)
        upper = _corner_gradients(xs, ys, zs, upper, grid)
        xs, ys, zs = zip(tr, bl, br, strict=True)
        return upper, _corner_gradients(xs, ys, zs, lower, grid)

    def place(cells, row, column):
        return jnp.pad(cells, ((0, 0), (row, 1 - row), (column, 1 - column)))

    def gather(upper, lower):
        # Every vertex gathers from its at most six faces.
        return [
            place(upper[0][k], 0, 0)
            + place(upper[1][k] + lower[1][k], 1, 0)
            + place(upper[2][k] + lower[0][k], 0, 1)
            + place(lower[2][k], 1, 1)
            for k in range(3)
        ]

    some = jnp.any(index >= 0)
    upper, lower = apart(some, corner_gradients, vertices, sums)
    return jnp.stack(apart(some, gather, upper, lower), axis=-1), None, None


_grid_depth.defvjp(_grid_depth_fwd, _grid_depth_bwd)
