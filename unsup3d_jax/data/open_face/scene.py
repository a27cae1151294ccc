"""What surrounds a face: pose, light, backdrop; drawn with numpy from seeds.

Camera frame of the project: x right, y down, z forward, metres. A head of the
model (x to the subject's left, y up, z out of the face) enters it as
(x, -y, -z) * scale + (0, 0, 1), turns about (0, 0, 1) by R = Rz Ry Rx and moves
by t. Yaw > 0 turns the nose to the image's left, pitch > 0 down, roll > 0
clockwise.

The camera is `formation.geometry`'s, which says the same in JAX and float32. What
is drawn here must be the same bits on every machine, since faces are cached and
scores hang on them: so numpy, float64, and R as a product of three matrices. A
test holds the two together.
"""

from typing import NamedTuple

import numpy as np

from unsup3d_jax.data.open_face.model import Draws, Seeds

FOV_DEG = 10.0
CENTRE_DEPTH = 1.0  # of the point that heads turn about, on the optical axis
POSES = ("natural", "mixed")
DEPTH_RANGE = (0.9, 1.1)
POSE_ATTEMPTS = 12
POSE_DRAWS = 15  # numbers an attempt uses
NUM_BACKDROP_COLORS = 3


class Scene(NamedTuple):
    """n scenes, or one; float32."""

    view: np.ndarray  # (n, 6) pitch, yaw, roll (radians), tx, ty, tz (metres)
    scale: np.ndarray  # (n,)
    light: np.ndarray  # (n, 5) ambient, diffuse, unit direction of travel
    backdrop: "Backdrop"


class Backdrop(NamedTuple):
    """A picture behind the face, over coordinates in [-1, 1]."""

    colors: np.ndarray  # (3, 3)
    weights: np.ndarray  # (5,) of gradient, fractal, color noise, stripes, blobs
    direction: np.ndarray  # (2,) unit, of gradient and stripes
    frequency: np.ndarray  # of the stripes
    warp: np.ndarray  # of the stripes by noise
    zoom: np.ndarray  # of the noise
    offset: np.ndarray  # (3,) into the noise table
    tint: np.ndarray  # amplitude of color noise
    grain: np.ndarray  # amplitude of noise at every pixel


def rotation(view: np.ndarray) -> np.ndarray:
    """R = Rz Ry Rx of views (n, 6): (n, 3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(view[:, :3]).T, np.sin(view[:, :3]).T
    zero, one = np.zeros_like(cx), np.ones_like(cx)

    def matrix(*entries):
        return np.stack(entries, axis=-1).reshape(-1, 3, 3)

    rx = matrix(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    ry = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    rz = matrix(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    return rz @ ry @ rx


def sample_scenes(
    seeds: Seeds, vertices: np.ndarray, normals: np.ndarray, *, pose: str
) -> Scene:
    """Draws a scene for each head, with all that the camera sees in DEPTH_RANGE.

    Args:
        seeds: of n pictures.
        vertices: (n, v, 3) heads in the model's frame, metres.
        normals: (n, v, 3) outward.
        pose: "natural" or "mixed".

    Returns:
        For each head the first of a few poses that fits.
    """
    if pose not in POSES:
        raise ValueError(f"pose must be one of {POSES}, got {pose!r}.")
    draws = Draws(seeds.pose, "pose", POSE_ATTEMPTS * POSE_DRAWS)
    count = len(seeds.pose)
    view, scale = np.zeros((count, 6)), np.full(count, 0.92)
    todo = np.arange(count)
    for _ in range(POSE_ATTEMPTS):
        new_view, new_scale = sample_pose(draws, pose)
        view[todo], scale[todo] = new_view[todo], new_scale[todo]
        fits = _fits(vertices[todo], normals[todo], view[todo], scale[todo])
        todo = todo[~fits]
        if not len(todo):
            break
    return Scene(
        view=view.astype(np.float32),
        scale=scale.astype(np.float32),
        light=sample_light(seeds.light),
        backdrop=_sample_backdrop(seeds.backdrop),
    )


def _fits(vertices, normals, view, scale) -> np.ndarray:
    """Whether the vertices turned to the camera, in the frame, are in DEPTH_RANGE."""
    turn = rotation(view) * [1, -1, -1]
    turn = np.swapaxes(turn, 1, 2).astype(np.float32)
    camera = (vertices @ turn) * scale[:, None, None].astype(np.float32)
    x, y, z = np.moveaxis(camera + view[:, None, 3:].astype(np.float32), -1, 0)
    z = z + CENTRE_DEPTH
    half = np.tan(np.radians(FOV_DEG / 2)) * 1.03
    facing = (normals @ turn[:, :, 2:])[..., 0] < 0.2  # a margin for silhouettes
    seen = facing & (np.maximum(np.abs(x), np.abs(y)) < half * z)
    low, high = DEPTH_RANGE
    return ~(seen & ((z < low + 5e-4) | (z > high - 5e-4))).any(1)


def sample_pose(draws: Draws, pose: str) -> tuple[np.ndarray, np.ndarray]:
    """Views (n, 6) and scales (n,), before it is seen whether they fit."""
    narrow, wide = draws.normal(0.0, 1.0), draws.uniform(-60.0, 60.0)
    is_wide = draws.chance(0.4)
    mixed = np.where(is_wide, wide, 28.0 * narrow)
    yaw = (20.0 * narrow if pose == "natural" else mixed).clip(-60.0, 60.0)
    pitch = draws.normal(0.0, 9.0).clip(-20.0, 20.0)
    roll = draws.normal(0.0, 8.0).clip(-20.0, 20.0)
    scale = draws.uniform(0.86, 0.99)
    shift = draws.uniform(-1.0, 1.0, 3) * [0.004, 0.004, 0.010] + [0.0, -0.004, 0.0]
    turn = np.radians(np.stack([pitch, yaw, roll], axis=1))
    return np.concatenate([turn, shift], axis=1), scale


def sample_light(seeds: np.ndarray) -> np.ndarray:
    """Lights (n, 5): ambient, diffuse, unit direction of travel."""
    draws = Draws(seeds, "light", 10)
    ambient = draws.uniform(0.3, 0.75)
    diffuse = np.minimum(draws.uniform(0.35, 0.9), 1.2 - ambient)  # else it clips
    direction = np.stack(
        [
            draws.uniform(-1.0, 1.0),
            0.15 + draws.uniform(-0.8, 0.8),  # y down: on average from above
            np.ones(len(seeds)),
        ],
        axis=1,
    )
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    light = np.concatenate([ambient[:, None], diffuse[:, None], direction], axis=1)
    return light.astype(np.float32)


def _sample_backdrop(seeds: np.ndarray) -> Backdrop:
    n = len(seeds)
    draws = Draws(seeds, "backdrop", 40)
    colors = draws.uniform(0.05, 0.9, 3 * NUM_BACKDROP_COLORS).reshape(n, -1, 3)
    grey = colors.mean(-1, keepdims=True)
    saturation = draws.uniform(0.1, 0.5)
    colors = grey + saturation[:, None, None] * (colors - grey)
    kind = np.searchsorted([0.15, 0.5, 0.75, 0.9], draws.unit(), side="right")
    angle = draws.uniform(0.0, 2 * np.pi)
    values = Backdrop(
        colors=colors,
        weights=np.eye(5)[kind],
        direction=np.stack([np.cos(angle), np.sin(angle)], axis=1),
        frequency=draws.uniform(5.0, 18.0),
        warp=draws.uniform(0.0, 2.5),
        zoom=np.exp(draws.uniform(np.log(0.7), np.log(3.0))),
        offset=draws.uniform(0.0, 32.0, 3),
        tint=saturation,
        grain=draws.chance(0.5) * draws.uniform(0.0, 0.08),
    )
    return Backdrop(*(np.asarray(v, np.float32) for v in values))
