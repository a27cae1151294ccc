"""Reads viewpoint and light off an image, to see whether samples have them.

The ruler is a ridge regression from 16 x 16 pixels of faces before a plain background
to what they were rendered with. It reads real and made images alike; how good it is is
said by its R^2 on real ones that it has not seen.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

NAMES = ("yaw", "pitch", "roll", "light_x", "light_y")
_SIZE = 16  # pixels a side
_HELD = 5  # one of so many examples chooses the penalty
_PENALTIES = 10.0 ** np.arange(-6.0, 1.0)  # over the features' mean variance


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """y = (x - middle) @ slope + level.

    Attributes:
        penalty: chosen; over the mean variance of x.
    """

    middle: Float[np.ndarray, " p"]
    slope: Float[np.ndarray, "p k"]
    level: Float[np.ndarray, " k"]
    penalty: float

    def __call__(self, x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n k"]:
        return (np.asarray(x, np.float64) - self.middle) @ self.slope + self.level


def pixels(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n p"]:
    """16 x 16 means of an image in [0, 1]; smaller images as they are.

    Raises:
        ValueError: if the images are no square of 2^k px.
    """
    n, h, w, _ = images.shape
    if h != w or h & (h - 1):
        raise ValueError(f"images must be squares of 2^k px, got {h} x {w}.")
    cell = max(h // _SIZE, 1)
    small = images.reshape(n, h // cell, cell, w // cell, cell, 3).mean((2, 4))
    return small.reshape(n, -1) / 255.0


def truth(
    view: Float[np.ndarray, "n 6"], light: Float[np.ndarray, "n 5"]
) -> Float[np.ndarray, "n 5"]:
    """What the ruler reads: degrees, and the light's direction x and y.

    Args:
        view: pitch, yaw, roll in radians, and a translation.
        light: ambient, diffuse and the direction to the light.
    """
    pitch, yaw, roll = np.degrees(np.asarray(view, np.float64)[:, :3]).T
    direction = np.asarray(light, np.float64)[:, 2:4]
    return np.column_stack([yaw, pitch, roll, direction])


def fit(x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n k"]) -> Linear:
    """Ridge regression, float64; a fifth of the examples chooses the penalty."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    held = np.arange(len(x)) % _HELD == 0
    found = _ridge(x[~held], y[~held], _PENALTIES)
    scores = [r2(model(x[held]), y[held]).mean() for model in found]
    (best,) = _ridge(x, y, _PENALTIES[[int(np.argmax(scores))]])
    return best


def _ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> list[Linear]:
    middle, level = x.mean(0), y.mean(0)
    x, y = x - middle, y - level
    values, vectors = np.linalg.eigh(x.T @ x)
    turned, unit = vectors.T @ (x.T @ y), max(values.mean(), 1e-30)
    return [
        Linear(
            middle=middle,
            slope=vectors @ (turned / (values + penalty * unit)[:, None]),
            level=level,
            penalty=float(penalty),
        )
        for penalty in penalties
    ]


def r2(
    found: Float[np.ndarray, "n k"], true: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """1 - squared error over variance, of each column; 0 where nothing varies."""
    error = np.mean(np.square(found - true), axis=0)
    variance = np.var(true, axis=0)
    return np.where(variance > 0, 1.0 - error / np.maximum(variance, 1e-30), 0.0)


def linear_in(
    w: Float[np.ndarray, "n s"], readings: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """Held-out R^2 of readings from latents by a straight line; the last quarter."""
    cut = len(w) * 3 // 4
    model = fit(w[:cut], readings[:cut])
    return r2(model(np.asarray(w[cut:])), np.asarray(readings[cut:]))
