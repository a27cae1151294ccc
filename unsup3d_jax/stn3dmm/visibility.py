"""Which vertices of the grid are seen: by their normals, or by a z-buffer.

Whether a vertex falls into the image at all is another question, which `inside`
answers; who wants both multiplies them.

Masks are of one example; callers `vmap`. The posed frame has the viewer at +z.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

import unsup3d_jax.rasterizer as rasterizer
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.stn3dmm.layers import Camera, Posed, Theta, distance, scale_of

MODES = ("facing", "zbuffer", "soft")
# Share of a face's depth by which a vertex may lie behind what is drawn there.
_DEPTH_TOLERANCE = 0.01
# The slope term allows for the turn of the surface within a pixel, up to this tangent
# of its angle to the image plane (79 degrees).
_STEEPEST = 5.0
# Widths of the soft mask: share of the face's depth, and cosine of a normal.
_SOFT_DEPTH = 0.01
_SOFT_COSINE = 0.05
# The rasterizer interpolates 1/z. So an orthographic face is put this many times its
# own depth away, where 1/z is all but linear; so is one whose camera is farther.
_FARNESS = 10.0
_LEAST_PERSPECTIVE = 1e-2


def cell_triangles(
    vertices: Float[AnyArray, "n 3"], grid: int
) -> Float[Array, "2 c c 3 3"]:
    """Normals of all triangles, weighted by the angle at each of their corners.

    Args:
        vertices: row-major grid, n = g * g.
        grid: g; static.

    Returns:
        (triangle of the cell, row, column, corner, xyz) for c = g - 1: twice the area
        times the angle (radians) along the outward normal. The corners are (i, j),
        (i, j+1), (i+1, j) of the first triangle and (i+1, j+1), (i+1, j), (i, j+1) of
        the second, as Bas et al. number them. The angles count as constants in
        derivatives.

    Raises:
        ValueError: if n is not g * g, or g < 2.
    """
    if grid < 2 or vertices.shape[0] != grid * grid:
        raise ValueError(
            f"need g * g vertices and g >= 2, got {vertices.shape[0]} and {grid=}."
        )
    points = jnp.reshape(vertices, (grid, grid, 3))
    top_left, top_right = points[:-1, :-1], points[:-1, 1:]
    low_left, low_right = points[1:, :-1], points[1:, 1:]
    corners = jnp.stack(
        [
            jnp.stack([top_left, top_right, low_left], axis=2),
            jnp.stack([low_right, low_left, top_right], axis=2),
        ]
    )
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    # Clockwise seen from the front, so outward is (c - a) x (b - a).
    normal = jnp.cross(c - a, b - a)
    angles = _corner_angles(jax.lax.stop_gradient(corners))
    return angles[..., None] * normal[..., None, :]


def _corner_angles(
    corners: Float[Array, "2 c c 3 3"],
) -> Float[Array, "2 c c 3"]:
    """By sine and cosine: an arc cosine has no digits for thin triangles."""
    onward = jnp.roll(corners, -1, axis=-2) - corners
    back = jnp.roll(corners, 1, axis=-2) - corners
    sine = jnp.linalg.norm(jnp.cross(onward, back), axis=-1)
    return jnp.arctan2(sine, jnp.sum(onward * back, axis=-1))


def vertex_normals(vertices: Float[AnyArray, "n 3"], grid: int) -> Float[Array, "n 3"]:
    """Sum over a vertex's triangles of area times angle along their normals.

    Not normalised; 0 where all triangles are degenerate. Sums of shifted arrays, since
    every vertex of a grid has its triangles at the same places: nothing is scattered.

    Args: as for `cell_triangles`.

    Raises:
        ValueError: as `cell_triangles`.
    """
    first, second = cell_triangles(vertices, grid)

    def at(part: Array, row: int, column: int) -> Array:
        # The vertex lies `row` rows and `column` columns from the cell's top left.
        return jnp.pad(part, ((row, 1 - row), (column, 1 - column), (0, 0)))

    total = (
        at(first[:, :, 0], 0, 0)
        + at(first[:, :, 1], 0, 1)
        + at(first[:, :, 2], 1, 0)
        + at(second[:, :, 0], 1, 1)
        + at(second[:, :, 1], 1, 0)
        + at(second[:, :, 2], 0, 1)
    )
    return total.reshape(-1, 3)


def facing(
    vertices: Float[AnyArray, "n 3"],
    grid: int,
    *,
    towards: Float[AnyArray, "n 3"] | None = None,
) -> Bool[Array, "g g"]:
    """Whether the normal looks at the viewer, n . towards >= 0.

    The poster's approximation of visibility: what another part hides stays visible.
    Unlike in the release, a normal is the sum over all triangles of its vertex
    (`compat` has theirs).

    Args:
        vertices: posed frame.
        grid: g; static.
        towards: from each vertex to the viewer, of any length; +z unless given, which
            is right for an orthographic camera.
    """
    normals = vertex_normals(vertices, grid)
    along = normals[:, 2] if towards is None else jnp.sum(normals * towards, axis=1)
    return (along >= 0.0).reshape(grid, grid)


def viewing_directions(
    posed: Posed, theta: Theta, camera: Camera
) -> Float[Array, "n 3"]:
    """From each vertex to the camera, times kappa s; +z for an orthographic camera."""
    kappa = camera.perspective
    points = posed.vertices
    centre = theta.translation + jnp.asarray(camera.offset, points.dtype)
    plane = scale_of(theta, camera) * points[:, :2] + centre
    ahead = distance(points, theta, camera)[:, None]
    return jnp.concatenate([-kappa * plane, ahead], axis=1)


def zbuffer(
    posed: Posed, theta: Theta, camera: Camera, *, grid: int, image_size: int
) -> Bool[Array, "g g"]:
    """Whether a vertex faces the camera and nothing is drawn in front of it; exact.

    The posed mesh is drawn by the rasterizer at the size of the image. A vertex is
    seen if it is `facing` and lies at most a tolerance behind the farthest of the
    pixels around its projection that the mesh covers: 1 % of the face's depth, and
    half a pixel's step on a surface as steep as it is there. Where nothing is drawn,
    outside the image too, nothing hides.

    Args:
        posed, theta, camera: of one image.
        grid: g; static.
        image_size: pixels a side, as for `posed`; static.
    """
    # Nothing here has a derivative; without one the rasterizer keeps nothing for it.
    posed, theta = jax.lax.stop_gradient((posed, theta))
    margin, cosine, _ = _margins(posed, theta, camera, grid, image_size)
    return ((margin >= 0.0) & (cosine >= 0.0)).reshape(grid, grid)


def soft(
    posed: Posed, theta: Theta, camera: Camera, *, grid: int, image_size: int
) -> Float[Array, "g g"]:
    """The z-buffer's mask with a slope: at least 1/2 exactly where `zbuffer` is true.

    A sigmoid of the depth margin over 1 % of the face's depth or of the cosine between
    normal and viewer over 0.05, whichever is less. Differentiable: the nearest surface
    moves with its face, and the outlines of what hides do not move.

    Args: as for `zbuffer`.

    Returns:
        In [0, 1].
    """
    margin, cosine, width = _margins(posed, theta, camera, grid, image_size)
    least = jnp.minimum(margin / width, cosine / _SOFT_COSINE)
    return jax.nn.sigmoid(jnp.clip(least, -30.0, 30.0)).reshape(grid, grid)


def cosine(
    posed: Posed, theta: Theta, camera: Camera, *, grid: int
) -> Float[Array, "g g"]:
    """Of the angle between each vertex's normal and its line of sight.

    Args:
        posed, theta, camera: of one image.
        grid: g; static.

    Returns:
        1 where the surface is seen from straight above, 0 at an outline.
    """
    normals = vertex_normals(posed.vertices, grid)
    towards = viewing_directions(posed, theta, camera)
    return _cosine(normals, towards).reshape(grid, grid)


def _margins(
    posed: Posed, theta: Theta, camera: Camera, grid: int, image_size: int
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, ""]]:
    """Margin of depth, cosine of the normal, and the width of a soft edge in depth.

    Depth is in half-image units, growing away from the viewer.
    """
    depth = depth_of(posed, theta, camera)
    still = jax.lax.stop_gradient(depth)
    extent = jnp.max(still) - jnp.min(still)
    # Nothing else bounds the width of a face without size.
    extent = jnp.maximum(extent, 1e-6)
    normals = vertex_normals(posed.vertices, grid)
    towards = viewing_directions(posed, theta, camera)
    cosine = _cosine(normals, towards)

    mesh = jnp.concatenate([posed.pixels, depth[:, None]], axis=1)
    drawn = rasterizer.render_grid_depth(
        mesh.reshape(grid, grid, 3), (image_size, image_size), background=0.0
    )
    behind = _farthest_tap(drawn.depth, drawn.covered, posed.pixels)
    c = jax.lax.stop_gradient(cosine)
    tangent = jnp.sqrt(jnp.maximum(1.0 - c * c, 0.0)) / jnp.maximum(c, 1e-3)
    pixel = 2.0 / (image_size - 1)
    slope = 0.5 * pixel * jnp.minimum(tangent, _STEEPEST)
    margin = behind + _DEPTH_TOLERANCE * extent + slope - depth
    # Where nothing is drawn nothing hides.
    margin = jnp.where(behind > 0.0, margin, extent)
    return margin, cosine, _SOFT_DEPTH * extent


def depth_of(posed: Posed, theta: Theta, camera: Camera) -> Float[Array, " n"]:
    """Depth as the rasterizer wants it: positive, growing away from the viewer."""
    kappa = camera.perspective
    if kappa >= _LEAST_PERSPECTIVE:
        return distance(posed.vertices, theta, camera) / kappa
    depth = -scale_of(theta, camera) * posed.vertices[:, 2]
    still = jax.lax.stop_gradient(depth)
    nearest, farthest = jnp.min(still), jnp.max(still)
    # The least keeps a face without size in front of the near plane.
    away = jnp.maximum(_FARNESS * (farthest - nearest), 1e-3)
    return depth - nearest + away


def _cosine(
    normals: Float[Array, "n 3"], towards: Float[Array, "n 3"]
) -> Float[Array, " n"]:
    """Of the angle between them; 0 where a normal has no direction."""
    # Area times angle may be as small as its square is 0 in float32.
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(normals), axis=1, keepdims=True))
    some = size > jnp.finfo(normals.dtype).tiny
    normals = jnp.where(some, normals / jnp.where(some, size, 1.0), 0.0)
    square = jnp.sum(normals**2, axis=1) * jnp.sum(towards**2, axis=1)
    along = jnp.sum(normals * towards, axis=1)
    good = square > 1e-12
    return jnp.where(good, along / jnp.sqrt(jnp.where(good, square, 1.0)), 0.0)


def _farthest_tap(
    depth: Float[Array, "h w"],
    covered: Bool[Array, "h w"],
    pixels: Float[AnyArray, "n 2"],
) -> Float[Array, " n"]:
    """The farthest depth drawn at the four pixels around each position; 0 for none.

    At a silhouette some of the four show what lies beyond, and must not uncover a
    vertex that another part hides; so pixels without a face do not count.
    """
    h, w = depth.shape
    shown = jnp.where(covered, depth, 0.0)
    # Outside everything is uncovered; clipping keeps the conversion to int defined.
    corner = jnp.clip(jnp.floor(pixels), -2.0, jnp.array([w + 1.0, h + 1.0]))
    u, v = corner.astype(jnp.int32).T
    best = jnp.zeros(u.shape, depth.dtype)
    for dv in (0, 1):
        for du in (0, 1):
            uu, vv = u + du, v + dv
            within = (uu >= 0) & (uu < w) & (vv >= 0) & (vv < h)
            value = shown[jnp.clip(vv, 0, h - 1), jnp.clip(uu, 0, w - 1)]
            best = jnp.maximum(best, jnp.where(within, value, 0.0))
    return best


def inside(
    pixels: Float[AnyArray, "n 2"], grid: int, image_size: int
) -> Bool[Array, "g g"]:
    """Whether a vertex lies in the image, all of its bilinear taps inside.

    Args:
        pixels: (u, v), row-major.
        grid, image_size: g, and pixels a side; static.
    """
    within = (pixels >= 0.0) & (pixels <= image_size - 1.0)
    return jnp.all(within, axis=1).reshape(grid, grid)


def visibility(
    posed: Posed,
    theta: Theta,
    camera: Camera,
    *,
    mode: str,
    grid: int,
    image_size: int,
) -> Float[Array, "g g"]:
    """How far each texel is seen by the camera, wherever the image ends.

    Args:
        posed, theta, camera: of one image.
        mode: "facing", "zbuffer" or "soft"; static.
        grid, image_size: g, and pixels a side; static.

    Returns:
        In [0, 1]; 0 or 1 unless soft. Only "soft" has a derivative.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"visibility must be one of {MODES}, got {mode!r}.")
    if mode == "facing":
        towards = viewing_directions(posed, theta, camera)
        seen = facing(posed.vertices, grid, towards=towards)
    elif mode == "zbuffer":
        seen = zbuffer(posed, theta, camera, grid=grid, image_size=image_size)
    else:
        return soft(posed, theta, camera, grid=grid, image_size=image_size)
    return seen.astype(posed.pixels.dtype)
