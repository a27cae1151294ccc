"""What the folder of one decomposed photo holds: arrays, pictures, a mesh, videos."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from unsup3d_jax.data import tiles
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import Factors, Reconstruction
from unsup3d_jax.show import foreground, mesh_files, pictures, video
from unsup3d_jax.unsup3d import symmetry
from unsup3d_jax.unsup3d.options import ModelOptions
from unsup3d_jax.unsup3d.panel import panel_of_factors

_TEXTURE_SCALE = 8  # of the mesh's texture over the model's size


def export(
    folder: str | Path,
    image: Float[np.ndarray, "h w 3"],
    factors: Factors,
    reconstruction: Reconstruction,
    options: ModelOptions,
    *,
    whole_surface: bool = False,
) -> dict[str, Any]:
    """Writes everything about one photo into a folder, which is made.

    Args:
        folder: existing files of the same names are replaced.
        image: what the network saw, [0, 1].
        factors, reconstruction: of this image, without a batch axis.
        options: static options of the model.
        whole_surface: mesh and videos show background, too, see `foreground`.

    Returns:
        Numbers about it, JSON-able: "asymmetry", and "surface", what of the depth map
        mesh and videos show.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = named_arrays(image, factors, reconstruction)
    np.savez_compressed(folder / "factors.npz", **arrays)  # pyright: ignore
    for name, picture in map_pictures(arrays, options.scene).items():
        Image.fromarray(tiles.to_bytes(picture)).save(folder / f"{name}.png")
    one = jax.tree.map(lambda a: jnp.asarray(a)[None], factors)
    panel = panel_of_factors(one, jnp.asarray(image)[None], options)
    Image.fromarray(panel).save(folder / "panel.png")
    asymmetry = symmetry.Asymmetry.of(arrays)
    picture = symmetry.symmetry_picture(arrays, asymmetry, options.scene)
    Image.fromarray(picture).save(folder / "symmetry.png")

    scene = options.scene
    # A supervised model's depth has no border.
    border = 0 if options.supervised else options.factors.border_columns
    depth, normal, lit, albedo = (
        arrays[f"canon_{name}"] for name in ("depth", "normal", "image", "albedo")
    )
    part = everything = foreground.whole(depth, border_columns=border)
    if not whole_surface:
        part = foreground.object_part(
            depth,
            border_columns=border,
            border_depth=options.factors.border_depth,
        )
    surface = mesh_files.surface_of_depth(depth, normal, scene, part)
    texture = mesh_files.Texture(albedo, _TEXTURE_SCALE)
    mesh_files.write_glb(folder / "mesh.glb", surface, texture)
    texture = mesh_files.Texture(lit, _TEXTURE_SCALE)
    mesh_files.write_obj(folder / "mesh.obj", surface, texture)
    frames = video.turntable_frames(lit, normal, depth, scene, part)
    video.write_video(folder / "turntable.mp4", frames)
    frames = video.relight_frames(albedo, normal, depth, arrays["view"], scene, part)
    video.write_video(folder / "relight.mp4", frames)
    share = float(part.cells.sum() / everything.cells.sum())
    return {"asymmetry": asymmetry.numbers(), "surface": {"share": share}}


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


def map_pictures(
    arrays: dict[str, np.ndarray], scene: Scene
) -> dict[str, Float[np.ndarray, "h w 3"]]:
    """A picture of every map among `named_arrays`, of the map's own size."""
    mask = arrays["recon_mask"] > 0.5
    shown = {}
    for name, array in arrays.items():
        if name in ("light", "view"):  # numbers, not maps
            continue
        if name.endswith("depth"):
            shown[name] = pictures.depth_picture(
                array, near=scene.depth_min, far=scene.depth_max
            )
        elif name == "canon_normal":
            shown[name] = pictures.normal_picture(array)
        elif name.startswith("conf_sigma"):
            shown[name] = pictures.confidence_picture(array)
        elif array.ndim == 2:
            shown[name] = pictures.grey_picture(array)
        else:
            shown[name] = array
    # recon_image_flip has its own validity, which the files do not hold; where
    # it is not covered it is mid-grey.
    for name in ("recon_depth", "recon_image"):
        shown[name] = pictures.masked_picture(shown[name], mask)
    return shown
