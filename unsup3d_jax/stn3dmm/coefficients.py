"""What a mirror makes of a face's coefficients."""

import numpy as np
from jaxtyping import Float, Float32, Int

# A mirrored column may be off by so much of the basis' own size, rms, before the
# model counts as one that cannot mirror its faces.
_TOLERANCE = 0.1


def mirror_of_columns(
    basis: Float[np.ndarray, "d n 3"], mirror: Int[np.ndarray, " n"] | None
) -> Float32[np.ndarray, "d d"] | None:
    """M with: the mirror image of basis . alpha is basis . (M @ alpha).

    By least squares, since the mirror image of a column need not lie in their span.

    Returns:
        None without a mirror, or where the columns come back wrong by more than a
        tenth of their size (rms over all).
    """
    if mirror is None:
        return None
    if not len(basis):
        return np.zeros((0, 0), np.float32)
    columns = basis.reshape(len(basis), -1).astype(np.float64)
    mirrored = basis[:, mirror].astype(np.float64) * [-1.0, 1.0, 1.0]
    mirrored = mirrored.reshape(len(basis), -1)
    # d is small beside n: solved by the normal equations of unit columns.
    size = np.maximum(np.linalg.norm(columns, axis=1), np.finfo(np.float64).tiny)
    unit = columns / size[:, None]
    found = np.linalg.lstsq(unit @ unit.T, unit @ mirrored.T, rcond=1e-12)[0]
    left = np.linalg.norm(found.T @ unit - mirrored) / np.linalg.norm(size)
    if left > _TOLERANCE:
        return None
    return (found / size[:, None]).astype(np.float32)
