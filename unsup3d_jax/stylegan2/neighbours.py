"""Whether samples are copies of training images: distances to the nearest one."""

import numpy as np
from jaxtyping import Float, UInt8

_QUANTILE = 0.01
_AT_ONCE = 256


def nearest(
    images: UInt8[np.ndarray, "n h w 3"], training: UInt8[np.ndarray, "m h w 3"]
) -> Float[np.ndarray, " n"]:
    """Root mean square difference to the nearest training image; signed units.

    Mirror images count, as training mirrors.
    """
    _, h, w, _ = training.shape
    return np.minimum(
        _nearest(images, training), _nearest(images[:, :, ::-1], training)
    ) / np.sqrt(3.0 * h * w)


def _nearest(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    def flat(some: np.ndarray) -> np.ndarray:
        return some.reshape(len(some), -1).astype(np.float32) / 127.5 - 1.0

    ours = flat(images)
    best = np.full(len(ours), np.inf)
    for start in range(0, len(training), _AT_ONCE):
        theirs = flat(training[start : start + _AT_ONCE])
        squared = np.square(theirs).sum(1) - 2.0 * ours @ theirs.T
        best = np.minimum(best, squared.min(1))
    # Rounding may leave a copy's distance just below 0.
    return np.sqrt(np.maximum(best + np.square(ours).sum(1), 0.0))


def memory(
    samples: Float[np.ndarray, " n"], held_out: Float[np.ndarray, " m"]
) -> dict[str, float]:
    """Says whether samples lie nearer to the training set than new people do.

    Args:
        samples, held_out: of `nearest`.

    Returns:
        Medians, and "copies": the share of samples nearer than all but one in a
        hundred of the held-out images, 0.01 for a generator that has learnt no image
        by heart.
    """
    close = np.quantile(held_out, _QUANTILE)
    return {
        "samples": float(np.median(samples)),
        "held_out": float(np.median(held_out)),
        "copies": float(np.mean(samples < close)),
    }
