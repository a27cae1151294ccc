"""Turned and relit pictures: of the mesh, and of the generator beside it.

The outputs that only GAN2Shape has (Pan et al., ICLR 2021, Sec. 4): the shape is drawn
from elsewhere, or under another light, as a pseudo sample, and the generator answers
with a natural picture of it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from unsup3d_jax.data import tiles
from unsup3d_jax.formation.types import Conditions, Surface
from unsup3d_jax.gan2shape import losses
from unsup3d_jax.gan2shape.options import ShapeOptions
from unsup3d_jax.show import pictures, video

# Of the paper: faces; cars and churches turn by 45 at most.
YAWS_DEG = tuple(np.linspace(-70.0, 70.0, 9))
PITCHES_DEG = tuple(np.linspace(-20.0, 20.0, 5))
# Light: its direction (x, y, 1), and how much more diffuse it is, at the cost of
# ambient light.
LIGHT_X = (-1.5, -0.7, 0.0, 0.7, 1.5)
LIGHT_Y = (0.0, 0.6)
LIGHT_MORE = (0.3, 0.6)
AMBIENT_SHARE = -0.6

VIDEO_FRAMES = 48
_AT_A_TIME = 8  # pictures: one size, however many there are, compiles once
_VIDEO_SIDE = 256  # pixels, about; a whole multiple of the picture's size

# Pictures (b, h, w, 3) in [0, 1] -> what the generator makes of them, as many.
Answer = Callable[[Float[Array, "b h w 3"]], Float[Array, "b h w 3"]]


@dataclasses.dataclass(frozen=True)
class Views:
    """Pictures of one object from some views, or under some lights.

    Attributes:
        mesh: (n, h, w, 3) in [0, 1], black where there is no surface.
        generator: (n, h, w, 3) in [0, 1]; None without a generator.
    """

    mesh: Float[np.ndarray, "n h w 3"]
    generator: Float[np.ndarray, "n h w 3"] | None

    @property
    def rows(self) -> list[Float[np.ndarray, "n h w 3"]]:
        return [self.mesh] if self.generator is None else [self.mesh, self.generator]


def turned(axis: int, degrees: Sequence[float]) -> Float[np.ndarray, "n 6"]:
    """Viewpoints of the canonical object, turned about one axis.

    Args:
        axis: 0 pitch (+: the near side goes down), 1 yaw (+: to the left).
    """
    views = np.zeros((len(degrees), 6), np.float32)
    views[:, axis] = np.radians(degrees)
    return views


def relit(
    light: Float[np.ndarray, "5"], leans: Sequence[tuple[float, float, float]]
) -> Float[np.ndarray, "n 5"]:
    """Lights after an image's own.

    Args:
        light: ambient a, diffuse b, direction.
        leans: of each (x, y, r): direction (x, y, 1) made unit, diffuse b + r, ambient
            a - 0.6 r.
    """
    found = np.zeros((len(leans), 5), np.float32)
    for row, (x, y, more) in zip(found, leans, strict=True):
        row[0], row[1] = light[0] + AMBIENT_SHARE * more, light[1] + more
        row[2:] = np.array([x, y, 1.0]) / math.sqrt(x * x + y * y + 1.0)
    return found


def look(
    surface: Surface,
    view: Float[np.ndarray, "n 6"],
    light: Float[np.ndarray, "n 5"],
    options: ShapeOptions,
    answer: Answer | None,
) -> Views:
    """Draws one object, and asks the generator.

    Args:
        surface: of the one object, leading axes of 1.
        view, light: of each picture.
        options: static.
        answer: None: only the mesh is drawn.
    """
    meshes, answers = [], []
    for first in range(0, len(view), _AT_A_TIME):
        rows = np.minimum(np.arange(first, first + _AT_A_TIME), len(view) - 1)
        conditions = Conditions(
            light=jnp.asarray(light[rows]), view=jnp.asarray(view[rows])
        )
        drawn, valid = _drawn(surface, conditions, options)
        shown = np.clip(np.asarray(drawn), 0.0, 1.0)
        meshes.append(pictures.masked_picture(shown, valid))
        if answer is not None:
            answers.append(np.clip(np.asarray(answer(drawn)), 0.0, 1.0))
    mesh = np.concatenate(meshes)[: len(view)]
    return Views(mesh, np.concatenate(answers)[: len(view)] if answers else None)


@functools.partial(jax.jit, static_argnames="options")
def _drawn(
    surface: Surface, conditions: Conditions, options: ShapeOptions
) -> tuple[Array, Array]:
    warped = losses.render(surface, conditions, options).warped
    return warped.image, warped.valid


def write(
    folder: Path,
    surface: Surface,
    view: Float[np.ndarray, "6"],
    light: Float[np.ndarray, "5"],
    options: ShapeOptions,
    answer: Answer | None,
    *,
    most_yaw_deg: float = 70.0,
) -> None:
    """Writes rotations.png, pitches.png, relights.png, and two videos.

    In the pictures the mesh's row stands above the generator's; in rotation.mp4 and
    relighting.mp4 the mesh is on the left. Rotations are of the canonical object under
    the image's light, lights are seen from the image's view.

    Args:
        folder: exists; files of the same names are replaced.
        surface: leading axes of 1.
        view, light: of the image.
        answer: None: without the generator.
        most_yaw_deg: to either side.
    """

    def from_views(views: Float[np.ndarray, "n 6"]) -> Views:
        lights = np.repeat(light[None], len(views), axis=0)
        return look(surface, views, lights, options, answer)

    def under_lights(leans: Sequence[tuple[float, float, float]]) -> Views:
        lights = relit(light, leans)
        views = np.repeat(view[None], len(lights), axis=0)
        return look(surface, views, lights, options, answer)

    yaws = [degrees * most_yaw_deg / YAWS_DEG[-1] for degrees in YAWS_DEG]
    for name, axis, degrees in (("rotations", 1, yaws), ("pitches", 0, PITCHES_DEG)):
        seen = from_views(turned(axis, degrees))
        columns = {
            f"{angle:+.0f}°": np.stack([row[i] for row in seen.rows])
            for i, angle in enumerate(degrees)
        }
        _save(folder / f"{name}.png", pictures.labelled_rows(columns))
    seen = under_lights(
        [(x, y, r) for y in LIGHT_Y for r in LIGHT_MORE for x in LIGHT_X]
    )
    columns = {
        f"light x {x:+.1f}": np.stack(
            [
                row[k]
                for k in range(i, len(seen.mesh), len(LIGHT_X))
                for row in seen.rows
            ]
        )
        for i, x in enumerate(LIGHT_X)
    }
    _save(folder / "relights.png", pictures.labelled_rows(columns))

    phase = 2.0 * np.pi * np.arange(VIDEO_FRAMES) / VIDEO_FRAMES
    swing = from_views(turned(1, list(most_yaw_deg * np.sin(phase))))
    video.write_video(folder / "rotation.mp4", _frames(swing))
    circle = under_lights(
        [(float(np.cos(p)), 0.6 * float(np.sin(p)), 0.6) for p in phase]
    )
    video.write_video(folder / "relighting.mp4", _frames(circle))


def _save(path: Path, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    Image.fromarray(picture).save(path)


def _frames(seen: Views) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of each moment side by side, enlarged."""
    for shown in zip(*seen.rows, strict=True):
        wide = tiles.to_bytes(np.concatenate(shown, axis=1))
        height, width = wide.shape[:2]
        scale = max(1, _VIDEO_SIDE // height)
        size = (scale * width, scale * height)
        large = Image.fromarray(wide).resize(size, Image.Resampling.BICUBIC)
        yield np.asarray(large)


def answer_of(projection: Any, encoder: Any, shared: Any, own: Any) -> Answer | None:
    """What a projection's generator says; None if it has none.

    Args:
        encoder, own: of the one image.
    """
    if not hasattr(projection, "project_pictures"):
        return None
    return lambda images: _answered(images, encoder, shared, own, projection)


@functools.partial(jax.jit, static_argnames="projection")
def _answered(
    images: Array, encoder: Any, shared: Any, own: Any, projection: Any
) -> Array:
    return projection.project_pictures(encoder, images, shared, own)
