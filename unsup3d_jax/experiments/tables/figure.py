"""The figure of a table: input, and each trained row's shape and albedo (Fig. 9)."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.show import pictures

_CLAY_YAW_DEG = 25.0  # the figure turns shapes, so that flat ones show


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A trained row, as the figure shows it.

    Attributes:
        name: of the row.
        images: what its first seed is shown on.
        shape: of `clay`.
        albedo: canonical, in [0, 1]; None for a model that predicts depth alone.
        perturbed: whether the images wear patches.
    """

    name: str
    images: UInt8[np.ndarray, "n h w 3"]
    shape: Float[AnyArray, "n h w 3"]
    albedo: Float[AnyArray, "n h w 3"] | None
    perturbed: bool


def draw(exhibits: Iterable[Exhibit]) -> UInt8[np.ndarray, "H W 3"] | None:
    """Input, and shape and albedo of each row, as Fig. 9; None if there is no row.

    Rows on the same images share the column that shows them.
    """
    columns: dict[str, np.ndarray] = {}
    for row in exhibits:
        columns.setdefault("perturbed" if row.perturbed else "input", row.images)
        name = row.name.replace("_", " ")
        columns[name] = np.asarray(row.shape)
        if row.albedo is not None:
            columns[f"{name} albedo"] = np.asarray(row.albedo)
    return sheet(columns) if columns else None


def sheet(columns: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "H W 3"]:
    """Columns of equally large pictures, uint8 or in [0, 1], under their names."""
    scaled = {
        name: np.asarray(p, np.float32) / (255.0 if p.dtype == np.uint8 else 1.0)
        for name, p in columns.items()
    }
    return pictures.labelled_rows(scaled)


@functools.partial(jax.jit, static_argnames="scene")
def clay(depth: Float[Array, "b h w"], scene: Scene) -> Float[Array, "b h w 3"]:
    """Canonical shapes of clay, under a light from the upper left, turned aside."""
    normal = jax.vmap(
        functools.partial(geometry.depth_to_normals, fov_deg=scene.fov_deg)
    )(depth)
    light = jnp.array([0.4, 0.4, 1.0])
    light = light / jnp.linalg.norm(light)
    lit = 0.15 + 0.75 * jnp.maximum(0.0, jnp.sum(normal * light, axis=-1))
    lit = jnp.repeat(lit[..., None], 3, axis=-1)
    turned, valid = pictures.turned_views(lit, depth, scene, yaws_deg=(_CLAY_YAW_DEG,))
    return jnp.where(valid[0][..., None], turned[0], 0.0)
