"""Soft coverage and soft depth: gradients across silhouettes and occlusions.

Every face covers every sample to a degree

    D = sigmoid(d / sigma),

d the signed distance in pixels from the sample to the outline of the face on screen,
positive inside. What covers a sample at all is

    A = 1 - prod (1 - D),

and its depth is the mean of the faces' depths z (each taken at the nearest point of the
face) under the weights D exp(-z / gamma), mixed with the background:

    depth = A * sum(D exp(-z/gamma) z) / sum(D exp(-z/gamma)) + (1 - A) * background.

This is the aggregation of Liu et al., Soft Rasterizer, ICCV 2019, with two changes: d
enters by itself rather than squared, since the squared distance has no gradient at the
very outline, where the samples of a depth-map mesh lie; and the background takes what A
leaves over, so that no weight for it needs tuning.

Faces farther than REACH * sigma count as D = 0 (5e-5 is lost). A face that is nearer by
dz than what it lies beside shows min(REACH, dz / gamma) * sigma pixels beyond its own
outline: that goes to 0 with sigma, but for a gradient at an occlusion choose gamma no
smaller than a tenth of the step in depth. Memory is that of a
chunk of the work list, never pixels x faces. Weights are relative to the nearest depth
at the sample: exp((nearest - z) / gamma) neither overflows nor, since D is at least
4.5e-5 wherever a face counts, lets all of them vanish.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from . import visibility, worklist
from .batching import fold_vmap
from .coverage import SampleGrid
from .engines import LIST
from .options import Drawing
from .rasterize import screen_weights
from .sums import add_at, sum_rows_in_order
from .worklist import take

REACH = 10.0


def signed_distance(xs, ys) -> jax.Array:
    """Distance from the origin to the outline of triangles, positive inside.

    Differentiable on the outline itself, except at the corners.
    """
    corners = list(zip(xs, ys, strict=True))
    orientation = jnp.where(
        (xs[1] - xs[0]) * (ys[2] - ys[0]) - (ys[1] - ys[0]) * (xs[2] - xs[0]) < 0,
        -1.0,
        1.0,
    )

    def edge(k):
        """Signed distance to an edge's line; squared and signed distance to it."""
        (ax, ay), (bx, by) = corners[k], corners[(k + 1) % 3]
        ex, ey = bx - ax, by - ay
        length2 = ex * ex + ey * ey
        tiny = length2 < 1e-12
        safe2 = jnp.where(tiny, 1.0, length2)
        line = orientation * (ax * by - ay * bx) / jnp.sqrt(safe2)
        along = -(ax * ex + ay * ey) / safe2
        beside = (along > 0.0) & (along < 1.0) & ~tiny
        corner2 = jnp.where(along <= 0.0, ax * ax + ay * ay, bx * bx + by * by)
        corner = -jnp.sqrt(jnp.where(corner2 > 0.0, corner2, 1.0))
        corner = jnp.where(corner2 > 0.0, corner, 0.0)
        distance2 = jnp.where(beside, line * line, corner2)
        value = jnp.where(beside, jnp.where(line < 0.0, line, -line), corner)
        return line, distance2, value

    inner, nearest2, outer = edge(0)
    for k in (1, 2):
        line, distance2, value = edge(k)
        inner = jnp.minimum(inner, line)
        outer = jnp.where(distance2 < nearest2, value, outer)
        nearest2 = jnp.minimum(nearest2, distance2)
    return jnp.where(inner >= 0.0, inner, outer)


def at_sample(xs, ys, zs, sigma, grid):
    """log D, depth and log(1 - D) of a face at a sample at the origin, and whether the
    face reaches that far."""
    distance = signed_distance(xs, ys) / sigma
    weights = screen_weights(xs, ys, grid)
    depth = 1.0 / sum(w / z for w, z in zip(weights, zs, strict=True))
    log_cover, log_miss = -jax.nn.softplus(-distance), -jax.nn.softplus(distance)
    return (log_cover, depth, log_miss), distance > -REACH


def box_margin(sigma: float, grid: SampleGrid) -> int:
    """How much wider than a face its box is, on every side, in snapped units."""
    # Snapping moves a corner by up to half of 2**-bits pixels, which is `supersample`
    # units, and the samples by half a unit.
    slack = grid.supersample // 2 + 2
    reach = REACH * sigma * grid.supersample * 2**grid.bits
    return min(math.ceil(reach) + slack, 2**28)  # beyond any image; no sum overflows


def lay_out(vertices, faces, drawing: Drawing):
    """Boxes widened by the reach of sigma, and the corner planes of the faces."""
    grid, rules = drawing.grid, drawing.rules
    margin = box_margin(drawing.sigma, grid)
    _, boxes = visibility.mesh_primitives(
        vertices, faces, grid=grid, rules=rules, engine=LIST, margin=margin
    )
    batch, count = vertices.shape[:2]
    ids = jnp.clip(faces, 0, count - 1)
    ids = ids + (jnp.arange(batch, dtype=jnp.int32) * count)[:, None, None]
    ids = ids.reshape(-1, 3)
    corners = tuple(
        tuple(vertices[..., axis].reshape(-1)[ids[:, k]] for k in range(3))
        for axis in range(3)
    )
    (xa, xb, xc), (ya, yb, yc), _ = corners
    area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
    # y points down: counter-clockwise is negative.
    size = jnp.abs(area) if rules.facing == 0 else -rules.facing * area
    thick = size > grid.smallest_area  # and False for NaN
    boxes = boxes._replace(count=jnp.where(thick, boxes.count, 0))
    return boxes, corners


def relative(items, corners, grid):
    """Corners of each item's face, x and y relative to its sample; harmless if dead."""
    dtype = corners[0][0].dtype
    x, y = grid.positions(dtype)
    x, y = take(x, items.column), take(y, items.row)
    harmless = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0))
    out = []
    for axis, origin in enumerate((x, y, None)):
        values = []
        for k in range(3):
            value = take(corners[axis][k], items.primitive)
            value = value if origin is None else value - origin
            values.append(jnp.where(items.live, value, harmless[axis][k]))
        out.append(values)
    return out


def _weight(log_cover, depth, nearest, gamma):
    """Weight of a face, and how far it lies behind the nearest one.

    Depths are kept relative to the nearest: divided by a small gamma, the last bit of a
    difference counts.
    """
    behind = jnp.maximum(depth - nearest, 0.0)  # not before itself by rounding
    return jnp.exp(log_cover - behind / gamma), behind


def _forward(vertices, faces, drawing: Drawing):
    """Nearest depth, sum of weights, sum of weight x depth behind it, and log miss;
    without gamma log miss alone."""
    grid, sigma, gamma = drawing.grid, drawing.sigma, drawing.gamma

    @fold_vmap
    def run(vertices, faces):
        batch = vertices.shape[0]
        samples = batch * grid.samples
        boxes, corners = lay_out(vertices, faces, drawing)
        options = {"batch": batch, "grid": grid}
        dtype = vertices.dtype

        def evaluate(items):
            values, reaches = at_sample(
                *relative(items, corners, grid), sigma=sigma, grid=grid
            )
            return values, jnp.where(items.live & reaches, items.sample, samples)

        def find_nearest(items, _, nearest):
            (_, depth, _), at = evaluate(items)
            return nearest.at[at].min(depth, mode="drop")

        def accumulate(items, _, sums):
            (log_cover, depth, log_miss), at = evaluate(items)
            if gamma == 0.0:
                return add_at(sums, at, (log_miss,))
            first = take(nearest, items.sample)
            weight, behind = _weight(log_cover, depth, first, gamma)
            return add_at(sums, at, (weight, weight * behind, log_miss))

        zeros = jnp.zeros(samples, dtype)
        if gamma == 0.0:
            sums = worklist.for_each_chunk(boxes, (zeros,), accumulate, **options)
            return sums[0].reshape(batch, grid.samples)
        nearest = jnp.full(samples, jnp.inf, dtype)
        nearest = worklist.for_each_chunk(boxes, nearest, find_nearest, **options)
        sums = worklist.for_each_chunk(boxes, (zeros,) * 3, accumulate, **options)
        return tuple(v.reshape(batch, grid.samples) for v in (nearest, *sums))

    return run(vertices, faces)


def _backward(vertices, faces, drawing: Drawing, pulls):
    """Gradient with respect to vertices.

    Args:
        pulls: d loss / d log miss, and with gamma also the nearest depth, how far the
            mean depth m lies beyond it, and s = d loss / d m over the sum of weights;
            all (B, samples). For a face of weight w, d loss / d log w = w s (z - m),
            and d loss / d z = w s beside that.
    """
    grid, sigma, gamma = drawing.grid, drawing.sigma, drawing.gamma

    @fold_vmap
    def run(vertices, faces, pulls):
        batch, count, _ = vertices.shape
        boxes, corners = lay_out(vertices, faces, drawing)
        flat = [v.reshape(-1) for v in pulls]

        def pull_back(items, ranges, totals):
            corner_values = relative(items, corners, grid)
            (log_cover, depth, _), vjp, reaches = jax.vjp(
                lambda *c: at_sample(*c, sigma=sigma, grid=grid),
                *corner_values,
                has_aux=True,
            )
            to_miss, *rest = (take(v, items.sample) for v in flat)
            if gamma == 0.0:
                none = jnp.zeros_like(depth)
                cotangents = (none, none, to_miss)
            else:
                nearest, beyond, share = rest
                weight, behind = _weight(log_cover, depth, nearest, gamma)
                weight *= share
                to_cover = weight * (behind - beyond)
                cotangents = (to_cover, weight - to_cover / gamma, to_miss)
            gradients = vjp(
                tuple(jnp.where(items.live & reaches, v, 0.0) for v in cotangents)
            )
            return worklist.add_runs(
                [v for axis in gradients for v in axis], items, ranges, totals
            )

        n = boxes.count.shape[0]
        totals = worklist.for_each_chunk(
            boxes,
            [jnp.zeros(n, vertices.dtype) for _ in range(9)],
            pull_back,
            batch=batch,
            grid=grid,
        )
        # (9, B F) to a row (x, y, z) for each corner.
        rows = jnp.stack(totals).reshape(3, 3, batch, -1)
        rows = rows.transpose(2, 3, 1, 0).reshape(batch, -1, 3)
        ids = jnp.clip(faces, 0, count - 1).reshape(batch, -1)
        return sum_rows_in_order(rows, ids, count)

    return run(vertices, faces, pulls)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def soft_depth(vertices, faces, background, drawing: Drawing):
    """Soft depth at samples: (B, V, 3), (B, F, 3) to (B, samples)."""
    return _soft_depth_fwd(vertices, faces, background, drawing)[0]


def _soft_depth_fwd(vertices, faces, background, drawing):
    nearest, total, weighted, log_miss = _forward(vertices, faces, drawing)
    some = total > 0.0
    total = jnp.where(some, total, 1.0)
    nearest = jnp.where(some, nearest, 0.0)
    beyond = jnp.where(some, weighted / total, 0.0)
    cover = -jnp.expm1(log_miss)
    depth = cover * (nearest + beyond) + (1.0 - cover) * background
    return depth, (vertices, faces, background, nearest, total, beyond, log_miss)


def _soft_depth_bwd(drawing, residuals, cotangent):
    vertices, faces, background, nearest, total, beyond, log_miss = residuals
    miss = jnp.exp(log_miss)
    share = cotangent * (1.0 - miss) / total
    to_miss = cotangent * miss * (background - (nearest + beyond))
    pulls = (to_miss, nearest, beyond, share)
    gradient = _backward(vertices, faces, drawing, pulls)
    return gradient, None, jnp.sum(cotangent * miss)


soft_depth.defvjp(_soft_depth_fwd, _soft_depth_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def soft_coverage(vertices, faces, drawing: Drawing):
    """Soft coverage A at samples, of a drawing without gamma: (B, V, 3), (B, F, 3) to
    (B, samples)."""
    return _soft_coverage_fwd(vertices, faces, drawing)[0]


def _soft_coverage_fwd(vertices, faces, drawing):
    log_miss = _forward(vertices, faces, drawing)
    return -jnp.expm1(log_miss), (vertices, faces, log_miss)


def _soft_coverage_bwd(drawing, residuals, cotangent):
    vertices, faces, log_miss = residuals
    pulls = (-cotangent * jnp.exp(log_miss),)
    gradient = _backward(vertices, faces, drawing, pulls)
    return gradient, None


soft_coverage.defvjp(_soft_coverage_fwd, _soft_coverage_bwd)
