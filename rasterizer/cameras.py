"""Cameras: points of a world to what `rasterize` draws, and back.

The frame of a camera is x right, y down, z forward. Pixel centres lie on whole
numbers, the optical axis meets the image at ((width - 1) / 2, (height - 1) / 2) unless
told otherwise. A pose is a rotation R and a translation t that take a point p of the
world to R p + t in the camera's frame.

    perspective    x = f_x X / Z + c_x    y = f_y Y / Z + c_y    z = Z
    orthographic   x = s_x X + c_x        y = s_y Y + c_y        z = Z

with f = (width - 1) / (2 tan(fov / 2)): the angle lies between the outermost pixel
centres of a row. All is differentiable, in either mode.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .mesh import check_size

_TINY = 1e-15  # depths below are not drawn; see `worklist.MIN_DEPTH`


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("rotation", "translation", "focal", "centre"),
    meta_fields=("parallel",),
)
@dataclasses.dataclass(frozen=True)
class Camera:
    """A pose and a projection; a pytree, leading axes are a batch of cameras.

    Attributes:
        rotation: (..., 3, 3), world to camera.
        translation: (..., 3), world to camera, in units of the world.
        focal: (..., 2) along x and y, pixels; orthographic: pixels a unit.
        centre: (..., 2) where the optical axis meets the image, pixels.
        parallel: whether all rays are parallel, orthographic; static. Hand it on to
            `rasterize`, which interpolates otherwise then.
    """

    rotation: jax.Array
    translation: jax.Array
    focal: jax.Array
    centre: jax.Array
    parallel: bool = False


Pose = tuple[jax.Array, jax.Array]


def perspective_camera(
    size: tuple[int, int], *, fov_deg=None, focal=None, centre=None, pose=None
) -> Camera:
    """A pinhole camera.

    Args:
        size: (height, width) of the image, pixels.
        fov_deg: (...) angle between the outermost pixel centres of a row, degrees; or
        focal: (...) or, along x and y, (..., 2) focal length, pixels. One of the two. A
            last axis of 2 is always x and y.
        centre: (..., 2) where the optical axis meets the image, pixels; its middle
            unless given.
        pose: (rotation, translation), such as `look_at` makes; the world's frame is the
            camera's unless given.

    Raises:
        ValueError: unless one of fov_deg and focal is given; for a fov_deg outside
            (0, 180) or an image one pixel wide with it, as far as the number is known;
            or naming the argument of a wrong shape.
    """
    height, width = check_size(size, "(height, width)")
    if (fov_deg is None) == (focal is None):
        raise ValueError(f"give fov_deg or focal, got {fov_deg=} and {focal=}.")
    if fov_deg is not None:
        if not isinstance(fov_deg, Tracer):
            known = np.asarray(fov_deg)  # under jit jnp would make a tracer of it
            if not ((known > 0) & (known < 180)).all():
                raise ValueError(f"fov_deg must lie in (0, 180), got {fov_deg}.")
        if width < 2:
            raise ValueError("fov_deg needs an image at least 2 pixels wide.")
        half = jnp.asarray(fov_deg) * (math.pi / 360.0)
        one = (width - 1) / (2.0 * jnp.tan(half))
        focal = jnp.stack([one, one], axis=-1)
    return _camera(_pair(focal, "focal"), centre, pose, (height, width), False)


def orthographic_camera(
    size: tuple[int, int], *, scale, centre=None, pose=None
) -> Camera:
    """A camera of parallel rays.

    Args:
        scale: (...) or, along x and y, (..., 2) pixels a unit of the world.
        size, centre, pose: as for `perspective_camera`.

    Raises:
        ValueError: naming the argument of a wrong shape.
    """
    return _camera(_pair(scale, "scale"), centre, pose, check_size(size), True)


def _pair(value, name: str) -> jax.Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(float)
    if value.ndim == 0 or value.shape[-1] != 2:
        value = jnp.stack([value, value], axis=-1)
    return value


def _camera(focal, centre, pose, size, parallel: bool) -> Camera:
    height, width = size
    if centre is None:
        centre = ((width - 1) / 2.0, (height - 1) / 2.0)
    rotation, translation = (jnp.eye(3), jnp.zeros(3)) if pose is None else pose
    fields = [jnp.asarray(v) for v in (rotation, translation, focal, centre)]
    for value, shape, name in zip(
        fields,
        ((3, 3), (3,), (2,), (2,)),
        ("rotation", "translation", "focal", "centre"),
        strict=True,
    ):
        if value.shape[-len(shape) :] != shape:
            raise ValueError(f"{name} must be (..., {shape}), got {value.shape}.")
    return Camera(*fields, parallel=parallel)


def look_at(eye, target, up=(0.0, -1.0, 0.0)) -> Pose:
    """The pose of a camera at `eye` that looks at `target`.

    Args:
        eye, target: (..., 3) points of the world.
        up: (..., 3) direction that is upwards in the image, of any length; against y
            unless given, as in the camera's own frame. Where it is along the view, or
            0, the axis of the world that is farthest from the view stands in for it.

    Returns:
        Rotation (..., 3, 3) and translation (..., 3), world to camera. An eye at the
        target looks along z. Differentiable, but where `up` is along the view.

    Raises:
        ValueError: naming the argument that is not (..., 3).
    """
    points = {"eye": eye, "target": target, "up": up}
    for name, value in points.items():
        points[name] = value = jnp.asarray(value)
        if value.ndim == 0 or value.shape[-1] != 3:
            raise ValueError(f"{name} must be (..., 3), got {value.shape}.")
    dtype = jnp.result_type(float, *points.values())
    eye, target, up = jnp.broadcast_arrays(*(v.astype(dtype) for v in points.values()))
    forward, _ = _unit(target - eye, jnp.array([0.0, 0.0, 1.0], dtype))
    other = jax.nn.one_hot(jnp.argmin(jnp.abs(forward), axis=-1), 3, dtype=dtype)
    fallback, _ = _unit(jnp.cross(forward, other), other)
    upright, some = _unit(up, other)
    side = jnp.cross(forward, jnp.where(some, upright, other))
    right, _ = _unit(side, fallback, smallest=1e-6)
    rotation = jnp.stack([right, jnp.cross(forward, right), forward], axis=-2)
    return rotation, -_apply(rotation, eye)


def _unit(vector, instead, smallest=0.0):
    """Vectors (..., 3) of length 1, or others for short ones; and which are long."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(vector), axis=-1, keepdims=True))
    some = scale > max(smallest, float(jnp.finfo(vector.dtype).tiny))
    scaled = jnp.where(some, vector, instead) / jnp.where(some, scale, 1.0)
    length = jnp.sqrt(jnp.sum(scaled * scaled, axis=-1, keepdims=True))
    return scaled / length, some


def rotation_matrix(vector) -> jax.Array:
    """Rotations about axes: Rodrigues' formula, with its derivatives at 0 too.

    R = I + sin(a) / a K + (1 - cos(a)) / a**2 K**2, a the length of the vector and K
    its cross product.

    Args:
        vector: (..., 3) axis times angle, radians.

    Returns:
        (..., 3, 3).

    Raises:
        ValueError: for another shape.
    """
    vector = jnp.asarray(vector)
    if vector.ndim == 0 or vector.shape[-1] != 3:
        raise ValueError(f"vector must be (..., 3), got {vector.shape}.")
    vector = vector.astype(jnp.result_type(float, vector))
    angle2 = jnp.sum(vector * vector, axis=-1)[..., None, None]
    # Below this the next term of each series is less than float64 tells.
    small = angle2 < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1.0, angle2))
    sine = jnp.where(small, 1.0 - angle2 / 6.0, jnp.sin(angle) / angle)
    half = jnp.sin(0.5 * angle) / angle
    cosine = jnp.where(small, 0.5 - angle2 / 24.0, 2.0 * half * half)
    x, y, z = (vector[..., k] for k in range(3))
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    cross = cross.reshape(*vector.shape, 3)
    squared = jnp.matmul(cross, cross, precision=jax.lax.Precision.HIGHEST)
    return jnp.eye(3, dtype=vector.dtype) + sine * cross + cosine * squared


def _apply(rotation, points):
    """R p of rotations (..., 3, 3) and points (..., 3), in full precision."""
    return jnp.sum(rotation * points[..., None, :], axis=-1)


def to_camera(points, camera: Camera) -> jax.Array:
    """R p + t: points of the world in the camera's frame.

    Args:
        points: (..., V, 3); the leading axes broadcast with those of the camera.

    Returns:
        (..., V, 3), in units of the world; z is the camera depth.

    Raises:
        ValueError: unless points are (..., V, 3).
    """
    points = _check_points(points, "points")
    rotation = camera.rotation[..., None, :, :]
    return _apply(rotation, points) + camera.translation[..., None, :]


def to_pixels(points, camera: Camera) -> jax.Array:
    """Points in the camera's frame to the vertices that `rasterize` takes.

    Args:
        points: (..., V, 3) in the camera's frame.

    Returns:
        (..., V, 3): x and y in pixels, z the camera depth. In perspective a point at
        z < 1e-15 has no place on the screen and gets the harmless one of z = 1: the
        rasterizer drops its faces, unless `clip_near` cuts them before.

    Raises:
        ValueError: unless points are (..., V, 3).
    """
    points = _check_points(points, "points")
    xy, z = points[..., :2], points[..., 2:]
    if not camera.parallel:
        xy = xy / jnp.where(z >= _TINY, z, 1.0)
    xy = xy * camera.focal[..., None, :] + camera.centre[..., None, :]
    return jnp.concatenate([xy, jnp.broadcast_to(z, (*xy.shape[:-1], 1))], axis=-1)


def project(points, camera: Camera) -> jax.Array:
    """Points of the world to vertices for `rasterize`: `to_pixels` of `to_camera`.

    Args:
        points: (..., V, 3) in the world; the leading axes broadcast with the camera's.

    Returns:
        (..., V, 3): x and y in pixels, z the camera depth.

    Raises:
        ValueError: unless points are (..., V, 3).
    """
    return to_pixels(to_camera(points, camera), camera)


def unproject(pixels, camera: Camera) -> jax.Array:
    """The inverse of `project`: pixels and their depth to points of the world.

    Args:
        pixels: (..., V, 3): x and y in pixels, z the camera depth, as of the pixels of
            a depth map; leading axes broadcast with the camera's.

    Returns:
        (..., V, 3) in the world.

    Raises:
        ValueError: unless pixels are (..., V, 3).
    """
    pixels = _check_points(pixels, "pixels")
    z = pixels[..., 2:]
    xy = (pixels[..., :2] - camera.centre[..., None, :]) / camera.focal[..., None, :]
    if not camera.parallel:
        xy = xy * z
    points = jnp.concatenate([xy, jnp.broadcast_to(z, (*xy.shape[:-1], 1))], axis=-1)
    inverse = jnp.swapaxes(camera.rotation, -1, -2)[..., None, :, :]
    return _apply(inverse, points - camera.translation[..., None, :])


def _check_points(points, name: str) -> jax.Array:
    points = jnp.asarray(points)
    if points.ndim < 2 or points.shape[-1] != 3:
        raise ValueError(f"{name} must be (..., V, 3), got {points.shape}.")
    return points
