"""Which views and lights pseudo samples have (Pan et al., ICLR 2021, Sec. 3.2).

Views are drawn from a normal distribution, with the mean and covariance that an
unsup3d run finds in its category; lights are uniform. "Raw" is what V and L give:
`formation.heads` says what becomes of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Key

from unsup3d_jax.errors import UserError
from unsup3d_jax.files import write_atomically
from unsup3d_jax.formation import heads
from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.gan2shape.options import LightRange

SHIPPED = Path(__file__).with_name("open_faces_statistics.json")
_SIZES = {"view": 6, "light": 4}


@struct.dataclass
class Statistics:
    """Of the raw views and lights of a category.

    Attributes:
        view_mean, light_mean: raw; what V and L say is added to them.
        view_root: symmetric root of the views' covariance, raw.
    """

    view_mean: Float[Leaf, "6"]
    view_root: Float[Leaf, "6 6"]
    light_mean: Float[Leaf, "4"]


def sample_views(
    key: Key[Array, ""],
    count: int,
    statistics: Statistics,
    *,
    reach: heads.ViewReach,
    yaw_scale: float,
) -> Float[Array, "n 6"]:
    """Views N(mean, covariance), whose yaw, mean included, is scaled.

    Args:
        count, reach, yaw_scale: static.

    Returns:
        Rotation (radians), translation (scene units).
    """
    normal = jax.random.normal(key, (count, 6))
    raw = jnp.sum(normal[:, None, :] * statistics.view_root, axis=-1)
    raw = (raw + statistics.view_mean) * jnp.ones(6).at[1].set(yaw_scale)
    return heads.view_from_raw(raw, reach)


def sample_lights(
    key: Key[Array, ""],
    count: int,
    light: Float[AnyArray, "5"],
    limits: LightRange,
) -> Float[Array, "n 5"]:
    """Lights from a uniform direction, whose diffuse part grows as ambient falls.

    Args:
        count, limits: static.
        light: of the image: ambient a and diffuse b.

    Returns:
        Ambient a + share r, diffuse b + r, unit direction (x, y, 1) / |.|.
    """
    keys = jax.random.split(key, 3)
    x, y, more = (
        jax.random.uniform(k, (count,), minval=low, maxval=high)
        for k, (low, high) in zip(
            keys, (limits.x, limits.y, limits.diffuse), strict=True
        )
    )
    direction = jnp.stack([x, y, jnp.ones(count)], axis=1)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    strengths = jnp.stack(
        [light[0] + limits.ambient_share * more, light[1] + more], axis=1
    )
    return jnp.concatenate([strengths, direction], axis=1)


def from_moments(stored: Mapping[str, Any]) -> Statistics:
    """Statistics of "view_mean", "view_covariance" and "light_mean".

    Raises:
        ValueError: if the covariance is none.
    """
    covariance = np.asarray(stored["view_covariance"], np.float64)
    values, vectors = np.linalg.eigh(covariance)
    if not np.allclose(covariance, covariance.T) or values.min() < -1e-6:
        raise ValueError("view_covariance is not symmetric and positive.")
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    return Statistics(
        view_mean=jnp.asarray(stored["view_mean"], jnp.float32),
        view_root=jnp.asarray(root, jnp.float32),
        light_mean=jnp.asarray(stored["light_mean"], jnp.float32),
    )


def moments(
    raw_view: Float[np.ndarray, "n 6"], raw_light: Float[np.ndarray, "n 4"]
) -> dict[str, Any]:
    """Means and covariances of raw views and lights, JSON-able."""
    found: dict[str, Any] = {"images": len(raw_view)}
    for name, values in (("view", raw_view), ("light", raw_light)):
        wide = np.asarray(values, np.float64)
        found[f"{name}_mean"] = wide.mean(0).round(6).tolist()
        found[f"{name}_covariance"] = np.cov(wide.T).round(8).tolist()
    return found


def write(path: Path, found: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Writes `moments` with where they are from.

    Raises:
        OSError: if it cannot be written.
    """
    content = {"provenance": dict(provenance), **found}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def load(path: str) -> Statistics:
    """Reads what `write` has written; "": the statistics that ship.

    Raises:
        UserError: if the file is not there, or holds something else.
    """
    file = Path(path).expanduser() if path else SHIPPED
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        for name, size in _SIZES.items():
            shapes = {"mean": (size,), "covariance": (size, size)}
            for kind, shape in shapes.items():
                found = np.asarray(stored[f"{name}_{kind}"], np.float64).shape
                if found != shape:
                    raise ValueError(f"{name}_{kind} has shape {found}, not {shape}")
        return from_moments(stored)
    except OSError as error:
        raise UserError(
            f"sampling.statistics: cannot read {file} ({error.strerror}); leave it "
            "empty for the statistics that ship."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"sampling.statistics: {file} holds no statistics of views and lights "
            f"({error}); make them by python -m unsup3d_jax.gan2shape.statistics."
        ) from None
