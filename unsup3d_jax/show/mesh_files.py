"""Textured meshes as files that other programs open: glTF (.glb) and Wavefront OBJ.

Mesh frame (glTF): x right, y up, z towards the viewer, metres, the rotation
centre at the origin. It is the camera frame with y and z reversed, so that the
face of an upright object looks along +z.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from trimesh import Trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

import unsup3d_jax.rasterizer as rasterizer
from unsup3d_jax.data import tiles
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.show.foreground import Part


@dataclasses.dataclass(frozen=True)
class Surface:
    """A mesh in the frame of this module.

    Attributes:
        vertices: (v, 3) metres.
        normals: (v, 3) unit, outward.
        faces: (f, 3), counter-clockwise from outside.
        uv: (v, 2) texture coordinates, (0, 0) at the image's lower left; None
            without a texture.
        colours: (v, 3) in [0, 1], of the vertices; None: not coloured.
    """

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    uv: Float[np.ndarray, "v 2"] | None = None
    colours: Float[np.ndarray, "v 3"] | None = None


@dataclasses.dataclass(frozen=True)
class Texture:
    """The picture that a surface's `uv` point into.

    Attributes:
        picture: (h, w, 3) in [0, 1]; clipped.
        scale: whole factor by which it is enlarged, bicubic.
    """

    picture: Float[np.ndarray, "h w 3"]
    scale: int

    def image(self) -> Image.Image:
        """As it is written."""
        small = Image.fromarray(tiles.to_bytes(self.picture))
        size = (self.scale * small.width, self.scale * small.height)
        large = small.resize(size, Image.Resampling.BICUBIC)
        # Whoever saves it, trimesh too, does so as a PNG. Four times as fast as the
        # default, for a third more bytes: most of a mesh's time went there.
        save = functools.partial(large.save, compress_level=1)
        large.save = save  # pyright: ignore[reportAttributeAccessIssue]
        return large


def mesh_frame(
    points: Float[AnyArray, "*v 3"], *, centre_depth: float
) -> Float[np.ndarray, "*v 3"]:
    """Points of the camera frame (x right, y down, z forward) in this module's.

    It is a rotation: what is counter-clockwise stays so.
    """
    return (np.asarray(points) - [0.0, 0.0, centre_depth]) * [1.0, -1.0, -1.0]


def surface_of_depth(
    depth: Float[AnyArray, "h w"],
    normal: Float[AnyArray, "h w 3"],
    scene: Scene,
    part: Part,
) -> Surface:
    """The surface of a canonical depth map, one vertex a pixel.

    Args:
        depth: canonical, scene units.
        normal: pointing away from the camera.
        scene: camera.
        part: what of it is drawn; the rest leaves, with pixels that nothing else needs.
    """
    h, w = depth.shape
    points = np.asarray(
        geometry.depth_to_points(jnp.asarray(depth), fov_deg=scene.fov_deg)
    )
    points = mesh_frame(part.place(points), centre_depth=scene.centre_depth)
    outward = np.asarray(part.place(np.asarray(normal))) * [-1.0, 1.0, 1.0]
    # glTF wants unit length; those of compat.short_normals are a little short.
    outward = outward / np.linalg.norm(outward, axis=-1, keepdims=True)
    u, v = np.meshgrid((np.arange(w) + 0.5) / w, 1.0 - (np.arange(h) + 0.5) / h)
    uv = np.asarray(part.place(np.stack([u, v], axis=-1).astype(np.float32)))
    # grid_faces runs top left, bottom left, top right: counter-clockwise seen
    # from the camera, which is outside.
    faces = rasterizer.grid_faces(h, w)[np.tile(np.asarray(part.cells).ravel(), 2)]
    used, faces = np.unique(faces, return_inverse=True)
    points, outward, uv = (
        a.reshape(h * w, -1)[used].astype(np.float32) for a in (points, outward, uv)
    )
    return Surface(points, outward, faces.reshape(-1, 3).astype(np.int32), uv=uv)


def surface_of_mesh(
    vertices: Float[AnyArray, "v 3"],
    faces: Int[AnyArray, "f 3"],
    *,
    uv: Float[AnyArray, "v 2"] | None = None,
    colours: Float[AnyArray, "v 3"] | None = None,
) -> Surface:
    """The surface of any mesh; its normals are computed.

    Args:
        vertices: in this module's frame (`mesh_frame` brings them there), metres.
        faces: counter-clockwise from outside.
        uv, colours: as in `Surface`.
    """
    points = np.asarray(vertices, np.float32)
    normals = np.asarray(rasterizer.vertex_normals(jnp.asarray(points), faces))
    # glTF wants unit length also of vertices that no face gives a direction.
    directed = np.linalg.norm(normals, axis=-1, keepdims=True) > 0.5
    return Surface(
        points,
        np.where(directed, normals, np.array([0.0, 0.0, 1.0], np.float32)),
        np.asarray(faces, np.int32),
        uv=None if uv is None else np.asarray(uv, np.float32),
        colours=None if colours is None else np.asarray(colours, np.float32),
    )


def write_glb(
    path: str | Path, surface: Surface, texture: Texture | None = None
) -> None:
    """Writes what `glb` makes.

    Raises:
        ValueError: see `glb`.
    """
    Path(path).write_bytes(glb(surface, texture))


def glb(surface: Surface, texture: Texture | None = None) -> bytes:
    """A glTF 2.0 binary: rough, not metallic, seen from both sides.

    The texture, or the colours, should be an albedo: a glTF viewer brings its own
    light, and multiplies both where there are both.

    Raises:
        ValueError: if there is a texture, but the surface has no `uv`.
    """
    _check_texture(surface, texture)
    material = PBRMaterial(
        baseColorTexture=None if texture is None else texture.image(),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    visual = TextureVisuals(uv=surface.uv, material=material)
    if surface.colours is not None:
        visual.vertex_attributes["color"] = _linear_bytes(surface.colours)
    mesh = Trimesh(
        vertices=surface.vertices,
        faces=surface.faces,
        vertex_normals=surface.normals,
        visual=visual,
        process=False,
    )
    data: Any = mesh.export(file_type="glb", include_normals=True)
    return data


def _linear_bytes(colours: Float[np.ndarray, "v 3"]) -> np.ndarray:
    """RGBA of vertices: glTF has them linear, unlike textures (its Sec. 3.7.2)."""
    colours = np.clip(colours, 0.0, 1.0)
    linear = np.where(
        colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4
    )
    opaque = np.full((len(colours), 1), 255, np.uint8)
    return np.concatenate([tiles.to_bytes(linear), opaque], axis=1)


def write_obj(
    path: str | Path, surface: Surface, texture: Texture | None = None
) -> None:
    """Writes Wavefront OBJ; with a texture, MTL and PNG of its stem beside it.

    The material is unlit, as in the authors' export: the texture, or the colours,
    should be the shaded image. Colours stand behind the vertices, which most programs
    understand.

    Raises:
        ValueError: if there is a texture, but the surface has no `uv`.
    """
    _check_texture(surface, texture)
    path = Path(path)
    lines = []
    if texture is not None:
        picture, material = path.with_suffix(".png"), path.with_suffix(".mtl")
        texture.image().save(picture)
        material.write_text(
            "newmtl canonical\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 0\n"
            f"map_Kd {picture.name}\n",
            encoding="utf-8",
        )
        lines = [f"mtllib {material.name}", "usemtl canonical"]
    vertices = surface.vertices
    if surface.colours is not None:
        vertices = np.concatenate([vertices, np.clip(surface.colours, 0, 1)], axis=1)
    for key, rows in (("v", vertices), ("vt", surface.uv), ("vn", surface.normals)):
        if rows is not None:
            lines += [f"{key} " + " ".join(f"{x:.6f}" for x in row) for row in rows]
    corner = ("{0}//{0}" if surface.uv is None else "{0}/{0}/{0}").format
    # OBJ counts from one.
    lines += ["f " + " ".join(map(corner, face)) for face in surface.faces + 1]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _check_texture(surface: Surface, texture: Texture | None) -> None:
    if texture is not None and surface.uv is None:
        raise ValueError("a texture needs a surface with uv, got None.")
