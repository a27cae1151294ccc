"""What the folder of one decomposed photo holds: arrays, pictures, mesh, videos."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from unsup3d_jax.formation.types import Factors, Reconstruction
from unsup3d_jax.show import surface_files
from unsup3d_jax.show.viewer.content import Content
from unsup3d_jax.unsup3d import symmetry
from unsup3d_jax.unsup3d.options import ModelOptions
from unsup3d_jax.unsup3d.outputs import OUTPUTS
from unsup3d_jax.unsup3d.panel import Turned, paint, turned_views


def export(
    folder: str | Path,
    image: Float[np.ndarray, "h w 3"],
    factors: Factors,
    reconstruction: Reconstruction,
    options: ModelOptions,
    *,
    whole_surface: bool = False,
    belief: Float[np.ndarray, "3"] | None = None,
    outputs: Collection[str] = OUTPUTS,
    turned: Turned | None = None,
) -> dict[str, Any]:
    """Writes everything about one photo into a folder, which is made.

    Args:
        folder: existing files of the same names are replaced.
        image: what the network saw, [0, 1].
        factors, reconstruction: of this image, without a batch axis.
        options: static options of the model.
        whole_surface: mesh and videos show background, too, see `foreground`.
        belief: of `belief.as_array`, for factors.npz.
        outputs: which of `OUTPUTS`.
        turned: for the panel, with a batch axis of one; None: not known yet.

    Returns:
        Numbers about it, JSON-able: "asymmetry", and, where there is a mesh, a viewer
        or a video, "surface", what of the depth map they show.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = named_arrays(image, factors, reconstruction)
    if "factors" in outputs:
        more = {} if belief is None else {"belief": belief}
        surface_files.write_arrays(folder, arrays | more)
    if "maps" in outputs:
        surface_files.write_pngs(folder, arrays, options.scene)
    if "panel" in outputs:
        one, its = jax.tree.map(
            lambda a: np.asarray(a)[None], (factors, reconstruction)
        )
        around: Turned = turned or turned_views(
            its.canonical.image, one.canon_depth, options
        )
        panel = paint(one, its, around, image[None], options)
        Image.fromarray(panel).save(folder / "panel.png")
    asymmetry = symmetry.Asymmetry.of(arrays)
    if "symmetry" in outputs:
        picture = symmetry.symmetry_picture(arrays, asymmetry, options.scene)
        Image.fromarray(picture).save(folder / "symmetry.png")
    numbers: dict[str, Any] = {"asymmetry": asymmetry.numbers()}
    if of_surface := [name for name in surface_files.OF_SURFACE if name in outputs]:
        numbers["surface"] = surface_files.write_surface(
            folder,
            arrays,
            options.scene,
            _border(options),
            whole_surface=whole_surface,
            seen=[symmetry.asymmetry_map(arrays, asymmetry)],
            outputs=of_surface,
        )
    return numbers


def viewer_content(
    title: str,
    image: Float[np.ndarray, "h w 3"],
    factors: Factors,
    reconstruction: Reconstruction,
    options: ModelOptions,
    *,
    whole_surface: bool = False,
) -> Content:
    """What the viewer shows of one photo; nothing is written.

    Args:
        title: the photo's name.
        image, factors, reconstruction, options, whole_surface: as of `export`.
    """
    arrays = named_arrays(image, factors, reconstruction)
    asymmetry = symmetry.Asymmetry.of(arrays)
    return surface_files.viewer_content(
        title,
        arrays,
        options.scene,
        _border(options),
        whole_surface=whole_surface,
        seen=[symmetry.asymmetry_map(arrays, asymmetry)],
    )


def _border(options: ModelOptions) -> surface_files.Border:
    # A supervised model's depth has no border.
    columns = 0 if options.supervised else options.factors.border_columns
    return surface_files.Border(columns, options.factors.border_depth)


def named_arrays(
    image: Float[np.ndarray, "h w 3"],
    factors: Factors,
    reconstruction: Reconstruction,
) -> dict[str, np.ndarray]:
    """The arrays of factors.npz, float32, under their public names.

    Confidence maps are left out for a model without them. `recon_mask` is 1
    where the reconstruction covers the pixel; nothing is clipped or masked.
    """
    canonical, plain = reconstruction.canonical, reconstruction.plain
    arrays = {
        "input": image,
        "canon_depth": factors.canon_depth,
        "canon_albedo": factors.canon_albedo,
        "canon_image": canonical.image,
        "canon_normal": canonical.normal,
        "canon_shading": canonical.shading,
        "light": factors.light,
        "view": factors.view,
        "recon_depth": plain.depth,
        "recon_image": plain.image,
        "recon_image_flip": reconstruction.flip.image,
        "recon_mask": plain.valid,
        "conf_sigma": factors.conf_sigma,
        "conf_sigma_flip": factors.conf_sigma_flip,
        "conf_sigma_perceptual": factors.conf_sigma_perceptual,
        "conf_sigma_perceptual_flip": factors.conf_sigma_perceptual_flip,
    }
    return {k: np.asarray(v, np.float32) for k, v in arrays.items() if v is not None}
