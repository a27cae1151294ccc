"""What the viewer shows: a textured mesh, pictures that lie on it, light, camera."""

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from PIL import Image

from unsup3d_jax.data import tiles
from unsup3d_jax.formation import geometry, reprojection, sampling
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.show import mesh_files, pictures

# Of places that the photo does not show; no grey, which would be a value.
_UNSEEN = (0.12, 0.16, 0.32)
_FRONTAL = (0.3, 0.7, 0.0, 0.0, 1.0)
_STEEP = 1.5  # pixels that a surface may rise within one: 60 degrees and a little


@dataclasses.dataclass(frozen=True)
class Map:
    """A picture that can be laid on the surface.

    Attributes:
        name: short, of letters.
        label: its name for people.
        legend: a sentence that says what its colours mean.
        picture: (h, w, 3) in [0, 1].
    """

    name: str
    label: str
    legend: str
    picture: Float[np.ndarray, "_ _ 3"]


@dataclasses.dataclass(frozen=True)
class Eye:
    """The camera, on the z axis of the mesh's frame, and how the photo shows the mesh.

    Attributes:
        half_width: half the picture's width at distance 1.
        distance: from the origin, metres.
        rotation, translation: of the mesh in the photo; None: not known.
    """

    half_width: float
    distance: float
    rotation: Float[np.ndarray, "3 3"] | None = None
    translation: Float[np.ndarray, "3"] | None = None


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything about one photo.

    Attributes:
        title: the photo's name.
        glb: the mesh, as `mesh_files.glb` makes it, with a texture.
        texture: what the texture is called.
        eye: camera.
        photo: (h, w, 3) in [0, 1]; None: not shown.
        maps: beside the texture, normals and depth, which every mesh has.
        light: ambient, diffuse, unit direction towards the light, mesh frame.
    """

    title: str
    glb: bytes
    texture: str
    eye: Eye
    photo: Float[np.ndarray, "_ _ 3"] | None = None
    maps: Sequence[Map] = ()
    light: Sequence[float] = _FRONTAL

    def described(self) -> dict[str, Any]:
        """As the page's script reads it; JSON-able."""
        eye, pose = self.eye, None
        if eye.rotation is not None and eye.translation is not None:
            pose = {
                "rotation": np.ravel(eye.rotation).tolist(),
                "translation": eye.translation.tolist(),
            }
        ambient, diffuse, *direction = map(float, self.light)
        return {
            "title": self.title,
            "glb": base64.b64encode(self.glb).decode(),
            "texture": self.texture,
            "camera": {"half_width": eye.half_width, "distance": eye.distance},
            "pose": pose,
            "photo": None if self.photo is None else _png(self.photo),
            "maps": [
                {"name": m.name, "label": m.label, "legend": m.legend}
                | {"png": _png(m.picture)}
                for m in self.maps
            ],
            "light": {"ambient": ambient, "diffuse": diffuse, "direction": direction},
        }


def _png(picture: Float[np.ndarray, "h w 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(tiles.to_bytes(picture)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def of_depth_map(
    title: str,
    glb: bytes,
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    scene: Scene,
    seen: Sequence[Map] = (),
) -> Content:
    """The content of a depth map's mesh.

    Args:
        glb: the mesh, textured with the albedo.
        arrays: as `surface_files.write_surface`, with input, light, recon_depth and
            recon_mask.
        scene: camera.
        seen: further maps, in the input's view; laid on what of the surface it shows.
    """
    if "conf_sigma" in arrays:
        legend = "Bright where the model trusts what it makes of the photo"
        shown = pictures.confidence_picture(arrays["conf_sigma"])
        seen = [Map("confidence", "Confidence", legend, shown), *seen]
    width = arrays["canon_depth"].shape[1]
    # Of the whole picture: the field of view ends at centres of pixels.
    half = width / 2.0 / geometry.focal_length(width, fov_deg=scene.fov_deg)
    ambient, diffuse, x, y, z = map(float, arrays["light"])
    view = arrays["view"]
    # Camera to mesh frame and back; a rotation.
    flip = np.diag([1.0, -1.0, -1.0])
    rotation = np.asarray(geometry.rotation_matrix(jnp.asarray(view[:3])))
    return Content(
        title=title,
        glb=glb,
        texture="Albedo",
        eye=Eye(half, scene.centre_depth, flip @ rotation @ flip, flip @ view[3:]),
        photo=arrays["input"],
        maps=_laid_on(seen, arrays, scene),
        # Light and normals point away from the camera; the mesh's normals outward.
        light=(ambient, diffuse, -x, y, z),
    )


def _laid_on(
    seen: Sequence[Map], arrays: Mapping[str, Float[np.ndarray, "..."]], scene: Scene
) -> list[Map]:
    """Maps of the input's view as textures of the canonical surface."""
    if not seen:
        return []
    where, shown = jax.device_get(
        _places_in_input(
            arrays["canon_depth"],
            arrays["view"],
            arrays["recon_depth"],
            arrays["recon_mask"],
            scene,
        )
    )
    stack = np.stack([m.picture for m in seen]).astype(np.float32)
    grids = np.broadcast_to(where, (len(seen), *where.shape))
    laid = np.asarray(sampling.sample_bilinear(stack, grids))
    laid = np.where(shown[..., None], laid, np.array(_UNSEEN, np.float32))
    return [
        dataclasses.replace(
            m, picture=picture, legend=f"{m.legend}; blue: the photo does not show it."
        )
        for m, picture in zip(seen, laid, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="scene")
def _places_in_input(
    depth: Float[Array, "h w"],
    view: Float[Array, "6"],
    recon_depth: Float[Array, "h w"],
    recon_mask: Float[Array, "h w"],
    scene: Scene,
) -> tuple[Float[Array, "h w 2"], Bool[Array, "h w"]]:
    """Where the input shows each canonical pixel, (u, v), and whether it does."""
    h, w = depth.shape
    places = reprojection.on_screen(depth[None], view[None], scene)[0]
    pixels, z = places[..., :2], places[..., 2]
    u, v = jnp.moveaxis(jnp.round(pixels).astype(int), -1, 0)
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    u, v = jnp.clip(u, 0, w - 1), jnp.clip(v, 0, h - 1)
    pixel = scene.centre_depth / geometry.focal_length(w, fov_deg=scene.fov_deg)
    hidden = z - recon_depth[v, u] > _STEEP * pixel
    return pixels, inside & ~hidden & (recon_mask[v, u] > 0.5)


def eye_for(surface: mesh_files.Surface) -> Eye:
    """A camera that has a mesh in sight whatever side it shows."""
    size = float(np.linalg.norm(surface.vertices, axis=-1).max())
    return Eye(half_width=1.1 / 6.0, distance=6.0 * size)
