"""Camera, viewpoint and surface geometry: the one place that knows the frame.

Camera frame: x right, y down, z forward, scene units (metres at a nominal
distance of 1). Pixel centres lie on integer coordinates, the principal point
at ((w-1)/2, (h-1)/2) and f = (w-1) / (2 tan(fov/2)) pixels, Eq. (5) of Wu et
al., CVPR 2020. A viewpoint is (rx, ry, rz, tx, ty, tz): p' = R (p - o) + o + t
with R = Rz Ry Rx, o = (0, 0, centre_depth); +ry moves the near side of an
object to the left of the image, +rx down. Functions take one example.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def focal_length(width: int, *, fov_deg: float) -> float:
    """Focal length in pixels, Eq. (5).

    Args:
        width: image width in pixels, at least 2.
        fov_deg: angle between the outermost pixel centres of a row.

    Raises:
        ValueError: if width < 2 or fov_deg lies outside (0, 180).
    """
    if width < 2 or not 0.0 < fov_deg < 180.0:
        raise ValueError(
            f"need width >= 2, 0 < fov_deg < 180; got {width=}, {fov_deg=}."
        )
    return (width - 1) / (2.0 * math.tan(math.radians(fov_deg) / 2.0))


def depth_to_points(
    depth: Float[Array, "h w"], *, fov_deg: float
) -> Float[Array, "h w 3"]:
    """Lifts a depth map to camera-space points, P = d K^-1 p (Eq. 5).

    Args:
        depth: distance along z, scene units.
        fov_deg: horizontal field of view; static.

    Returns:
        Points (x, y, z) in scene units.

    Raises:
        ValueError: if w < 2 or fov_deg lies outside (0, 180).
    """
    h, w = depth.shape
    focal = focal_length(w, fov_deg=fov_deg)
    x = (jnp.arange(w, dtype=depth.dtype) - (w - 1) / 2.0) / focal
    y = (jnp.arange(h, dtype=depth.dtype) - (h - 1) / 2.0) / focal
    return jnp.stack([depth * x, depth * y[:, None], depth], axis=-1)


def project(
    points: Float[Array, "*n 3"], size: tuple[int, int], *, fov_deg: float
) -> Float[Array, "*n 2"]:
    """Projects camera-space points with z > 0 to pixel coordinates (u, v).

    Args:
        points: (x, y, z), scene units.
        size: (height, width) of the image in pixels; static.
        fov_deg: horizontal field of view; static.

    Returns:
        u to the right, v down; integers are pixel centres.
    """
    h, w = size
    focal = focal_length(w, fov_deg=fov_deg)
    centre = jnp.array([(w - 1) / 2.0, (h - 1) / 2.0], dtype=points.dtype)
    return focal * points[..., :2] / points[..., 2:] + centre


def rotation_matrix(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """R = Rz Ry Rx from angles about x, y, z in radians (x applied first)."""
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack(
        [
            jnp.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx]),
            jnp.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx]),
            jnp.stack([-sy, cy * sx, cy * cx]),
        ]
    )


def rotate(
    points: Float[Array, "*n 3"], rotation: Float[Array, "3 3"]
) -> Float[Array, "*n 3"]:
    """p' = R p for every point."""
    # Multiply-adds instead of a matrix product: exact float32 on every backend
    # (TPUs and tensor cores round matrix products), and faster for 3 x 3.
    x, y, z = points[..., 0:1], points[..., 1:2], points[..., 2:3]
    return x * rotation[:, 0] + y * rotation[:, 1] + z * rotation[:, 2]


def transform(
    points: Float[Array, "*n 3"], view: Float[Array, "6"], *, centre_depth: float
) -> Float[Array, "*n 3"]:
    """Moves canonical points to the input's view, (R, T) of Eq. (6).

    Args:
        points: canonical camera-space points, scene units.
        view: rotation x, y, z (radians), translation x, y, z (scene units).
        centre_depth: z of the rotation centre on the optical axis.
    """
    centre = jnp.array([0.0, 0.0, centre_depth], dtype=points.dtype)
    return rotate(points - centre, rotation_matrix(view[:3])) + centre + view[3:]


def inverse_transform(
    points: Float[Array, "*n 3"], view: Float[Array, "6"], *, centre_depth: float
) -> Float[Array, "*n 3"]:
    """Moves points of the input's view back to the canonical frame."""
    centre = jnp.array([0.0, 0.0, centre_depth], dtype=points.dtype)
    moved = points - view[3:] - centre
    return rotate(moved, rotation_matrix(view[:3]).T) + centre


def depth_to_normals(
    depth: Float[Array, "h w"], *, fov_deg: float, norm_epsilon: float = 0.0
) -> Float[Array, "h w 3"]:
    """Surface normals from a depth map by central differences (Sec. 3.3).

    n is proportional to t_u x t_v and points away from the camera: a
    fronto-parallel plane gives (0, 0, 1). The outermost pixels, which have no
    central difference, are (0, 0, 1).

    Args:
        depth: scene units.
        fov_deg: horizontal field of view; static.
        norm_epsilon: added to the norm before dividing. The authors' code has
            1e-7, which is no rounding guard: at 64 px the cross product of a
            plane is 3e-5 long, so their normals are 0.3 % short of unit
            length and their angular error between *equal* normals is 6.5
            degrees. 0 gives unit normals.

    Returns:
        Unit normals (for norm_epsilon = 0) in the camera frame.
    """
    points = depth_to_points(depth, fov_deg=fov_deg)
    along_u = points[1:-1, 2:] - points[1:-1, :-2]
    along_v = points[2:, 1:-1] - points[:-2, 1:-1]
    normal = jnp.cross(along_u, along_v)
    # A true cross product is at least one pixel's area; the floor only keeps
    # the square root differentiable for depth maps that touch zero.
    norm = jnp.sqrt(jnp.maximum(jnp.sum(normal**2, axis=-1, keepdims=True), 1e-24))
    normal = normal / (norm + norm_epsilon)
    border = jnp.array([0.0, 0.0, 1.0], dtype=depth.dtype) / (1.0 + norm_epsilon)
    framed = jnp.broadcast_to(border, (*depth.shape, 3))
    return framed.at[1:-1, 1:-1].set(normal)
