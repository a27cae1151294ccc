"""A picture of how shapes come about: the normals of some images, stage by stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.gan2shape.subjects import Subjects
from unsup3d_jax.show import pictures

_MOST = 8  # images


def of_stages(
    found: Subjects,
    record: Mapping[str, Float[np.ndarray, "r n ..."]],
    *,
    first: str,
    fov_deg: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """One row an image: itself, normals after each stage, truth, albedo, rendering.

    Normals are in the image's view; the true ones stand where they are known.

    Args:
        record: of `run.read_record`: before the first stage, and after each.
        first: what it is before the first stage.
    """
    count = min(len(found), _MOST)

    def normals(depth: Float[AnyArray, "n h w"]) -> Float[np.ndarray, "n h w 3"]:
        def one(depth: Array) -> Array:
            return geometry.depth_to_normals(depth, fov_deg=fov_deg)

        return pictures.normal_picture(jax.vmap(one)(jnp.asarray(depth)))

    columns: dict[str, Any] = {"image": found.image[:count]}
    for number, depth in enumerate(record["depth"][:, :count]):
        columns[f"stage {number}" if number else first] = normals(depth)
    if found.dataset is not None:
        taken = found.dataset.take(range(count))
        if "depth" in taken and "mask" in taken:
            mask = np.asarray(taken["mask"])
            known = np.asarray(taken["depth"], np.float32)
            columns["truth"] = pictures.masked_picture(normals(known), mask)
    columns["albedo"] = record["canon_albedo"][-1, :count]
    columns["rendered"] = record["image"][-1, :count]
    return pictures.labelled_rows(columns)


def write(path: Path, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes a PNG, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with replacing(path) as file:
            Image.fromarray(picture).save(file, format="PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from None
