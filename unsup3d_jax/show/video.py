"""Videos of an object that is known by a depth map: turning, and under moving light.

Frames are numpy pictures, made one by one; `write_video` makes a file of them.
"""

import errno
import functools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

import unsup3d_jax.rasterizer as rasterizer
from unsup3d_jax.formation import geometry, sampling
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.show.foreground import Part

TURNTABLE_YAW_DEG = 50.0  # farther round there is nothing but the open back
TURNTABLE_FRAMES = 60
RELIGHT_FRAMES = 48
FRAMES_PER_SECOND = 20

_SIZE = 256  # pixels; a multiple of 16, which H.264 wants
_SAMPLES = 2  # per pixel and axis
_BACKGROUND = 0.11
_FRAMED_YAWS = 21  # every 5 degrees: between them nothing leaves the margin
_MARGIN = 0.03  # of the picture's side, around the turning object
# Light of the relighting video: its ambient and diffuse strength and how far
# its direction leans away from the optical axis (x, y over z).
_RELIGHT_AMBIENT, _RELIGHT_DIFFUSE, _RELIGHT_LEAN = 0.25, 0.85, 0.9
# Light of the grey "clay" pictures, fixed to the camera: from above left.
_CLAY_LIGHT = (0.35, 0.45, 1.0)


@functools.partial(jax.jit, static_argnames=("scene", "size"))
def render(
    maps: Float[AnyArray, "h w c"],
    depth: Float[AnyArray, "h w"],
    view: Float[AnyArray, "6"],
    scene: Scene,
    *,
    part: Part,
    size: int,
    frame: Float[AnyArray, "3"] | None = None,
) -> tuple[Float[Array, "{size} {size} c"], Bool[Array, "{size} {size}"]]:
    """Draws canonical maps from a viewpoint, at any resolution.

    Unlike `reprojection.reproject` it draws the surface itself, a part of it,
    and looks colours up at the exact surface point.

    Args:
        maps: any maps on the canonical grid.
        depth: canonical, scene units.
        view: rotation (radians), translation (scene units).
        scene: camera; static.
        part: what of the maps is drawn.
        size: height and width of the picture, pixels; static.
        frame: of `turntable_frame`; None: the picture shows what the camera sees.

    Returns:
        The maps as seen, and (size, size) bool where the surface is.
    """
    h, w = depth.shape
    maps, depth, view = jnp.asarray(maps), jnp.asarray(depth), jnp.asarray(view)
    points = geometry.depth_to_points(depth, fov_deg=scene.fov_deg)
    points = jnp.asarray(part.place(points))
    points = geometry.transform(points, view, centre_depth=scene.centre_depth)
    pixels = geometry.project(points, (size, size), fov_deg=scene.fov_deg)
    if frame is not None:
        pixels = (pixels - frame[:2] * (size - 1)) * frame[2] + (size - 1) / 2.0
    vertices = jnp.concatenate([pixels, points[..., 2:]], axis=-1).reshape(-1, 3)
    # A face without an area is not drawn; leaving it out would compile anew for each
    # object.
    drawn = jnp.tile(jnp.asarray(part.cells).ravel(), 2)
    faces = jnp.where(drawn[:, None], jnp.asarray(rasterizer.grid_faces(h, w)), 0)
    fragments = rasterizer.rasterize(vertices, faces, (size, size))
    u, v = jnp.meshgrid(
        jnp.arange(w, dtype=depth.dtype), jnp.arange(h, dtype=depth.dtype)
    )
    places = jnp.asarray(part.place(jnp.stack([u, v], axis=-1))).reshape(-1, 2)
    where = rasterizer.interpolate(places, faces, fragments)
    seen = sampling.sample_bilinear(maps[None], where[None])[0]
    return seen, fragments.face_index >= 0


def turntable_frame(
    depth: Float[AnyArray, "h w"], scene: Scene, part: Part
) -> Float[np.ndarray, "3"]:
    """What the turntable's pictures show: all of the object at every yaw.

    Args:
        depth: canonical, scene units.
        scene: camera.
        part: what is drawn.

    Returns:
        Centre (x, y), as shares of the camera's picture, and magnification, at most 1:
        an object that the camera has in sight all the way round is shown as seen.
    """
    views = np.zeros((_FRAMED_YAWS, 6), np.float32)
    most_yaw = np.radians(TURNTABLE_YAW_DEG)
    views[:, 1] = np.linspace(-most_yaw, most_yaw, _FRAMED_YAWS)
    shares = np.asarray(_places(jnp.asarray(depth), part, views, scene))
    shares = shares[:, part.vertices()]
    shares = shares.reshape(-1, 2)
    least, most = shares.min(axis=0), shares.max(axis=0)
    room = 1.0 - 2.0 * _MARGIN
    if least.min() >= _MARGIN and most.max() <= 1.0 - _MARGIN:
        return np.array([0.5, 0.5, 1.0], np.float32)
    zoom = min(1.0, room / (most - least).max())
    return np.array([*(least + most) / 2.0, zoom], np.float32)


@functools.partial(jax.jit, static_argnames="scene")
def _places(
    depth: Float[Array, "h w"], part: Part, views: Float[Array, "n 6"], scene: Scene
) -> Float[Array, "n h w 2"]:
    """Where each pixel is seen from some viewpoints, as shares of the picture."""
    points = geometry.depth_to_points(depth, fov_deg=scene.fov_deg)
    points = jnp.asarray(part.place(points))

    def place(view: Array) -> Array:
        moved = geometry.transform(points, view, centre_depth=scene.centre_depth)
        # Of two by two pixels, whose centres are 0 and 1.
        return geometry.project(moved, (2, 2), fov_deg=scene.fov_deg)

    return jax.vmap(place)(views)


def turntable_frames(
    image: Float[AnyArray, "h w 3"],
    normal: Float[AnyArray, "h w 3"],
    depth: Float[AnyArray, "h w"],
    scene: Scene,
    part: Part,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The canonical object swinging to both sides; beside it the bare shape.

    Args:
        image: canonical, nominally [0, 1].
        normal: canonical, unit, pointing away from the camera.
        depth: canonical, scene units.
        scene: camera.
        part: what of them is drawn.
    """
    frame = turntable_frame(depth, scene, part)
    for step in range(TURNTABLE_FRAMES):
        yaw = TURNTABLE_YAW_DEG * np.sin(2 * np.pi * step / TURNTABLE_FRAMES)
        view = np.array([0, np.radians(yaw), 0, 0, 0, 0], np.float32)
        yield np.asarray(
            _turntable_picture(image, normal, depth, view, scene, part, frame)
        )


@functools.partial(jax.jit, static_argnames="scene")
def _turntable_picture(
    image: Array,
    normal: Array,
    depth: Array,
    view: Array,
    scene: Scene,
    part: Part,
    frame: Array,
) -> UInt8[Array, "H W 3"]:
    maps = jnp.concatenate([image, normal], axis=-1)
    seen, covered = render(
        maps, depth, view, scene, part=part, size=_SIZE * _SAMPLES, frame=frame
    )
    # The clay's light stays with the camera, so its normals turn.
    rotation = geometry.rotation_matrix(view[:3])
    turned = jnp.sum(seen[..., None, 3:] * rotation, axis=-1)
    diffuse = jnp.maximum(0.0, jnp.sum(_unit(turned) * _unit(_CLAY_LIGHT), axis=-1))
    return _frame(seen[..., :3], _grey(0.1 + 0.75 * diffuse), covered)


def relight_frames(
    albedo: Float[AnyArray, "h w 3"],
    normal: Float[AnyArray, "h w 3"],
    depth: Float[AnyArray, "h w"],
    view: Float[AnyArray, "6"],
    scene: Scene,
    part: Part,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The object as the input shows it, under a light that moves in a circle.

    Beside it the shading alone.

    Args:
        albedo: canonical, [0, 1].
        normal, depth, scene, part: as of `turntable_frames`.
        view: rotation (radians), translation (scene units).
    """
    maps = np.concatenate([albedo, normal], axis=-1)
    size = _SIZE * _SAMPLES
    seen, covered = render(maps, depth, view, scene, part=part, size=size)
    for step in range(RELIGHT_FRAMES):
        angle = 2 * np.pi * step / RELIGHT_FRAMES
        lean = _RELIGHT_LEAN * np.array([np.cos(angle), np.sin(angle)])
        direction = np.array([*lean, 1.0], np.float32)
        yield np.asarray(_relight_frame(seen, covered, direction))


@jax.jit
def _relight_frame(
    seen: Array, covered: Array, direction: Array
) -> UInt8[Array, "H W 3"]:
    normal = _unit(seen[..., 3:])
    diffuse = jnp.maximum(0.0, jnp.sum(normal * _unit(direction), axis=-1))
    shading = _grey(_RELIGHT_AMBIENT + _RELIGHT_DIFFUSE * diffuse)
    return _frame(seen[..., :3] * shading, 0.8 * shading, covered)


def _unit(vector) -> Array:
    vector = jnp.asarray(vector, jnp.float32)
    # Zero vectors occur only where nothing is drawn.
    norm = jnp.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / jnp.maximum(norm, 1e-6)


def _grey(value: Array) -> Array:
    return jnp.repeat(value[..., None], 3, axis=-1)


def _frame(left: Array, right: Array, covered: Array) -> UInt8[Array, "H W 3"]:
    """Two pictures of samples side by side: background, pixel means, 8 bits."""
    shown = [
        jnp.where(covered[..., None], jnp.clip(side, 0.0, 1.0), _BACKGROUND)
        for side in (left, right)
    ]
    wide = jnp.concatenate(shown, axis=1)
    h, w, c = wide.shape
    n = _SAMPLES
    mean = wide.reshape(h // n, n, w // n, n, c).mean((1, 3))
    return jnp.round(255.0 * mean).astype(jnp.uint8)


def write_video(path: str | Path, frames: Iterable[np.ndarray]) -> None:
    """Writes H.264 in the pixel format that every player knows.

    Args:
        path: an .mp4 file.
        frames: uint8 (H, W, 3) of one size, sides even.

    Raises:
        OSError: with ffmpeg's own words, if it fails: a disk may be full.
    """
    pixels = np.stack(list(frames))
    height, width = pixels.shape[1:3]
    # imageio's writer forks with a Python hook, which JAX's threads forbid;
    # plain arguments let the standard library spawn without running Python.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(FRAMES_PER_SECOND), "-i", "-", "-an"]
    command += ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", str(path)]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True)
    if done.returncode != 0:
        message = " ".join(done.stderr.decode(errors="replace").split())
        raise OSError(errno.EIO, f"ffmpeg could not write it: {message}", str(path))
