"""A photo's folder: arrays, pictures, mesh, videos, and what the generator shows."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from unsup3d_jax.formation.types import Conditions, Surface
from unsup3d_jax.gan2shape import losses, through_generator
from unsup3d_jax.gan2shape.losses import Rendering
from unsup3d_jax.gan2shape.options import ShapeOptions
from unsup3d_jax.gan2shape.steps import Looks
from unsup3d_jax.gan2shape.through_generator import Answer
from unsup3d_jax.show import pictures, surface_files

_TURNS_DEG = (-40.0, -20.0, 20.0, 40.0)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Section export of a config.

    Attributes:
        whole_surface: mesh and videos show background, too.
        most_yaw_deg: of the rotations, to either side.
    """

    whole_surface: bool
    most_yaw_deg: float


def export(
    folder: Path,
    image: Float[np.ndarray, "h w 3"],
    found: Looks,
    options: ShapeOptions,
    how: ExportOptions,
    answer: Answer | None,
) -> dict[str, Any]:
    """Writes everything about one photo into a folder.

    Args:
        folder: exists; files of the same names are replaced.
        image: whose shape it is, [0, 1].
        found: of this image alone, leading axis of 1, on the host.
        options: static.
        answer: the generator's; None: without.

    Returns:
        Numbers about it, JSON-able: "surface" as `surface_files.write_surface`, and
        "recon_l1", mean absolute difference over the surface and the channels, [0, 1].
    """
    arrays = named_arrays(image, found, options)
    surface_files.write_maps(folder, arrays, options.scene)
    panel = pictures.labelled_rows(_columns(arrays, options))
    Image.fromarray(panel).save(folder / "panel.png")
    shown = surface_files.write_surface(
        folder,
        arrays,
        options.scene,
        surface_files.Border(options.border_columns, options.border_depth),
        whole_surface=how.whole_surface,
    )
    through_generator.write(
        folder,
        _surface(arrays),
        arrays["view"],
        arrays["light"],
        options,
        answer,
        most_yaw_deg=how.most_yaw_deg,
    )
    mask = arrays["recon_mask"] > 0.5
    apart = np.abs(arrays["recon_image"] - image)[mask]
    return {"surface": shown, "recon_l1": float(apart.mean()) if mask.any() else None}


def named_arrays(
    image: Float[np.ndarray, "h w 3"], found: Looks, options: ShapeOptions
) -> dict[str, np.ndarray]:
    """The arrays of factors.npz, float32, under the names that all methods share."""
    surface = Surface(
        raw_depth=found.canon_depth,
        canon_depth=found.canon_depth,
        canon_albedo=found.canon_albedo,
    )
    conditions = Conditions(light=found.light, view=found.view)
    drawn = jax.device_get(_render(surface, conditions, options))
    arrays = {
        "input": image,
        "canon_depth": found.canon_depth[0],
        "canon_albedo": found.canon_albedo[0],
        "canon_image": drawn.canonical.image[0],
        "canon_normal": drawn.canonical.normal[0],
        "canon_shading": drawn.canonical.shading[0],
        "light": found.light[0],
        "view": found.view[0],
        "recon_depth": drawn.warped.depth[0],
        "recon_image": drawn.warped.image[0],
        "recon_mask": drawn.warped.valid[0],
    }
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


@functools.partial(jax.jit, static_argnames="options")
def _render(
    surface: Surface, conditions: Conditions, options: ShapeOptions
) -> Rendering:
    return losses.render(surface, conditions, options)


def _surface(arrays: dict[str, np.ndarray]) -> Surface:
    depth = jnp.asarray(arrays["canon_depth"])[None]
    albedo = jnp.asarray(arrays["canon_albedo"])[None]
    return Surface(raw_depth=depth, canon_depth=depth, canon_albedo=albedo)


def _columns(
    arrays: dict[str, np.ndarray], options: ShapeOptions
) -> dict[str, np.ndarray]:
    """One row of a panel: every factor, and the mesh turned."""
    shown = surface_files.map_pictures(arrays, options.scene)
    names = {
        "input": "input",
        "reconstruction": "recon_image",
        "depth": "canon_depth",
        "normal": "canon_normal",
        "albedo": "canon_albedo",
        "shading": "canon_shading",
        "canonical": "canon_image",
    }
    columns = {title: shown[name][None] for title, name in names.items()}
    image = np.clip(arrays["canon_image"], 0.0, 1.0)
    seen, valid = pictures.turned_views(
        jnp.asarray(image)[None],
        jnp.asarray(arrays["canon_depth"])[None],
        options.scene,
        yaws_deg=_TURNS_DEG,
    )
    for degrees, picture, where in zip(_TURNS_DEG, seen, valid, strict=True):
        columns[f"yaw {degrees:+.0f}°"] = pictures.masked_picture(picture, where)
    return columns
