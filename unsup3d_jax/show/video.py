"""Videos of an object that is known by a depth map: turning, and under moving light.

Frames are numpy pictures, made one by one; `write_video` makes a file of them.
"""

import functools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

import rasterizer
from unsup3d_jax.formation import geometry, sampling
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import AnyArray

TURNTABLE_YAW_DEG = 50.0  # farther round there is nothing but the open back
TURNTABLE_FRAMES = 60
RELIGHT_FRAMES = 48
FRAMES_PER_SECOND = 20

_SIZE = 256  # pixels; a multiple of 16, which H.264 wants
_SAMPLES = 2  # per pixel and axis
_BACKGROUND = 0.11
# Light of the relighting video: its ambient and diffuse strength and how far
# its direction leans away from the optical axis (x, y over z).
_RELIGHT_AMBIENT, _RELIGHT_DIFFUSE, _RELIGHT_LEAN = 0.25, 0.85, 0.9
# Light of the grey "clay" pictures, fixed to the camera: from above left.
_CLAY_LIGHT = (0.35, 0.45, 1.0)


@functools.partial(jax.jit, static_argnames=("scene", "border_columns", "size"))
def render(
    maps: Float[AnyArray, "h w c"],
    depth: Float[AnyArray, "h w"],
    view: Float[AnyArray, "6"],
    scene: Scene,
    *,
    border_columns: int,
    size: int,
) -> tuple[Float[Array, "{size} {size} c"], Bool[Array, "{size} {size}"]]:
    """Draws canonical maps from a viewpoint, at any resolution.

    Unlike `reprojection.reproject` it draws the surface itself, without the
    clamped border, and looks colours up at the exact surface point.

    Args:
        maps: any maps on the canonical grid.
        depth: canonical, scene units.
        view: rotation (radians), translation (scene units).
        scene: camera; static.
        border_columns: at each side, clamped and not drawn; static.
        size: height and width of the picture, pixels; static.

    Returns:
        The maps as seen, and (size, size) bool where the surface is.
    """
    (h, w), cut = depth.shape, border_columns
    maps, depth, view = jnp.asarray(maps), jnp.asarray(depth), jnp.asarray(view)
    points = geometry.depth_to_points(depth, fov_deg=scene.fov_deg)
    points = geometry.transform(points, view, centre_depth=scene.centre_depth)
    pixels = geometry.project(points, (size, size), fov_deg=scene.fov_deg)
    vertices = jnp.concatenate([pixels, points[..., 2:]], axis=-1)
    faces = jnp.asarray(rasterizer.grid_faces(h, w - 2 * cut))
    fragments = rasterizer.rasterize(
        vertices[:, cut : w - cut].reshape(-1, 3), faces, (size, size)
    )
    u, v = jnp.meshgrid(
        jnp.arange(w, dtype=depth.dtype), jnp.arange(h, dtype=depth.dtype)
    )
    places = jnp.stack([u, v], axis=-1)[:, cut : w - cut].reshape(-1, 2)
    where = rasterizer.interpolate(places, faces, fragments)
    seen = sampling.sample_bilinear(maps[None], where[None])[0]
    return seen, fragments.face_index >= 0


def turntable_frames(
    image: Float[AnyArray, "h w 3"],
    normal: Float[AnyArray, "h w 3"],
    depth: Float[AnyArray, "h w"],
    scene: Scene,
    *,
    border_columns: int,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The canonical object swinging to both sides; beside it the bare shape.

    Args:
        image: canonical, nominally [0, 1].
        normal: canonical, unit, pointing away from the camera.
        depth: canonical, scene units.
        scene: camera.
        border_columns: at each side, clamped and not drawn.
    """
    for step in range(TURNTABLE_FRAMES):
        yaw = TURNTABLE_YAW_DEG * np.sin(2 * np.pi * step / TURNTABLE_FRAMES)
        view = np.array([0, np.radians(yaw), 0, 0, 0, 0], np.float32)
        yield np.asarray(
            _turntable_frame(image, normal, depth, view, scene, border_columns)
        )


@functools.partial(jax.jit, static_argnames=("scene", "border_columns"))
def _turntable_frame(
    image: Array,
    normal: Array,
    depth: Array,
    view: Array,
    scene: Scene,
    border_columns: int,
) -> UInt8[Array, "H W 3"]:
    maps = jnp.concatenate([image, normal], axis=-1)
    size = _SIZE * _SAMPLES
    seen, covered = render(
        maps, depth, view, scene, border_columns=border_columns, size=size
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
    *,
    border_columns: int,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The object as the input shows it, under a light that moves in a circle.

    Beside it the shading alone.

    Args:
        albedo: canonical, [0, 1].
        normal, depth, scene, border_columns: as of `turntable_frames`.
        view: rotation (radians), translation (scene units).
    """
    maps = np.concatenate([albedo, normal], axis=-1)
    size = _SIZE * _SAMPLES
    seen, covered = render(
        maps, depth, view, scene, border_columns=border_columns, size=size
    )
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
        RuntimeError: with ffmpeg's own words, if it fails.
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
        message = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"ffmpeg could not write {path}: {message}")
