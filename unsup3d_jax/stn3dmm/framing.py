"""Where the camera stands, so that the mean face fills the image."""

import numpy as np

from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.types import GridModel

_ROUNDS = 100  # each leaves a tenth of the error, for a perspective of a face
_EXACT = 1e-12


def default_camera(
    grid: GridModel, *, fill: float = 0.75, perspective: float = 0.0
) -> Camera:
    """The camera in which the mean face at theta = 0 is centred and fills the image.

    Args:
        grid: the model.
        fill: the larger side of the mean face's box, of the image's side.
        perspective: tan(fov / 2); 0: scaled orthographic.

    Raises:
        ValueError: if a number is out of range, or the face is flat or too near.
    """
    if not 0.0 < fill <= 1.0 or not 0.0 <= perspective < 1.0:
        raise ValueError(
            "a camera needs 0 < fill <= 1 and 0 <= perspective < 1, got "
            f"fill={fill}, perspective={perspective}."
        )
    mean = np.asarray(grid.mean, np.float64)
    plane, depth = mean[:, :2], mean[:, 2]
    extent = float(np.ptp(plane, axis=0).max())
    if not extent > 0.0:
        raise ValueError("the mean face has no extent.")
    scale, offset = 2.0 * fill / extent, np.zeros(2)
    # In perspective the box depends on scale and offset, nearly linearly.
    for _ in range(_ROUNDS):
        nearness = 1.0 - perspective * scale * depth
        if nearness.min() <= 0.0:
            raise ValueError(f"perspective={perspective} puts the face behind the eye.")
        shown = (scale * plane + offset) / nearness[:, None]
        low, high = shown.min(0), shown.max(0)
        grow = 2.0 * fill / float((high - low).max())
        middle = 0.5 * (low + high)
        scale, offset = scale * grow, offset * grow - middle
        if abs(grow - 1.0) < _EXACT and np.abs(middle).max() < _EXACT:
            break
    return Camera(float(scale), (float(offset[0]), float(offset[1])), perspective)
