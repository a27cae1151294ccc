"""What the folder of one decomposed photo holds: arrays, pictures, a mesh, videos."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from unsup3d_jax.data import tiles
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import Factors, Reconstruction
from unsup3d_jax.show import mesh_files, pictures, video
from unsup3d_jax.unsup3d.options import ModelOptions
from unsup3d_jax.unsup3d.panel import panel_of_factors

_TEXTURE_SCALE = 8  # of the mesh's texture over the model's size
_SYMMETRY_SIZE = 256  # pixels, about


def export(
    folder: str | Path,
    image: Float[np.ndarray, "h w 3"],
    factors: Factors,
    reconstruction: Reconstruction,
    options: ModelOptions,
) -> None:
    """Writes everything about one photo into a folder, which is made.

    Args:
        folder: existing files of the same names are replaced.
        image: what the network saw, [0, 1].
        factors, reconstruction: of this image, without a batch axis.
        options: static options of the model.
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
    symmetry = symmetry_picture(arrays, options.scene)
    Image.fromarray(symmetry).save(folder / "symmetry.png")

    scene = options.scene
    # A supervised model's depth has no border.
    border = 0 if options.supervised else options.factors.border_columns
    depth, normal, lit, albedo = (
        arrays[f"canon_{name}"] for name in ("depth", "normal", "image", "albedo")
    )
    surface = mesh_files.surface_of_depth(depth, normal, scene, border_columns=border)
    texture = mesh_files.Texture(albedo, _TEXTURE_SCALE)
    mesh_files.write_glb(folder / "mesh.glb", surface, texture)
    texture = mesh_files.Texture(lit, _TEXTURE_SCALE)
    mesh_files.write_obj(folder / "mesh.obj", surface, texture)
    frames = video.turntable_frames(lit, normal, depth, scene, border_columns=border)
    video.write_video(folder / "turntable.mp4", frames)
    frames = video.relight_frames(
        albedo, normal, depth, arrays["view"], scene, border_columns=border
    )
    video.write_video(folder / "relight.mp4", frames)


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


# --- symmetry -------------------------------------------------------------------


def asymmetry(arrays: dict[str, np.ndarray]) -> Float[np.ndarray, "h w"]:
    """Where the mirrored reconstruction is trusted less, in [0, 1].

    With confidence: how much larger sigma' is than sigma, against the median
    of the object; 1 is four times. Without: the difference of the two
    reconstructions; 1 is a quarter of the colour range. 0 off the object.
    """
    mask = arrays["recon_mask"] > 0.5
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    if "conf_sigma" in arrays:
        # Sigma is a softplus, which underflows to 0 for total trust.
        floor = 1e-6
        ratio = np.log2(np.maximum(arrays["conf_sigma_flip"], floor))
        ratio -= np.log2(np.maximum(arrays["conf_sigma"], floor))
        heat = (ratio - np.median(ratio[mask])) / 2.0
    else:
        difference = np.abs(arrays["recon_image"] - arrays["recon_image_flip"])
        heat = 4.0 * difference.mean(-1)
    return np.where(mask, np.clip(heat, 0.0, 1.0), 0.0).astype(np.float32)


def symmetry_line(
    arrays: dict[str, np.ndarray], scene: Scene
) -> tuple[Float[np.ndarray, "h 2"], Bool[np.ndarray, " h"]]:
    """Where the canonical midline lies in the input.

    Returns:
        Pixel coordinates (u, v), top to bottom, and whether the surface is seen
        there (not hidden behind another part, nor outside the image).
    """
    depth = arrays["canon_depth"]
    h, w = depth.shape
    points = np.asarray(
        geometry.depth_to_points(jnp.asarray(depth), fov_deg=scene.fov_deg)
    )
    middle = (points[:, (w - 1) // 2] + points[:, w // 2]) / 2.0
    moved = geometry.transform(
        jnp.asarray(middle),
        jnp.asarray(arrays["view"]),
        centre_depth=scene.centre_depth,
    )
    pixels = np.asarray(geometry.project(moved, (h, w), fov_deg=scene.fov_deg))
    nearest = np.round(pixels).astype(int)
    inside = ((nearest >= 0) & (nearest < [w, h])).all(axis=1)
    u, v = np.clip(nearest, 0, [w - 1, h - 1]).T
    # The warped depth is that of the pixel's centre, up to half a pixel away:
    # allow a slope of about 70 degrees.
    pixel = float(np.max(np.abs(points[0, 1, 0] - points[0, 0, 0])))
    behind = np.asarray(moved)[:, 2] - arrays["recon_depth"][v, u]
    return pixels, inside & (behind < 1.5 * pixel) & (arrays["recon_mask"][v, u] > 0.5)


def symmetry_picture(
    arrays: dict[str, np.ndarray], scene: Scene
) -> UInt8[np.ndarray, "H W 3"]:
    """The input, asymmetric regions in red, the symmetry plane as a line."""
    h, w = arrays["canon_depth"].shape
    scale = max(1, round(_SYMMETRY_SIZE / w))
    size = (scale * w, scale * h)
    heat = Image.fromarray(tiles.to_bytes(asymmetry(arrays)))
    heat = np.asarray(heat.resize(size, Image.Resampling.BILINEAR)) / 255.0
    picture = Image.fromarray(tiles.to_bytes(arrays["input"]))
    picture = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) / 255.0
    alpha = 0.65 * heat[..., None]
    picture = tiles.to_bytes((1 - alpha) * picture + alpha * [0.95, 0.1, 0.1])

    # Drawn twice as large, then averaged, for smooth edges.
    canvas = Image.fromarray(picture).resize((2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(canvas)
    pixels, seen = symmetry_line(arrays, scene)
    pixels = 2 * scale * (pixels + 0.5)
    for i in range(h - 1):
        if seen[i] and seen[i + 1]:
            ends = [tuple(pixels[i]), tuple(pixels[i + 1])]
            draw.line(ends, fill=(60, 255, 120), width=4)
    return np.asarray(canvas.resize(size, Image.Resampling.BOX))
