"""Files about one photo whose factors are known: arrays, pictures, a mesh, videos.

Whatever method found them, the arrays have the names of `factors.npz` (README): maps
`canon_*` in the canonical frame, `recon_*` in the input's view.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from unsup3d_jax.data import tiles
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.show import foreground, mesh_files, pictures, video
from unsup3d_jax.show.foreground import Part
from unsup3d_jax.show.mesh_files import Surface, Texture
from unsup3d_jax.show.viewer import content, page

ARRAYS = "factors.npz"
# What `write_surface` writes, by the names that --outputs has.
OF_SURFACE = ("mesh", "obj", "viewer", "turntable", "relight")
# Of a texture over its map: smooth already, and programs interpolate what is between.
_TEXTURE_SCALE = 4


@dataclasses.dataclass(frozen=True)
class Border:
    """The border that a method clamps depth to.

    Attributes:
        columns: at each side; 0: there is none.
        depth: scene units.
    """

    columns: int
    depth: float


def write_maps(
    folder: Path, arrays: Mapping[str, Float[np.ndarray, "..."]], scene: Scene
) -> None:
    """Writes the arrays as they are, and a PNG of each map.

    Args:
        folder: exists; files of the same names are replaced.
        arrays: as in the README's table.
        scene: whose range of depth the pictures have.
    """
    write_arrays(folder, arrays)
    write_pngs(folder, arrays, scene)


def write_arrays(folder: Path, arrays: Mapping[str, Float[np.ndarray, "..."]]) -> None:
    """One half of `write_maps`."""
    stored = dict(arrays)
    np.savez_compressed(folder / ARRAYS, **stored)  # pyright: ignore


def write_pngs(
    folder: Path, arrays: Mapping[str, Float[np.ndarray, "..."]], scene: Scene
) -> None:
    """The other half."""
    for name, picture in map_pictures(arrays, scene).items():
        Image.fromarray(tiles.to_bytes(picture)).save(folder / f"{name}.png")


def write_surface(
    folder: Path,
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    scene: Scene,
    border: Border,
    *,
    whole_surface: bool = False,
    seen: Sequence[content.Map] = (),
    outputs: Collection[str] = OF_SURFACE,
) -> dict[str, float]:
    """Writes mesh.glb, mesh.obj with its texture, viewer.html, and two videos.

    Args:
        folder: exists; files of the same names are replaced; its name is the title of
            the viewer.
        arrays: as in the README's table.
        scene: camera.
        border: of the canonical depth.
        whole_surface: show background, too, see `foreground`.
        seen: maps for the viewer, see `content.of_depth_map`.
        outputs: which of `OF_SURFACE`.

    Returns:
        "share": what of the depth map mesh and videos show.
    """
    depth, normal, lit, albedo = (
        arrays[f"canon_{name}"] for name in ("depth", "normal", "image", "albedo")
    )
    part, surface = surface_of(arrays, scene, border, whole_surface=whole_surface)
    everything = foreground.whole(depth, border_columns=border.columns)
    if "mesh" in outputs or "viewer" in outputs:
        glb = mesh_files.glb(surface, Texture(albedo, _TEXTURE_SCALE))
        if "mesh" in outputs:
            (folder / "mesh.glb").write_bytes(glb)
        if "viewer" in outputs:
            shown = content.of_depth_map(folder.name, glb, arrays, scene, seen)
            page.write(folder, shown)
    if "obj" in outputs:
        mesh_files.write_obj(folder / "mesh.obj", surface, Texture(lit, _TEXTURE_SCALE))
    if "turntable" in outputs:
        frames = video.turntable_frames(lit, normal, depth, scene, part)
        video.write_video(folder / "turntable.mp4", frames)
    if "relight" in outputs:
        view = arrays["view"]
        frames = video.relight_frames(albedo, normal, depth, view, scene, part)
        video.write_video(folder / "relight.mp4", frames)
    return {"share": float(part.cells.sum() / everything.cells.sum())}


def surface_of(
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    scene: Scene,
    border: Border,
    *,
    whole_surface: bool,
) -> tuple[Part, Surface]:
    """What of the canonical depth is drawn, and its mesh; see `write_surface`."""
    depth = arrays["canon_depth"]
    part = foreground.whole(depth, border_columns=border.columns)
    if not whole_surface:
        part = foreground.object_part(
            depth, border_columns=border.columns, border_depth=border.depth
        )
    normal = arrays["canon_normal"]
    return part, mesh_files.surface_of_depth(depth, normal, scene, part)


def viewer_content(
    title: str,
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    scene: Scene,
    border: Border,
    *,
    whole_surface: bool,
    seen: Sequence[content.Map] = (),
) -> content.Content:
    """What viewer.html shows, without writing anything; see `write_surface`."""
    _, surface = surface_of(arrays, scene, border, whole_surface=whole_surface)
    glb = mesh_files.glb(surface, Texture(arrays["canon_albedo"], _TEXTURE_SCALE))
    return content.of_depth_map(title, glb, arrays, scene, seen)


def map_pictures(
    arrays: Mapping[str, Float[np.ndarray, "..."]], scene: Scene
) -> dict[str, Float[np.ndarray, "h w 3"]]:
    """A picture of every map among the arrays, of the map's own size."""
    mask = arrays["recon_mask"] > 0.5
    shown = {}
    for name, array in arrays.items():
        if array.ndim < 2:  # numbers, not maps
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
