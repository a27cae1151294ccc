"""Depth images of meshes, with analytic gradients."""

from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from . import mesh as mesh_lib
from .backends import choose
from .batching import alike, flatten_lead
from .coverage import SampleGrid
from .engines import Engine
from .options import Drawing, ImageOptions, make_drawing
from .rasterize import (
    index_by_engine,
    index_by_loops,
    screen_weights,
)
from .soft import soft_coverage, soft_depth
from .types import DepthImage
from .visibility import grid_visibility, mesh_visibility
from .worklist import take


def render_depth(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    size: tuple[int, int],
    *,
    background: float,
    sigma: float = 0.0,
    gamma: float = 0.0,
    **options: Unpack[ImageOptions],
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

    Args:
        vertices, faces, size: as for `rasterize`.
        background: depth of a sample that nothing covers; enters the mean. Finite, if
            soft gradients are to be.
        sigma: softness of edges, pixels; 0 for hard; static.
        gamma: how far behind the nearest a face still shows, in units of depth; 0 for
            hard; static. Both are 0 or neither. float32 tells faces apart that are a
            millionth of their depth from one another, no less: keep gamma well above.
        **options: `supersample`, `near`, `far`, `cull`, `pixel_offset` and `backend`:
            see `ImageOptions`.

    Returns:
        DepthImage with leading axes (..., height, width); `covered` is hard.

    Raises:
        TypeError: for an unknown option.
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    drawing = make_drawing(
        *("render_depth", size, options),
        dtype=vertices.dtype,
        sigma=sigma,
        gamma=gamma,
    )
    sigma, gamma = drawing.sigma, drawing.gamma
    if (sigma > 0.0) != (gamma > 0.0):
        raise ValueError(f"sigma and gamma go together, got {sigma=}, {gamma=}.")
    empty = jnp.asarray(background, vertices.dtype)
    return _render_mesh(vertices, faces, empty, drawing)


def render_silhouette(
    vertices: jax.Array,
    faces: jax.Array | np.ndarray,
    size: tuple[int, int],
    *,
    sigma: float,
    **options: Unpack[ImageOptions],
) -> jax.Array:
    """How much of each pixel a mesh covers, softly: 1 - prod (1 - D) over its faces.

    D = sigmoid(signed distance to the face's outline / sigma). The gradient is exact,
    faces farther than 10 sigma left out; with sigma = 0 it is zero.

    Args: as for `render_depth`.

    Returns:
        (..., height, width) in [0, 1], of the vertices' dtype.

    Raises:
        TypeError: for an unknown option.
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    faces = mesh_lib.check_faces(faces, vertices.shape[-2])
    drawing = make_drawing(
        "render_silhouette", size, options, dtype=vertices.dtype, sigma=sigma
    )
    return _render_silhouette(vertices, faces, drawing)


def render_grid_depth(
    vertices: jax.Array,
    size: tuple[int, int],
    *,
    background: float,
    **options: Unpack[ImageOptions],
) -> DepthImage:
    """Hard `render_depth` of a grid of vertices, the mesh of `grid_faces`, only faster.

    Args: as for `render_depth`, but
        vertices: (..., h, w, 3).
        size: (height, width) of the image, pixels; need not be (h, w).

    Returns:
        DepthImage with leading axes (..., height, width).

    Raises:
        TypeError: for an unknown option.
        ValueError: naming the argument of a wrong shape, dtype or range.
    """
    vertices = mesh_lib.check_vertices(vertices)
    if vertices.ndim < 3:
        raise ValueError(f"vertices must be (..., h, w, 3), got {vertices.shape}.")
    drawing = make_drawing("render_grid_depth", size, options)
    empty = jnp.asarray(background, vertices.dtype)
    return _render_grid(vertices, empty, drawing)


@partial(jax.jit, static_argnames="drawing")
def _render_mesh(vertices, faces, background, drawing: Drawing):
    vertices, faces, background = alike(vertices, faces, background)
    flat = flatten_lead(vertices, 2)
    if 0 in (faces.shape[0], *flat.shape[:2]):
        image = _empty_image(flat.shape[0], background, drawing.grid)
    else:
        by_engine, by_loops = _mesh_image_by_engine, _mesh_image_by_loops
        if drawing.sigma > 0.0:
            by_engine, by_loops = _soft_image_by_engine, _soft_image_by_loops
        draw = _choose(drawing, by_loops, by_engine)
        image = draw(flat, faces, background)
    return _unflatten(image, vertices.shape[:-2])


def _choose(drawing: Drawing, by_loops, by_engine):
    """What draws on a CPU, and what elsewhere, of the arrays alone."""
    return choose(
        drawing.workers,
        by_loops=partial(by_loops, drawing=drawing),
        by_engine=partial(by_engine, drawing=drawing),
    )


def _mesh_image_by_engine(
    vertices, faces, background, drawing, engine: Engine
) -> DepthImage:
    shared, grid = _share(faces, vertices), drawing.grid
    index, boxes = mesh_visibility(
        jax.lax.stop_gradient(vertices),
        shared,
        grid=grid,
        rules=drawing.rules,
        engine=engine,
    )
    depth = _mesh_depth(vertices, shared, index, boxes, grid, engine)
    return _to_pixels(jnp.where(index >= 0, depth, background), index >= 0, grid)


def _mesh_image_by_loops(vertices, faces, background, drawing) -> DepthImage:
    from . import native  # needs Numba

    return native.depth_image(vertices, faces[None], background, drawing)


def _soft_image_by_engine(
    vertices, faces, background, drawing, engine: Engine
) -> DepthImage:
    shared, grid = _share(faces, vertices), drawing.grid
    index, _ = mesh_visibility(
        jax.lax.stop_gradient(vertices),
        shared,
        grid=grid,
        rules=drawing.rules,
        engine=engine,
    )
    depth = soft_depth(vertices, shared, background, drawing)
    return _to_pixels(depth, index >= 0, grid)


def _soft_image_by_loops(vertices, faces, background, drawing) -> DepthImage:
    from . import native, native_soft  # need Numba

    fixed = jax.lax.stop_gradient((vertices, faces[None], background))
    hard = native.depth_image(*fixed, drawing=drawing)
    depth = native_soft.depth_image(vertices, faces[None], background, drawing)
    return DepthImage(depth, hard.covered)


@partial(jax.jit, static_argnames="drawing")
def _render_silhouette(vertices, faces, drawing: Drawing):
    vertices, faces = alike(vertices, faces)
    flat = flatten_lead(vertices, 2)
    grid = drawing.grid
    if 0 in (faces.shape[0], *flat.shape[:2]):
        image = jnp.zeros((flat.shape[0], grid.height, grid.width), flat.dtype)
    elif drawing.sigma > 0.0:
        draw = _choose(drawing, _soft_silhouette_by_loops, _soft_silhouette_by_engine)
        image = draw(flat, faces)
    else:
        draw = _choose(drawing, index_by_loops, index_by_engine)
        index = draw(jax.lax.stop_gradient(flat), faces)
        image = _mean_over_samples((index >= 0).astype(flat.dtype), grid)
    return image.reshape(*vertices.shape[:-2], grid.height, grid.width)


def _soft_silhouette_by_engine(vertices, faces, drawing, engine: Engine):
    del engine  # the list does all that is soft
    cover = soft_coverage(vertices, _share(faces, vertices), drawing)
    return _mean_over_samples(cover, drawing.grid)


def _soft_silhouette_by_loops(vertices, faces, drawing):
    from . import native_soft  # needs Numba

    return native_soft.silhouette_image(vertices, faces[None], drawing)


@partial(jax.jit, static_argnames="drawing")
def _render_grid(vertices, background, drawing: Drawing):
    vertices, background = alike(vertices, background)
    flat = flatten_lead(vertices, 3)
    if flat.shape[0] < 1 or min(flat.shape[1:3]) < 2:
        image = _empty_image(flat.shape[0], background, drawing.grid)
    else:
        draw = _choose(drawing, _grid_image_by_loops, _grid_image_by_engine)
        image = draw(flat, background)
    return _unflatten(image, vertices.shape[:-3])


def _grid_image_by_engine(vertices, background, drawing, engine: Engine) -> DepthImage:
    grid = drawing.grid
    index, boxes = grid_visibility(
        jax.lax.stop_gradient(vertices), grid=grid, rules=drawing.rules, engine=engine
    )
    depth = _grid_depth(vertices, index, boxes, grid, engine)
    return _to_pixels(jnp.where(index >= 0, depth, background), index >= 0, grid)


def _grid_image_by_loops(vertices, background, drawing) -> DepthImage:
    batch, h, w, _ = vertices.shape
    faces = jnp.asarray(mesh_lib.grid_faces(h, w))
    flat = vertices.reshape(batch, h * w, 3)
    return _mesh_image_by_loops(flat, faces, background, drawing)


def _share(faces, vertices):
    """(F, 3) as (B, F, 3)."""
    return jnp.broadcast_to(faces, (vertices.shape[0], *faces.shape))


def _to_pixels(depth, drawn, grid: SampleGrid) -> DepthImage:
    """(B, samples) to (B, height, width): the mean, and all, over samples."""
    return DepthImage(
        _mean_over_samples(depth, grid),
        _by_pixel(drawn, grid).all(axis=(-3, -1)),
    )


def _mean_over_samples(values, grid: SampleGrid):
    return _by_pixel(values, grid).mean(axis=(-3, -1))


def _by_pixel(values, grid: SampleGrid):
    """(B, samples) to (B, height, supersample, width, supersample)."""
    s = grid.supersample
    return values.reshape(values.shape[0], grid.height, s, grid.width, s)


def _empty_image(batch: int, background, grid: SampleGrid) -> DepthImage:
    shape = (batch, grid.height, grid.width)
    return DepthImage(jnp.broadcast_to(background, shape), jnp.zeros(shape, bool))


def _unflatten(image: DepthImage, lead) -> DepthImage:
    return DepthImage(*(v.reshape(*lead, *v.shape[1:]) for v in image))


def _depth_at(planes, corner_ids, drawn, grid: SampleGrid, engine: Engine):
    """Depth and screen weights of samples.

    Args:
        planes: x, y, z; each three flat arrays, from which a corner is taken.
        corner_ids: three (B, samples) int32, into the planes; in range everywhere.
        drawn: (B, samples); elsewhere depth and weights are harmless numbers.

    Returns:
        (B, samples) depth, 0 where not drawn, and three weights, 0 where not drawn.
    """

    def gather(*planes):
        return [
            [take(p, i) for p, i in zip(q, corner_ids, strict=True)] for q in planes
        ]

    def weigh(corners):
        # A face that is not drawn may hold NaN; keep it out of the arithmetic.
        xs, ys, zs = ([jnp.where(drawn, v, 1.0) for v in q] for q in corners)
        x, y = grid.positions(planes[0][0].dtype)
        x, y = jnp.tile(x, grid.rows), jnp.repeat(y, grid.columns)
        weights = screen_weights([v - x for v in xs], [v - y for v in ys], grid)
        inverse = sum(w / z for w, z in zip(weights, zs, strict=True))
        depth = jnp.where(drawn, 1.0 / inverse, 0.0)
        return depth, *(jnp.where(drawn, w, 0.0) for w in weights)

    some = jnp.any(drawn)
    depth, *weights = engine.apart(some, weigh, engine.apart(some, gather, *planes))
    return depth, weights


def _pulls(cotangent, depth, weights):
    """d loss / d (1/z) of each sample, shared out to the three corners."""
    pull = -cotangent * depth * depth
    return [pull * w for w in weights]


def _slopes(corners, pulls, grid: SampleGrid):
    """Slopes of 1/z over x and over y, of faces; 0 for one that pulls on nothing.

    With f = 1/z linear on the screen, moving corner k by (dx, dy) moves f at a sample
    by -w_k grad(f) . (dx, dy), and d f / d z_k = -w_k / z_k**2. So three sums a face,
    q_k = sum over samples of (d loss / d f) w_k, give all nine derivatives:
    -q_k grad(f) and -q_k / z_k**2.

    Args:
        corners: x, y and z, each three arrays.
        pulls: three arrays, q; exactly 0 for a face that is not drawn.
    """
    active = (pulls[0] != 0.0) | (pulls[1] != 0.0) | (pulls[2] != 0.0)
    xs, ys, zs = ([jnp.where(active, v, 1.0) for v in q] for q in corners)
    inverse = [1.0 / z for z in zs]
    x1, y1, rise1 = xs[1] - xs[0], ys[1] - ys[0], inverse[1] - inverse[0]
    x2, y2, rise2 = xs[2] - xs[0], ys[2] - ys[0], inverse[2] - inverse[0]
    area = x1 * y2 - y1 * x2
    thick = active & (jnp.abs(area) > grid.smallest_area)
    area = jnp.where(thick, area, 1.0)
    slope_x = jnp.where(thick, (rise1 * y2 - rise2 * y1) / area, 0.0)
    slope_y = jnp.where(thick, (rise2 * x1 - rise1 * x2) / area, 0.0)
    return slope_x, slope_y


def _finish(sums, z):
    """d loss / d (x, y, z) of vertices from the sums of (q slope_x, q slope_y, q)."""
    drawn = sums[2] != 0.0  # elsewhere z may be NaN
    inverse = 1.0 / jnp.where(drawn, z, 1.0)
    return -sums[0], -sums[1], -sums[2] * inverse * inverse


def _mesh_depth_hard(vertices, faces, index, boxes, grid, engine) -> jax.Array:
    return _mesh_depth_fwd(vertices, faces, index, boxes, grid, engine)[0]


def _mesh_depth_fwd(vertices, faces, index, boxes, grid, engine: Engine):
    batch, count, _ = vertices.shape
    drawn = index >= 0
    face = jnp.where(drawn, index, 0)
    # A face that is drawn has its indices in range; face 0 may not.
    known = jnp.clip(faces, 0, count - 1)
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    known = (known + rows[..., None] * count).reshape(-1, 3)
    corners = [
        [take(vertices[..., axis].reshape(-1), known[:, k]) for k in range(3)]
        for axis in range(3)
    ]
    at = face + rows * faces.shape[1]
    depth, weights = _depth_at(corners, [at, at, at], drawn, grid, engine)
    return depth, (vertices, faces, index, boxes, depth, weights)


def _mesh_depth_bwd(grid, engine: Engine, residuals, cotangent):
    vertices, faces, index, boxes, depth, weights = residuals
    batch, count, _ = vertices.shape
    some = jnp.any(index >= 0)
    pulls = tuple(engine.apart(some, _pulls, cotangent, depth, weights))
    (sums,) = engine.sum_by_face(boxes, index, pulls, triangle_count=1, grid=grid)
    ids = jnp.clip(faces, 0, count - 1)

    def terms(vertices, ids, sums):
        corners = [
            [jnp.take_along_axis(vertices[..., axis], ids[..., k], 1) for k in range(3)]
            for axis in range(3)
        ]
        slope_x, slope_y = _slopes(corners, sums, grid)
        q = jnp.stack(sums, axis=-1)
        rows = [q * slope_x[..., None], q * slope_y[..., None], q]
        return jnp.stack(rows, axis=-1).reshape(batch, -1, 3)

    rows = engine.apart(some, terms, vertices, ids, sums)
    rows = engine.sum_rows(rows, ids.reshape(batch, -1), count)
    gradient = _finish([rows[..., k] for k in range(3)], vertices[..., 2])
    return jnp.stack(gradient, axis=-1), None, None, None


_mesh_depth = jax.custom_vjp(_mesh_depth_hard, nondiff_argnums=(4, 5))
_mesh_depth.defvjp(_mesh_depth_fwd, _mesh_depth_bwd)


def _grid_depth_hard(vertices, index, boxes, grid, engine) -> jax.Array:
    return _grid_depth_fwd(vertices, index, boxes, grid, engine)[0]


def _grid_depth_fwd(vertices, index, boxes, grid, engine: Engine):
    batch, h, w, _ = vertices.shape
    drawn = index >= 0
    face = jnp.where(drawn, index, 0)
    lower = face >= h * w
    corner = jnp.where(lower, face - h * w, face)
    corner += (jnp.arange(batch, dtype=jnp.int32) * (h * w))[:, None]
    # (TL, BL, TR) or (TR, BL, BR).
    corner_ids = [
        corner + jnp.where(lower, 1, 0),
        corner + w,
        corner + jnp.where(lower, w + 1, 1),
    ]
    planes = [[vertices[..., k].reshape(-1)] * 3 for k in range(3)]
    depth, weights = _depth_at(planes, corner_ids, drawn, grid, engine)
    return depth, (vertices, index, boxes, depth, weights)


def _grid_depth_bwd(grid, engine: Engine, residuals, cotangent):
    vertices, index, boxes, depth, weights = residuals
    batch, h, w, _ = vertices.shape
    cells = batch * h * w
    some = jnp.any(index >= 0)
    pulls = tuple(engine.apart(some, _pulls, cotangent, depth, weights))

    upper, lower = (
        [v.reshape(-1) for v in t]
        for t in engine.sum_by_face(boxes, index, pulls, triangle_count=2, grid=grid)
    )

    def slopes(vertices, upper, lower):
        planes = [
            jnp.pad(vertices[..., k].reshape(-1), (0, w + 1), constant_values=1.0)
            for k in range(3)
        ]
        tl, bl, tr, br = ([p[k : k + cells] for p in planes] for k in (0, w, 1, w + 1))
        return [
            _slopes(zip(*corners, strict=True), pulls, grid)
            for corners, pulls in (((tl, bl, tr), upper), ((tr, bl, br), lower))
        ]

    def gather(vertices, upper, lower, slopes):
        # Every vertex gathers from its at most six faces.
        def total(upper_factor, lower_factor):
            u = [v * upper_factor for v in upper]
            v = [v * lower_factor for v in lower]
            out = u[0]
            for values, offset in ((u[1] + v[1], w), (u[2] + v[0], 1), (v[2], w + 1)):
                out += jnp.pad(values[: cells - offset], (offset, 0))
            return out

        of_upper, of_lower = slopes
        sums = [total(of_upper[k], of_lower[k]) for k in range(2)]
        sums.append(total(1.0, 1.0))
        return _finish(sums, vertices[..., 2].reshape(-1))

    found = engine.apart(some, slopes, vertices, upper, lower)
    gradient = engine.apart(some, gather, vertices, upper, lower, found)
    return jnp.stack(gradient, axis=-1).reshape(vertices.shape), None, None


_grid_depth = jax.custom_vjp(_grid_depth_hard, nondiff_argnums=(3, 4))
_grid_depth.defvjp(_grid_depth_fwd, _grid_depth_bwd)
