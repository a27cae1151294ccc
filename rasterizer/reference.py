"""The slow, obvious oracle: numpy, one face at a time, whole image at once.

Coverage is exact in int64 on snapped vertices; nearness is the documented float32
recipe of `coverage`, step by step; depth is float64 from the unsnapped vertices. It
shares no code with the fast path.
"""

import numpy as np

from .types import DepthImage, Fragments

_MAX_SPAN = 2**20 - 2**12
_REACH = 10.0


def _round_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 rounded to nearest, ties to even, with `bits` of mantissa."""
    drop = 23 - bits
    word = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    word += (1 << (drop - 1)) - 1 + ((word >> drop) & 1)
    word &= ~np.uint64((1 << drop) - 1)
    return word.astype(np.uint32).view(np.float32)


def _bits(size, supersample):
    """Snapped coordinates are whole numbers of 2**-bits samples."""
    side = max(size) * supersample
    return max(0, min(8, int(np.log2(_MAX_SPAN / (3 * side)))))


def _snap(xy, size, supersample, offset):
    """Units of 2**-bits samples from the middle sample; and bits."""
    rows, columns = size[0] * supersample, size[1] * supersample
    bits = _bits(size, supersample)
    scale = 2**bits
    half = (supersample - 1) / 2
    out = []
    for k, count in ((0, columns), (1, rows)):
        shift = round((half - supersample * offset[k]) * scale)
        value = np.where(np.abs(xy[:, k]) < 2**29 / (supersample * scale), xy[:, k], 0)
        units = np.round(value * scale).astype(np.int64)
        out.append(units * supersample + shift - (count // 2) * scale)
    return np.stack(out, axis=-1), bits


def _usable(vertices, snapped, bits, supersample, near, far):
    """Which vertices a face may have and be drawn; (V,) bool."""
    with np.errstate(all="ignore"):
        good = np.isfinite(vertices).all(-1)
        good &= (vertices[:, 2] > near) & (vertices[:, 2] < far)
        good &= (vertices[:, 2] >= 1e-15) & (vertices[:, 2] <= 1e15)
        good &= (np.abs(vertices[:, :2]) < 2**29 / (supersample * 2**bits)).all(-1)
        good &= (np.abs(snapped) <= (_MAX_SPAN // 2) << bits).all(-1)
    return good


def _positions(size, supersample, offset):
    """x and y of the samples, in pixels; both (rows, columns)."""
    row, column = np.mgrid[: size[0] * supersample, : size[1] * supersample]
    half = (supersample - 1) / 2
    return (
        (column - half) / supersample + offset[0],
        (row - half) / supersample + offset[1],
    )


def _screen(corners, px, py, unit):
    """Clipped and renormalised screen weights (3, ...), float64; a third each for a
    face no larger than the square of the snapping unit, which has no slope."""
    (xa, ya), (xb, yb), (xc, yc) = corners[:, :2]
    area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
    if abs(area) <= unit**2:
        return np.full((3, *px.shape), 1.0 / 3.0)
    w = np.stack(
        [
            (xb - px) * (yc - py) - (yb - py) * (xc - px),
            (xc - px) * (ya - py) - (yc - py) * (xa - px),
            (xa - px) * (yb - py) - (ya - py) * (xb - px),
        ]
    )
    w = np.clip(w / area, 0.0, 1.0)
    return w / w.sum(axis=0)


def _drawn_faces(vertices, faces, size, supersample, near, far, cull, pixel_offset):
    """Number, coverage (rows, columns) and nearness where covered, of faces in turn."""
    rows, columns = size[0] * supersample, size[1] * supersample
    if not len(vertices):
        return
    with np.errstate(all="ignore"):
        snapped, bits = _snap(vertices[:, :2], size, supersample, pixel_offset)
        inverse = 1.0 / vertices[:, 2].astype(np.float32)
    good = _usable(vertices, snapped, bits, supersample, near, far)
    row, column = np.mgrid[:rows, :columns]

    for number, face in enumerate(faces):
        if (face < 0).any() or (face >= len(vertices)).any() or not good[face].all():
            continue
        corners = snapped[face]
        shift = 0
        # Only a face that spans far is rounded to a coarser grid.
        if np.ptp(corners, axis=0).max() > 2**15 - 1:
            while np.abs(corners).max() > (_MAX_SPAN // 2) << shift:
                shift += 1
        corners = (corners + ((1 << shift) >> 1)) >> shift
        px = (column - columns // 2) << (bits - shift)
        py = (row - rows // 2) << (bits - shift)
        edges = []
        for i, j in ((1, 2), (2, 0), (0, 1)):
            (ax, ay), (bx, by) = corners[i], corners[j]
            edges.append((bx - ax) * (py - ay) - (by - ay) * (px - ax))
        edges = np.stack(edges)
        area = edges.sum(axis=0)
        clockwise, other = (edges >= 0).all(axis=0), (edges <= 0).all(axis=0)
        covers = {"none": clockwise | other, "back": other, "front": clockwise}[cull]
        covers &= area != 0
        if not covers.any():
            continue
        weight = edges[:, covers].astype(np.float32) / area[covers].astype(np.float32)
        products = _round_mantissa(weight * inverse[face][:, None], 22)
        nearness = _round_mantissa(products[0] + products[1] + products[2], 20)
        yield number, covers, nearness


def rasterize(
    vertices: np.ndarray,
    faces: np.ndarray,
    size: tuple[int, int],
    *,
    supersample: int = 1,
    near: float = 0.0,
    far: float = np.inf,
    cull: str = "none",
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> Fragments:
    """`rasterizer.rasterize` of one mesh, at every sample of a supersampled image.

    Args:
        vertices: (V, 3).
        faces: (F, 3) integers.
        size: (height, width), pixels.

    Returns:
        Fragments of numpy arrays (height * supersample, width * supersample), float64.
    """
    vertices = np.asarray(vertices)
    faces = np.asarray(faces, np.int64).reshape(-1, 3)
    rows, columns = size[0] * supersample, size[1] * supersample
    face_index = np.full((rows, columns), -1, np.int32)
    nearest = np.zeros((rows, columns), np.float32)
    for number, covers, nearness in _drawn_faces(
        vertices, faces, size, supersample, near, far, cull, pixel_offset
    ):
        wins = np.zeros_like(covers)
        wins[covers] = nearness > nearest[covers]
        nearest[wins] = nearness[wins[covers]]
        face_index[wins] = number
    return at_faces(
        *(vertices, faces, face_index, size),
        supersample=supersample,
        pixel_offset=pixel_offset,
    )


def rasterize_layers(
    vertices: np.ndarray,
    faces: np.ndarray,
    size: tuple[int, int],
    layers: int,
    *,
    near: float = 0.0,
    far: float = np.inf,
    cull: str = "none",
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> Fragments:
    """`rasterizer.rasterize_layers` of one mesh, hard: all faces of a pixel, sorted.

    Returns:
        Fragments of numpy arrays (layers, height, width), float64.
    """
    vertices = np.asarray(vertices)
    faces = np.asarray(faces, np.int64).reshape(-1, 3)
    lists = [[[] for _ in range(size[1])] for _ in range(size[0])]
    for number, covers, nearness in _drawn_faces(
        vertices, faces, size, 1, near, far, cull, pixel_offset
    ):
        for (i, j), key in zip(np.argwhere(covers), nearness, strict=True):
            lists[i][j].append((-key, number))
    face_index = np.full((layers, *size), -1, np.int32)
    for i, j in np.ndindex(*size):
        for k, (_, number) in enumerate(sorted(lists[i][j])[:layers]):
            face_index[k, i, j] = number
    found = [
        at_faces(vertices, faces, index, size, pixel_offset=pixel_offset)
        for index in face_index
    ]
    return Fragments(*(np.stack(v) for v in zip(*found, strict=True)))  # pyright: ignore[reportArgumentType]


def at_faces(
    vertices: np.ndarray,
    faces: np.ndarray,
    face_index: np.ndarray,
    size: tuple[int, int],
    *,
    supersample: int = 1,
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> Fragments:
    """Where the samples lie on given faces; the differentiable half of `rasterize`."""
    x, y = _positions(size, supersample, pixel_offset)
    unit = 1.0 / (2 ** _bits(size, supersample) * supersample)
    barycentrics = np.zeros((*face_index.shape, 3))
    depth = np.full(face_index.shape, np.inf)
    for number in np.unique(face_index[face_index >= 0]):
        mine = face_index == number
        corners = np.asarray(vertices)[faces[number]].astype(np.float64)
        over_z = _screen(corners, x[mine], y[mine], unit) / corners[:, 2:]
        barycentrics[mine] = (over_z / over_z.sum(axis=0)).T
        depth[mine] = 1.0 / over_z.sum(axis=0)
    return Fragments(face_index, barycentrics, depth)  # pyright: ignore[reportArgumentType]


def render_depth(
    vertices: np.ndarray,
    faces: np.ndarray,
    size: tuple[int, int],
    *,
    background: float,
    supersample: int = 1,
    near: float = 0.0,
    far: float = np.inf,
    cull: str = "none",
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> DepthImage:
    """`rasterizer.render_depth`, hard, of one mesh; float64."""
    fragments = rasterize(
        vertices,
        faces,
        size,
        supersample=supersample,
        near=near,
        far=far,
        cull=cull,
        pixel_offset=pixel_offset,
    )
    shape = (size[0], supersample, size[1], supersample)
    drawn = fragments.face_index >= 0
    depth = np.where(drawn, fragments.depth, background)
    return DepthImage(
        depth.reshape(shape).mean(axis=(1, 3)), drawn.reshape(shape).all(axis=(1, 3))
    )


def _signed_distance(corners, px, py):
    """Pixels from samples to the outline of a triangle, positive inside; float64."""
    nearest, sides = np.full(px.shape, np.inf), []
    for k in range(3):
        (ax, ay), (bx, by) = corners[k, :2], corners[(k + 1) % 3, :2]
        ex, ey = bx - ax, by - ay
        length2 = ex * ex + ey * ey
        along = ((px - ax) * ex + (py - ay) * ey) / (length2 if length2 > 0 else 1.0)
        along = np.clip(along, 0.0, 1.0)
        to_edge = np.hypot(ax + along * ex - px, ay + along * ey - py)
        nearest = np.minimum(nearest, to_edge)
        sides.append(ex * (py - ay) - ey * (px - ax))
    sides = np.stack(sides)
    inside = (sides >= 0).all(axis=0) | (sides <= 0).all(axis=0)
    return np.where(inside, nearest, -nearest)


def render_soft(
    vertices: np.ndarray,
    faces: np.ndarray,
    size: tuple[int, int],
    *,
    background: float,
    sigma: float,
    gamma: float,
    supersample: int = 1,
    near: float = 0.0,
    far: float = np.inf,
    cull: str = "none",
    pixel_offset: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """The formulas of `rasterizer.soft`, word for word, of one mesh; float64.

    Returns:
        Soft depth and soft silhouette, both (height, width).
    """
    vertices = np.asarray(vertices)
    x, y = _positions(size, supersample, pixel_offset)
    snapped, bits = _snap(
        np.nan_to_num(vertices[:, :2]), size, supersample, pixel_offset
    )
    good = _usable(vertices, snapped, bits, supersample, near, far)
    vertices = vertices.astype(np.float64)
    covers, depths = [], []
    for face in np.asarray(faces, np.int64).reshape(-1, 3):
        if (face < 0).any() or (face >= len(vertices)).any() or not good[face].all():
            continue
        corners = vertices[face]
        (xa, ya), (xb, yb), (xc, yc) = corners[:, :2]
        area = (xb - xa) * (yc - ya) - (yb - ya) * (xc - xa)
        size_of_face = {"none": abs(area), "back": -area, "front": area}[cull]
        unit = 1.0 / (2**bits * supersample)
        if size_of_face <= unit**2:
            continue
        distance = _signed_distance(corners, x, y)
        cover = 1.0 / (1.0 + np.exp(-np.clip(distance / sigma, -_REACH, 700.0)))
        covers.append(np.where(distance > -_REACH * sigma, cover, 0.0))
        depths.append(
            1.0 / (_screen(corners, x, y, unit) / corners[:, 2, None, None]).sum(0)
        )
    if not covers:
        return np.full(size, float(background)), np.zeros(size)
    cover, depth = np.stack(covers), np.stack(depths)
    nearest = np.where(cover > 0.0, depth, np.inf).min(axis=0)
    weight = cover * np.exp(np.minimum(nearest - depth, 0.0) / gamma)
    total = weight.sum(axis=0)
    mean = (weight * depth).sum(axis=0) / np.where(total > 0, total, 1.0)
    silhouette = 1.0 - np.prod(1.0 - cover, axis=0)
    blended = silhouette * mean + (1.0 - silhouette) * background
    shape = (size[0], supersample, size[1], supersample)
    return (
        blended.reshape(shape).mean(axis=(1, 3)),
        silhouette.reshape(shape).mean(axis=(1, 3)),
    )
