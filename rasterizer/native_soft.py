"""`rasterizer.soft` as plain loops on the CPU, compiled by Numba.

The same aggregation, one face after the other instead of a work list. A sample's
weights and depths are kept relative to the nearest depth so far, so that one pass over
the faces does. Values and gradients agree with XLA's up to rounding, and where a sample
lies as far from two edges of a face, up to which of the two gradients is meant.
"""

import jax
import jax.numpy as jnp
import numpy as np

from . import custom_call, native
from .batching import fold_vmap, like, result_like
from .compiled import njit
from .options import Drawing
from .soft import REACH, box_margin

# What a sample must know of all its faces.
_NEAREST, _TOTAL, _BEYOND, _MISS = range(4)
_STATE = 4


def depth_image(
    vertices: jax.Array, faces: jax.Array, background: jax.Array, drawing: Drawing
) -> jax.Array:
    """`soft.soft_depth` at pixels.

    Args:
        vertices: (B, V, 3); no axis is 0.
        faces: (1 or B, F, 3); F > 0.
        background: (), of the vertices' dtype.
        drawing: sigma and gamma > 0.

    Returns:
        (B, height, width).
    """
    background = jnp.broadcast_to(background, vertices.shape[:1])
    return _blend(vertices, faces, background, drawing)


def silhouette_image(
    vertices: jax.Array, faces: jax.Array, drawing: Drawing
) -> jax.Array:
    """`soft.soft_coverage` at pixels: (B, height, width). Args: as above, but gamma
    is 0."""
    background = like(jnp.zeros(vertices.shape[:1], vertices.dtype), vertices)
    return _blend(vertices, faces, background, drawing)


def _blend_image(vertices, faces, background, drawing):
    return _blend_forward(vertices, faces, background, drawing)[0]


def _blend_forward(vertices, faces, background, drawing: Drawing):
    grid, dtype = drawing.grid, vertices.dtype

    @fold_vmap
    def blend(vertices, faces, background):
        batch = vertices.shape[0]
        bands = native.draw_bands(batch, grid)
        whole, real = _options(vertices, drawing, bands)
        shapes = (
            ((batch, grid.height, grid.width), dtype),
            ((batch, grid.samples, _STATE), dtype),
            *_scratch(vertices, whole),
        )
        call = jax.ffi.ffi_call(
            _target("blend", dtype), [result_like(*s, vertices) for s in shapes]
        )
        return call(whole, real, vertices, faces, background)[:2]

    image, state = blend(vertices, faces, background)
    return image, (vertices, faces, background, state)


def _blend_backward(drawing, residuals, cotangent):
    @fold_vmap
    def pull(vertices, faces, background, state, cotangent):
        (batch, *mesh), dtype = vertices.shape, vertices.dtype
        bands = native.pull_bands(drawing.grid)
        whole, real = _options(vertices, drawing, bands)
        shapes = (
            ((batch, bands, *mesh), dtype),
            ((batch, bands), dtype),
            *_scratch(vertices, whole),
        )
        call = jax.ffi.ffi_call(
            _target("pull", dtype), [result_like(*s, vertices) for s in shapes]
        )
        found = call(whole, real, vertices, faces, background, state, cotangent)
        return [native.add_bands(v) for v in found[:2]]

    to_vertices, to_background = pull(*residuals, cotangent)
    return to_vertices, None, to_background


_blend = jax.custom_vjp(_blend_image, nondiff_argnums=(3,))
_blend.defvjp(_blend_forward, _blend_backward)


def _options(vertices, drawing, bands):
    """`native.options`, then the margin of boxes; then sigma and gamma."""
    dtype = vertices.dtype
    whole, real = native.options(vertices.shape[0], drawing, dtype, bands)
    margin = box_margin(drawing.sigma, drawing.grid)
    softness = drawing.sigma, drawing.gamma
    return np.append(whole, np.int32(margin)), np.append(
        real, real.dtype.type(softness)
    )


def _scratch(vertices, whole):
    """Snapped x and y, and inverse depth, of each part."""
    parts, count = whole[0], vertices.shape[1]
    return ((parts, 2, count), jnp.int32), ((parts, count), jnp.float32)


def _target(work: str, dtype: np.dtype) -> str:
    name = f"rasterizer_soft_{work}_{np.dtype(dtype).name}"
    share = {"blend": _blend_share, "pull": _pull_share}[work]
    custom_call.register(name, share, np.dtype(dtype).type)
    return name


# --- kernels ----------------------------------------------------------------------


@njit(error_model="numpy")
def _blend_share(frame, k, n, real):
    whole, limits, vertices, faces = native.meshes(frame, real)
    background = custom_call.argument(frame, 4, real)
    batch, count, _ = vertices.shape
    image = custom_call.result(frame, 0, real).reshape((batch, -1))
    state = custom_call.result(frame, 1, real).reshape((batch, -1, _STATE))
    snapped = custom_call.result(frame, 2, np.int32).reshape((n, 2, count))[k]
    inverse = custom_call.result(frame, 3, np.float32).reshape((n, count))[k]
    for work in range(k, batch * whole[10], n):
        i, band = native.band_of(work, whole)
        mine = faces[i // (batch // len(faces))]
        native.snap(vertices[i], whole, limits, real, snapped, inverse)
        _blend_faces(
            *(vertices[i], mine, whole, band, limits, real),
            *(snapped, inverse, state[i]),
        )
        _fill_image(background[i], whole, band, limits, real, state[i], image[i])


@njit(error_model="numpy")
def _pull_share(frame, k, n, real):
    whole, limits, vertices, faces = native.meshes(frame, real)
    background = custom_call.argument(frame, 4, real)
    batch, count, _ = vertices.shape
    state = custom_call.argument(frame, 5, real).reshape((batch, -1, _STATE))
    cotangent = custom_call.argument(frame, 6, real).reshape((batch, -1))
    bands = whole[10]
    gradient = custom_call.result(frame, 0, real).reshape((batch * bands, count, 3))
    to_background = custom_call.result(frame, 1, real)
    snapped = custom_call.result(frame, 2, np.int32).reshape((n, 2, count))[k]
    inverse = custom_call.result(frame, 3, np.float32).reshape((n, count))[k]
    for work in range(k, batch * bands, n):
        i, band = native.band_of(work, whole)
        mine = faces[i // (batch // len(faces))]
        native.snap(vertices[i], whole, limits, real, snapped, inverse)
        _pull_faces(
            *(vertices[i], mine, background[i], whole, band, limits, real),
            *(snapped, inverse, state[i], cotangent[i], gradient[work]),
        )
        to_background[work] = _pull_background(
            whole, band, real, state[i], cotangent[i]
        )


@njit(error_model="numpy")
def _box(face, faces, vertices, whole, band, limits, snapped, inverse):
    """First and last row and column that a face may reach; none if it is not drawn."""
    columns = np.int64(whole[2])
    bits = np.int64(whole[4])
    centre_x, centre_y, facing = np.int64(whole[7]), np.int64(whole[8]), whole[9]
    none = (np.int64(0), np.int64(-1), np.int64(0), np.int64(-1))
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    if min(a, b, c) < 0 or max(a, b, c) >= len(inverse):
        return none
    if not (inverse[a] > 0 and inverse[b] > 0 and inverse[c] > 0):
        return none
    p, q, r = vertices[a], vertices[b], vertices[c]
    area = (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
    # y points down, so that a counter-clockwise face has a negative area.
    size = abs(area) if facing == 0 else -facing * area
    if not size > limits[5]:
        return none
    margin = np.int64(whole[11])
    low_x = np.int64(min(snapped[0, a], snapped[0, b], snapped[0, c])) - margin
    high_x = np.int64(max(snapped[0, a], snapped[0, b], snapped[0, c])) + margin
    low_y = np.int64(min(snapped[1, a], snapped[1, b], snapped[1, c])) - margin
    high_y = np.int64(max(snapped[1, a], snapped[1, b], snapped[1, c])) + margin
    return (
        max(centre_y - ((-low_y) >> bits), band[0]),
        min(centre_y + (high_y >> bits), band[1] - 1),
        max(centre_x - ((-low_x) >> bits), 0),
        min(centre_x + (high_x >> bits), columns - 1),
    )


@njit(error_model="numpy")
def _edges(p, q, r, real):
    """Of the edges q r, r p and p q: x, y, 1 / length and 1 / length squared (1 for one
    too short to divide by). Then 1 / area, and its sign."""
    area = (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
    sign = real(1.0) if area >= 0 else real(-1.0)
    return (
        _edge(r[0] - q[0], r[1] - q[1], real),
        _edge(p[0] - r[0], p[1] - r[1], real),
        _edge(q[0] - p[0], q[1] - p[1], real),
        real(1.0) / area,
        sign,
    )


@njit(error_model="numpy")
def _edge(x, y, real):
    square = x * x + y * y
    if square < real(1e-12):
        return x, y, real(1.0), real(1.0), False
    return x, y, real(1.0) / np.sqrt(square), real(1.0) / square, True


@njit(error_model="numpy")
def _crosses(ax, ay, bx, by, cx, cy):
    """Twice the areas that the sample at the origin makes with the edges."""
    return bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx


@njit(error_model="numpy")
def _inside(crosses, edges):
    """The least of the signed distances to the three lines, and its edge."""
    sign = edges[4]
    least, at = sign * crosses[0] * edges[0][2], 0
    line = sign * crosses[1] * edges[1][2]
    if line < least:
        least, at = line, 1
    line = sign * crosses[2] * edges[2][2]
    if line < least:
        least, at = line, 2
    return least, at


@njit(error_model="numpy")
def _beside(x, y, edge, cross, sign, real):
    """How far the origin, outside the face, is from an edge that starts at (x, y).

    Returns:
        Signed distance, <= 0; how far along the nearest point lies, 0 to 1; and the
        unit vector n of which the distance is -n . (nearest point).
    """
    along = -(x * edge[0] + y * edge[1]) * edge[3]
    if along > 0 and along < 1 and edge[4]:
        line = sign * cross * edge[2]
        turned = sign * edge[2] if line < 0 else -sign * edge[2]
        return -abs(line), along, -edge[1] * turned, edge[0] * turned
    along = real(0.0) if along <= 0 else real(1.0)
    x, y = x + along * edge[0], y + along * edge[1]
    length = np.sqrt(x * x + y * y)
    if length == 0:
        return real(0.0), along, real(0.0), real(0.0)
    return -length, along, x / length, y / length


@njit(error_model="numpy")
def _outside(ax, ay, bx, by, cx, cy, crosses, edges, real):
    """`_beside` of the nearest edge, and which it is."""
    sign = edges[4]
    best, at = _beside(ax, ay, edges[2], crosses[2], sign, real), 2
    other = _beside(bx, by, edges[0], crosses[0], sign, real)
    if other[0] > best[0]:
        best, at = other, 0
    other = _beside(cx, cy, edges[1], crosses[1], sign, real)
    if other[0] > best[0]:
        best, at = other, 1
    return best, at


@njit(error_model="numpy")
def _cover(distance, sigma, real):
    """D and 1 - D."""
    ratio = distance / sigma
    small = np.exp(-abs(ratio))
    scale = real(1.0) / (real(1.0) + small)
    if ratio >= 0:
        return scale, small * scale
    return small * scale, scale


@njit(error_model="numpy")
def _clip(value, real):
    """To [0, 1]; and its slope, a half at either end, as `jnp.clip` has it."""
    if value > 0 and value < 1:
        return value, real(1.0)
    if value == 0 or value == 1:
        return value, real(0.5)
    return (real(0.0) if value < 0 else real(1.0)), real(0.0)


@njit(error_model="numpy")
def _blend_faces(vertices, faces, whole, band, limits, real, snapped, inverse, state):
    columns, supersample = np.int64(whole[2]), whole[3]
    sigma, gamma = limits[6], limits[7]
    middle, reach = (supersample - 1) / 2, real(REACH) * sigma
    one, zero = real(1.0), real(0.0)
    for at in range(band[0] * columns, band[1] * columns):
        state[at, _NEAREST] = np.inf
        state[at, _TOTAL] = 0.0
        state[at, _BEYOND] = 0.0
        state[at, _MISS] = 1.0
    for face in range(len(faces)):
        first_row, last_row, first, last = _box(
            *(face, faces, vertices, whole, band, limits, snapped, inverse)
        )
        if first > last or first_row > last_row:
            continue
        p = vertices[faces[face, 0]]
        q = vertices[faces[face, 1]]
        r = vertices[faces[face, 2]]
        edges = _edges(p, q, r, real)
        ia, ib, ic = one / p[2], one / q[2], one / r[2]
        for row in range(first_row, last_row + 1):
            y = real((row - middle) / supersample) + limits[4]
            ay, by, cy = p[1] - y, q[1] - y, r[1] - y
            for column in range(first, last + 1):
                x = real((column - middle) / supersample) + limits[3]
                ax, bx, cx = p[0] - x, q[0] - x, r[0] - x
                crosses = _crosses(ax, ay, bx, by, cx, cy)
                distance, _ = _inside(crosses, edges)
                if distance < 0:
                    if distance <= -reach:
                        continue  # a line is no farther than the outline
                    nearest, _ = _outside(ax, ay, bx, by, cx, cy, crosses, edges, real)
                    distance = nearest[0]
                    if distance <= -reach:
                        continue
                cover, miss = _cover(distance, sigma, real)
                mine = state[row * columns + column]
                if gamma == 0:  # the silhouette, whose coverage takes a mean's place
                    mine[_BEYOND] += cover * mine[_MISS]
                    mine[_MISS] *= miss
                    continue
                mine[_MISS] *= miss
                a = min(max(crosses[0] * edges[3], zero), one)
                b = min(max(crosses[1] * edges[3], zero), one)
                c = min(max(crosses[2] * edges[3], zero), one)
                depth = (a + b + c) / (a * ia + b * ib + c * ic)
                behind = depth - mine[_NEAREST]
                if behind < 0:
                    if mine[_TOTAL] > 0:
                        mine[_BEYOND] -= mine[_TOTAL] * behind
                        fade = np.exp(behind / gamma)
                        mine[_TOTAL] *= fade
                        mine[_BEYOND] *= fade
                    mine[_NEAREST] = depth
                    mine[_TOTAL] += cover
                else:
                    weight = cover * np.exp(-behind / gamma)
                    mine[_TOTAL] += weight
                    mine[_BEYOND] += weight * behind


@njit(error_model="numpy")
def _fill_image(background, whole, band, limits, real, state, image):
    """Turns sums into means, and averages the depths of a pixel's samples."""
    columns, supersample = np.int64(whole[2]), whole[3]
    width = columns // supersample
    share = real(1.0) / real(supersample * supersample)
    image[band[0] // supersample * width : band[1] // supersample * width] = 0.0
    at = band[0] * columns - 1
    for row in range(band[0], band[1]):
        for column in range(columns):
            at += 1
            mine = state[at]
            if limits[7] == 0:
                value = mine[_BEYOND]
            elif mine[_TOTAL] > 0:
                mine[_BEYOND] /= mine[_TOTAL]
                mean, miss = mine[_NEAREST] + mine[_BEYOND], mine[_MISS]
                value = (real(1.0) - miss) * mean + miss * background
            else:
                value = background
            pixel = row // supersample * width + column // supersample
            image[pixel] += share * value


@njit(error_model="numpy")
def _pull_background(whole, band, real, state, cotangent):
    columns, supersample = np.int64(whole[2]), whole[3]
    width = columns // supersample
    share = real(1.0) / real(supersample * supersample)
    total = real(0.0)
    at = band[0] * columns - 1
    for row in range(band[0], band[1]):
        for column in range(columns):
            at += 1
            pixel = row // supersample * width + column // supersample
            total += share * cotangent[pixel] * state[at, _MISS]
    return total


@njit(error_model="numpy")
def _pull_faces(
    vertices,
    faces,
    background,
    whole,
    band,
    limits,
    real,
    snapped,
    inverse,
    state,
    cotangent,
    gradient,
):
    columns, supersample = np.int64(whole[2]), whole[3]
    sigma, gamma = limits[6], limits[7]
    width = columns // supersample
    middle, reach = (supersample - 1) / 2, real(REACH) * sigma
    one, zero = real(1.0), real(0.0)
    share = one / real(supersample * supersample)
    gradient[:] = 0.0
    for face in range(len(faces)):
        first_row, last_row, first, last = _box(
            *(face, faces, vertices, whole, band, limits, snapped, inverse)
        )
        if first > last or first_row > last_row:
            continue
        p = vertices[faces[face, 0]]
        q = vertices[faces[face, 1]]
        r = vertices[faces[face, 2]]
        edges = _edges(p, q, r, real)
        scale = edges[3]
        ia, ib, ic = one / p[2], one / q[2], one / r[2]
        pax = pay = paz = pbx = pby = pbz = pcx = pcy = pcz = zero
        for row in range(first_row, last_row + 1):
            y = real((row - middle) / supersample) + limits[4]
            ay, by, cy = p[1] - y, q[1] - y, r[1] - y
            for column in range(first, last + 1):
                x = real((column - middle) / supersample) + limits[3]
                ax, bx, cx = p[0] - x, q[0] - x, r[0] - x
                crosses = _crosses(ax, ay, bx, by, cx, cy)
                distance, edge = _inside(crosses, edges)
                if distance <= -reach:
                    continue
                if distance < 0:
                    nearest, edge = _outside(
                        ax, ay, bx, by, cx, cy, crosses, edges, real
                    )
                    distance, along, nx, ny = nearest
                    if distance <= -reach:
                        continue
                else:
                    sx, sy = ax, ay
                    mine = edges[2]
                    if edge == 0:
                        sx, sy = bx, by
                        mine = edges[0]
                    elif edge == 1:
                        sx, sy = cx, cy
                        mine = edges[1]
                    along = -(sx * mine[0] + sy * mine[1]) * mine[3]
                    nx, ny = -mine[1] * edges[4] * mine[2], mine[0] * edges[4] * mine[2]
                cover, miss = _cover(distance, sigma, real)
                mine_state = state[row * columns + column]
                pixel = row // supersample * width + column // supersample
                pulled = share * cotangent[pixel]
                missed = pulled * mine_state[_MISS]
                if gamma == 0:
                    pull = missed * cover
                else:
                    a, slope_a = _clip(crosses[0] * scale, real)
                    b, slope_b = _clip(crosses[1] * scale, real)
                    c, slope_c = _clip(crosses[2] * scale, real)
                    # Rounded as in the forward pass: divided by a small gamma, the last
                    # bit of a difference of depths would count.
                    depth = (a + b + c) / (a * ia + b * ib + c * ic)
                    behind = max(depth - mine_state[_NEAREST], zero)
                    weight = cover * np.exp(-behind / gamma)
                    weight *= (pulled - missed) / mine_state[_TOTAL]
                    mean = mine_state[_NEAREST] + mine_state[_BEYOND]
                    beyond = behind - mine_state[_BEYOND]
                    pull = weight * beyond * miss
                    pull -= missed * (background - mean) * cover
                    # To z and, by the screen weights a, b and c, to the crosses; in an
                    # order in which no product leaves float32.
                    to_depth = weight * (one - beyond / gamma)
                    total = one / (a + b + c)
                    ra, rb, rc = depth * ia, depth * ib, depth * ic
                    paz += to_depth * (a * total * ra) * ra
                    pbz += to_depth * (b * total * rb) * rb
                    pcz += to_depth * (c * total * rc) * rc
                    to_depth *= total * depth * scale
                    qa = to_depth * slope_a * (one - ra)
                    qb = to_depth * slope_b * (one - rb)
                    qc = to_depth * slope_c * (one - rc)
                    # The area that they are divided by is the sum of the crosses.
                    common = qa * crosses[0] + qb * crosses[1] + qc * crosses[2]
                    common *= scale
                    qa, qb, qc = qa - common, qb - common, qc - common
                    pax += qc * by - qb * cy
                    pay += qb * cx - qc * bx
                    pbx += qa * cy - qc * ay
                    pby += qc * ax - qa * cx
                    pcx += qb * ay - qa * by
                    pcy += qa * bx - qb * ax
                # The distance moves with the nearest point of the outline.
                pull /= sigma
                start, stop = pull * (one - along), pull * along
                if edge == 2:
                    pax, pay = pax - start * nx, pay - start * ny
                    pbx, pby = pbx - stop * nx, pby - stop * ny
                elif edge == 0:
                    pbx, pby = pbx - start * nx, pby - start * ny
                    pcx, pcy = pcx - stop * nx, pcy - stop * ny
                else:
                    pcx, pcy = pcx - start * nx, pcy - start * ny
                    pax, pay = pax - stop * nx, pay - stop * ny
        for corner, dx, dy, dz in (
            (faces[face, 0], pax, pay, paz),
            (faces[face, 1], pbx, pby, pbz),
            (faces[face, 2], pcx, pcy, pcz),
        ):
            gradient[corner, 0] += dx
            gradient[corner, 1] += dy
            gradient[corner, 2] += dz
