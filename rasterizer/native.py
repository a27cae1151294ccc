"""The rasterizer's work as plain loops on the CPU, compiled by Numba.

The same numbers as `visibility` and `depth` by other means: face indices are identical,
since they follow from the arithmetic of `coverage`; depths and gradients differ in the
last bits. One loop over the faces draws with a z-buffer, one over the samples computes
depth, another one gradients. Threads share out a batch, and bands of rows of an image:
as many as there are threads to spare for drawing, which no band changes; as many as the
image is large for gradients, which are added up band by band, so that they depend on
neither batch nor machine.

XLA's CPU backend runs a gather or a scatter one element at a time, several of them for
each item of the work list; here a sample costs a few nanoseconds.
"""

import jax
import jax.numpy as jnp
import numpy as np

from . import coverage, custom_call
from .batching import fold_vmap, result_like
from .compiled import njit
from .coverage import SampleGrid
from .options import Drawing
from .types import DepthImage
from .worklist import MAX_DEPTH, MIN_DEPTH

_HALF_SPAN = coverage.MAX_SPAN // 2
_SMALL_SPAN = coverage.SMALL_SPAN
DRAW_BAND = 2**12  # samples that are worth a thread
PULL_BAND = 2**17  # samples that are worth a thread and a gradient of their own
MOST_BANDS = 16


def face_index(vertices: jax.Array, faces: jax.Array, drawing: Drawing) -> jax.Array:
    """`visibility.mesh_visibility` without the boxes.

    Args:
        vertices: (B, V, 3).
        faces: (1 or B, F, 3).

    Returns:
        (B, rows * columns) int32, -1 where empty.
    """
    if 0 in (vertices.shape[0], vertices.shape[1], faces.shape[1]):
        return jnp.full((vertices.shape[0], drawing.grid.samples), -1, jnp.int32)
    return _draw(vertices, faces, None, drawing)[0]


def depth_image(
    vertices: jax.Array, faces: jax.Array, background: jax.Array, drawing: Drawing
) -> DepthImage:
    """Hard depth at pixels, with its analytic gradient.

    Args:
        vertices: (B, V, 3); no axis is 0.
        faces: (1 or B, F, 3); F > 0.
        background: (), of the vertices' dtype.

    Returns:
        DepthImage (B, height, width).
    """
    background = jnp.broadcast_to(background, vertices.shape[:1])
    return DepthImage(*_image(vertices, faces, background, drawing))


def _draw_image(vertices, faces, background, drawing):
    return _image_forward(vertices, faces, background, drawing)[0]


def _image_forward(vertices, faces, background, drawing):
    index, depth, covered = _draw(vertices, faces, background, drawing)
    return (depth, covered), (vertices, faces, index)


def _image_backward(drawing, residuals, cotangents):
    # Which faces are drawn is known: one program for whatever rules.
    drawing = Drawing(drawing.grid)

    @fold_vmap
    def pull(vertices, faces, index, cotangent):
        (batch, *mesh), dtype = vertices.shape, vertices.dtype
        bands = pull_bands(drawing.grid)
        whole, real = options(batch, drawing, dtype, bands)
        shapes = ((batch, bands, *mesh), (batch, bands))
        call = jax.ffi.ffi_call(
            _target("pull", dtype), [result_like(s, dtype, cotangent) for s in shapes]
        )
        found = call(whole, real, vertices, faces, index, cotangent)
        return [add_bands(v) for v in found]

    to_vertices, to_background = pull(*residuals, cotangents[0])
    return to_vertices, None, to_background


_image = jax.custom_vjp(_draw_image, nondiff_argnums=(3,))
_image.defvjp(_image_forward, _image_backward)


def _draw(vertices, faces, background, drawing: Drawing):
    """`face_index`, depth and covered; the latter two empty without a background."""
    grid, dtype = drawing.grid, vertices.dtype
    size = (0, 0) if background is None else (grid.height, grid.width)

    @fold_vmap
    def draw(vertices, faces, background):
        batch, count, _ = vertices.shape
        whole, real = options(batch, drawing, dtype, draw_bands(batch, grid))
        parts = whole[0]
        shapes = (
            ((batch, grid.samples), jnp.int32),
            ((batch, *size), dtype),
            ((batch, *size), jnp.bool_),
            # Scratch of each part: snapped x and y, inverse depth, nearness.
            ((parts, 2, count), jnp.int32),
            ((parts, count), jnp.float32),
            ((parts, grid.samples), jnp.float32),
        )
        call = jax.ffi.ffi_call(
            _target("draw", dtype), [result_like(*s, vertices) for s in shapes]
        )
        return call(whole, real, vertices, faces, background)[:3]

    if background is None:
        background = jnp.zeros(vertices.shape[0], dtype)
    return draw(jax.lax.stop_gradient(vertices), faces, background)


def draw_bands(batch: int, grid: SampleGrid) -> int:
    """Into how many bands of rows drawing cuts each image."""
    spare = -(-custom_call.cores() // batch)
    return max(1, min(spare, grid.samples // DRAW_BAND, grid.height))


def pull_bands(grid: SampleGrid) -> int:
    """Into how many bands of rows gradients cut each image."""
    return max(1, min(grid.samples // PULL_BAND, grid.height, MOST_BANDS))


def add_bands(values: jax.Array) -> jax.Array:
    """(B, bands, ...) summed over bands, one after the other.

    Not `sum`: XLA's reduction of a middle axis takes as long as drawing does.
    """
    total = values[:, 0]
    for band in range(1, values.shape[1]):
        total = total + values[:, band]
    return total


def options(
    batch: int, drawing: Drawing, dtype, bands: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the kernels must know: an array of whole numbers, and one of real ones.

    The whole ones: parts of the work; rows, columns, samples a side of each pixel,
    bits; x and y of the pixel (0, 0) in snapped units; the middle column and row;
    facing; bands of an image. The real ones: near, far, the largest |x| that snapping
    may see; the samples' offset in x and y; the smallest area.
    """
    grid, rules = drawing.grid, drawing.rules
    unit = 2**grid.bits
    origin = [
        round(shift * unit) - centre * unit
        for shift, centre in zip(grid.shift, grid.centre, strict=True)
    ]
    whole = (
        min(batch * bands, custom_call.cores()),
        *(grid.rows, grid.columns, grid.supersample, grid.bits),
        *(*origin, *grid.centre, rules.facing, bands),
    )
    real = (
        *(rules.near, rules.far, 2.0**29 / (grid.supersample * unit)),
        *(*grid.offset, grid.smallest_area),
    )
    return np.array(whole, np.int32), np.array(real, dtype)


def _target(work: str, dtype: np.dtype) -> str:
    """Registers a kernel for a dtype and returns its name."""
    name = f"rasterizer_{work}_{np.dtype(dtype).name}"
    share = {"draw": _draw_share, "pull": _pull_share}[work]
    custom_call.register(name, share, np.dtype(dtype).type)
    return name


# --- kernels ----------------------------------------------------------------------


@njit(error_model="numpy")
def _draw_share(frame, k, n, real):
    whole, limits, vertices, faces = meshes(frame, real)
    background = custom_call.argument(frame, 4, real)
    batch, count, _ = vertices.shape
    samples = whole[1] * whole[2]
    index = custom_call.result(frame, 0, np.int32).reshape((batch, samples))
    depth = custom_call.result(frame, 1, real).reshape((batch, -1))
    covered = custom_call.result(frame, 2, np.uint8).reshape((batch, -1))
    snapped = custom_call.result(frame, 3, np.int32).reshape((n, 2, count))[k]
    inverse = custom_call.result(frame, 4, np.float32).reshape((n, count))[k]
    nearness = custom_call.result(frame, 5, np.float32).reshape((n, samples))[k]
    for work in range(k, batch * whole[10], n):
        i, band = band_of(work, whole)
        mine = faces[i // (batch // len(faces))]
        snap(vertices[i], whole, limits, real, snapped, inverse)
        _draw_faces(mine, whole, band, snapped, inverse, nearness, index[i])
        if depth.size:
            _fill_image(
                *(vertices[i], mine, background[i], whole, band, limits, real),
                *(index[i], depth[i], covered[i]),
            )


@njit(error_model="numpy")
def _pull_share(frame, k, n, real):
    whole, limits, vertices, faces = meshes(frame, real)
    batch = len(vertices)
    index = custom_call.argument(frame, 4, np.int32).reshape((batch, -1))
    cotangent = custom_call.argument(frame, 5, real).reshape((batch, -1))
    bands, (_, count, _) = whole[10], vertices.shape
    gradient = custom_call.result(frame, 0, real).reshape((batch * bands, count, 3))
    to_background = custom_call.result(frame, 1, real)
    for work in range(k, batch * bands, n):
        i, band = band_of(work, whole)
        mine = faces[i // (batch // len(faces))]
        to_background[work] = _pull_image(
            *(vertices[i], mine, whole, band, limits, real),
            *(index[i], cotangent[i], gradient[work]),
        )


@njit(error_model="numpy")
def meshes(frame, real):
    """The arguments that all kernels take first: options, vertices, faces."""
    return (
        custom_call.argument(frame, 0, np.int32),
        custom_call.argument(frame, 1, real),
        _as_triples(frame, 2, real),
        _as_triples(frame, 3, np.int32),
    )


@njit(error_model="numpy")
def band_of(work, whole):
    """Image of a piece of work, and its rows of samples: first, and past the last."""
    bands, supersample = np.int64(whole[10]), np.int64(whole[3])
    height = np.int64(whole[1]) // supersample
    i, j = work // bands, work % bands
    return i, (
        height * j // bands * supersample,
        height * (j + 1) // bands * supersample,
    )


@njit(error_model="numpy")
def _as_triples(frame, number, dtype):
    batch = custom_call.extent(frame, number, 0)
    count = custom_call.extent(frame, number, 1)
    return custom_call.argument(frame, number, dtype).reshape((batch, count, 3))


@njit(error_model="numpy")
def snap(vertices, whole, limits, real, snapped, inverse):
    """`worklist.snap_vertices`."""
    supersample, bits, origin_x, origin_y = whole[3], whole[4], whole[5], whole[6]
    near, far, limit = limits[0], limits[1], limits[2]
    scale = real(1 << bits)
    least, most = real(MIN_DEPTH), real(MAX_DEPTH)
    reach = np.int64(_HALF_SPAN) << bits
    for v in range(len(vertices)):
        x, y, z = vertices[v, 0], vertices[v, 1], vertices[v, 2]
        inverse[v] = 0.0
        if not (z > near and z < far and z >= least and z <= most):
            continue
        if not (abs(x) < limit and abs(y) < limit):
            continue
        column = np.int64(np.rint(x * scale)) * supersample + origin_x
        row = np.int64(np.rint(y * scale)) * supersample + origin_y
        if abs(column) <= reach and abs(row) <= reach:
            snapped[0, v], snapped[1, v] = column, row
            inverse[v] = np.float32(1.0) / np.float32(z)


@njit(error_model="numpy")
def _draw_faces(faces, whole, band, snapped, inverse, nearness, index):
    """The z-buffer; `coverage.nearness`, with edge functions summed along rows."""
    columns = np.int64(whole[2])
    bits = np.int64(whole[4])
    centre_x, centre_y, facing = np.int64(whole[7]), np.int64(whole[8]), whole[9]
    count = len(inverse)
    index[band[0] * columns : band[1] * columns] = -1
    nearness[band[0] * columns : band[1] * columns] = 0.0
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        if min(a, b, c) < 0 or max(a, b, c) >= count:
            continue
        ia, ib, ic = inverse[a], inverse[b], inverse[c]
        if not (ia > 0 and ib > 0 and ic > 0):
            continue
        ax, ay = np.int64(snapped[0, a]), np.int64(snapped[1, a])
        bx, by = np.int64(snapped[0, b]), np.int64(snapped[1, b])
        cx, cy = np.int64(snapped[0, c]), np.int64(snapped[1, c])
        low_x, high_x = min(ax, bx, cx), max(ax, bx, cx)
        low_y, high_y = min(ay, by, cy), max(ay, by, cy)
        first_column = centre_x - ((-low_x) >> bits)
        first_row = centre_y - ((-low_y) >> bits)
        last_column = centre_x + (high_x >> bits)
        last_row = centre_y + (high_y >> bits)
        unit = np.int64(1) << bits
        if max(high_x - low_x, high_y - low_y) > _SMALL_SPAN:
            # Rounded to a coarser grid where exact arithmetic would not fit the work
            # list's words; the face may then reach a sample beyond its box.
            reach = max(max(-low_x, high_x), max(-low_y, high_y))
            shift = np.int64(0)
            while reach > _HALF_SPAN << shift:
                shift += 1
            half = (np.int64(1) << shift) >> 1
            ax, ay = (ax + half) >> shift, (ay + half) >> shift
            bx, by = (bx + half) >> shift, (by + half) >> shift
            cx, cy = (cx + half) >> shift, (cy + half) >> shift
            unit >>= shift
            first_column, first_row = first_column - 1, first_row - 1
            last_column, last_row = last_column + 1, last_row + 1
        first_column, first_row = max(first_column, 0), max(first_row, band[0])
        last_column = min(last_column, columns - 1)
        last_row = min(last_row, band[1] - 1)
        if first_column > last_column or first_row > last_row:
            continue
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        # y points down, so that a counter-clockwise face has a negative area.
        if area == 0 or (facing > 0 and area > 0) or (facing < 0 and area < 0):
            continue
        # All edge functions of a face with their sign turned are those of its back.
        sign = np.int64(1) if area > 0 else np.int64(-1)
        whole_area = _to_float(abs(area))
        px, py = (first_column - centre_x) * unit, (first_row - centre_y) * unit
        row_a = sign * ((cx - bx) * (py - by) - (cy - by) * (px - bx))
        row_b = sign * ((ax - cx) * (py - cy) - (ay - cy) * (px - cx))
        row_c = sign * ((bx - ax) * (py - ay) - (by - ay) * (px - ax))
        right = sign * unit
        for row in range(first_row, last_row + 1):
            edge_a, edge_b, edge_c = row_a, row_b, row_c
            start = row * columns
            for at in range(start + first_column, start + last_column + 1):
                if (edge_a | edge_b | edge_c) >= 0:
                    near = _round_mantissa(
                        _round_mantissa(_to_float(edge_a) / whole_area * ia, 22)
                        + _round_mantissa(_to_float(edge_b) / whole_area * ib, 22)
                        + _round_mantissa(_to_float(edge_c) / whole_area * ic, 22),
                        20,
                    )
                    if near > nearness[at]:
                        nearness[at] = near
                        index[at] = face
                edge_a -= right * (cy - by)
                edge_b -= right * (ay - cy)
                edge_c -= right * (by - ay)
            row_a += right * (cx - bx)
            row_b += right * (ax - cx)
            row_c += right * (bx - ax)


@njit(error_model="numpy")
def _to_float(value):
    """The nearest float32, by way of two that are exact."""
    high, low = value >> 18, value & ((1 << 18) - 1)
    return np.float32(high) * np.float32(1 << 18) + np.float32(low)


@njit(error_model="numpy")
def _round_mantissa(value, bits):
    """`jax.lax.reduce_precision(value, 8, bits)` of a normal float32."""
    drop = 23 - bits
    word = np.float32(value).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    word = np.uint32(word + half + ((word >> np.uint32(drop)) & np.uint32(1)))
    word = np.uint32(word & np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1)))
    return word.view(np.float32)


@njit(error_model="numpy")
def _weigh(xa, ya, xb, yb, xc, yc, smallest, real):
    """`rasterize.screen_weights`, and one over the area; 0 for a face too thin."""
    one = real(1.0)
    zero = real(0.0)
    area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
    if not abs(area) > smallest:
        third = one / real(3.0)
        return third, third, third, zero
    scale = one / area
    a = min(max((xb * yc - yb * xc) * scale, zero), one)
    b = min(max((xc * ya - yc * xa) * scale, zero), one)
    c = min(max((xa * yb - ya * xb) * scale, zero), one)
    total = one / (a + b + c)
    return a * total, b * total, c * total, scale


@njit(error_model="numpy")
def _fill_image(
    vertices, faces, background, whole, band, limits, real, index, depth, covered
):
    """Depth as the mean over a pixel's samples, and whether all of them are covered."""
    columns, supersample = np.int64(whole[2]), whole[3]
    width = columns // supersample
    smallest = limits[5]
    one, middle = real(1.0), (supersample - 1) / 2
    share = one / real(supersample * supersample)
    pixels = slice(band[0] // supersample * width, band[1] // supersample * width)
    depth[pixels] = 0.0
    covered[pixels] = 1
    at = band[0] * columns - 1
    for row in range(band[0], band[1]):
        y = real((row - middle) / supersample) + limits[4]
        start = row // supersample * width
        for pixel in range(start, start + width):
            for k in range(supersample):
                at += 1
                face = index[at]
                if face < 0:
                    depth[pixel] += share * background
                    covered[pixel] = 0
                    continue
                column = (pixel - start) * supersample + k
                x = real((column - middle) / supersample) + limits[3]
                first, second, third = faces[face, 0], faces[face, 1], faces[face, 2]
                a, b, c = vertices[first], vertices[second], vertices[third]
                wa, wb, wc, _ = _weigh(
                    *(a[0] - x, a[1] - y, b[0] - x, b[1] - y, c[0] - x, c[1] - y),
                    *(smallest, real),
                )
                depth[pixel] += share / (wa / a[2] + wb / b[2] + wc / c[2])


@njit(error_model="numpy")
def _pull_image(vertices, faces, whole, band, limits, real, index, cotangent, gradient):
    """The formula of `depth._slopes`, summed over vertices in the order of samples.

    Returns the gradient with respect to the background.
    """
    columns, supersample = np.int64(whole[2]), whole[3]
    width = columns // supersample
    smallest = limits[5]
    one, middle = real(1.0), (supersample - 1) / 2
    share = one / real(supersample * supersample)
    to_background = real(0.0)
    gradient[:] = 0.0
    at = band[0] * columns - 1
    for row in range(band[0], band[1]):
        y = real((row - middle) / supersample) + limits[4]
        start = row // supersample * width
        for pixel in range(start, start + width):
            pulled = share * cotangent[pixel]
            for k in range(supersample):
                at += 1
                face = index[at]
                if face < 0:
                    to_background += pulled
                    continue
                column = (pixel - start) * supersample + k
                x = real((column - middle) / supersample) + limits[3]
                first, second, third = faces[face, 0], faces[face, 1], faces[face, 2]
                a, b, c = vertices[first], vertices[second], vertices[third]
                wa, wb, wc, scale = _weigh(
                    *(a[0] - x, a[1] - y, b[0] - x, b[1] - y, c[0] - x, c[1] - y),
                    *(smallest, real),
                )
                ia, ib, ic = one / a[2], one / b[2], one / c[2]
                depth = one / (wa * ia + wb * ib + wc * ic)
                rise_b, rise_c = ib - ia, ic - ia
                slope_x = (rise_b * (c[1] - a[1]) - rise_c * (b[1] - a[1])) * scale
                slope_y = (rise_c * (b[0] - a[0]) - rise_b * (c[0] - a[0])) * scale
                pull = -pulled * depth * depth
                for vertex, weight, inverse in (
                    (first, wa, ia),
                    (second, wb, ib),
                    (third, wc, ic),
                ):
                    q = pull * weight
                    gradient[vertex, 0] -= q * slope_x
                    gradient[vertex, 1] -= q * slope_y
                    gradient[vertex, 2] -= q * inverse * inverse
    return to_background
