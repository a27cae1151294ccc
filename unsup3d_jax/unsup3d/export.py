"""One decomposed photo -> files: arrays, pictures, a textured mesh, videos.

Mesh frame (glTF): x right, y up, z towards the viewer, metres, the rotation
centre at the origin. It is the camera frame with y and z reversed, so that the
face of an upright object looks along +z.
"""

import dataclasses
import functools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw
from trimesh import Trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

import rasterizer
from unsup3d_jax.formation import geometry, sampling
from unsup3d_jax.formation.types import Factors, Reconstruction
from unsup3d_jax.show import pictures
from unsup3d_jax.unsup3d.options import ModelOptions

TURNTABLE_YAW_DEG = 50.0  # farther round there is nothing but the open back
TURNTABLE_FRAMES = 60
RELIGHT_FRAMES = 48
FRAMES_PER_SECOND = 20

_VIDEO_SIZE = 256  # pixels; a multiple of 16, which H.264 wants
_VIDEO_SAMPLES = 2  # per pixel and axis
_VIDEO_BACKGROUND = 0.11
_TEXTURE_SCALE = 8  # of the mesh's texture over the model's size
_SYMMETRY_SIZE = 256  # pixels, about
# Light of the relighting video: its ambient and diffuse strength and how far
# its direction leans away from the optical axis (x, y over z).
_RELIGHT_AMBIENT, _RELIGHT_DIFFUSE, _RELIGHT_LEAN = 0.25, 0.85, 0.9
# Light of the grey "clay" pictures, fixed to the camera: from above left.
_CLAY_LIGHT = (0.35, 0.45, 1.0)


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
    factors, reconstruction = jax.device_get((factors, reconstruction))
    arrays = named_arrays(image, factors, reconstruction)
    np.savez_compressed(folder / "factors.npz", **arrays)  # pyright: ignore
    for name, picture in map_pictures(arrays, options).items():
        Image.fromarray(pictures.to_bytes(picture)).save(folder / f"{name}.png")
    one = jax.tree.map(lambda a: jnp.asarray(a)[None], factors)
    panel = pictures.panel_of_factors(one, jnp.asarray(image)[None], options)
    Image.fromarray(panel).save(folder / "panel.png")
    symmetry = symmetry_picture(arrays, options)
    Image.fromarray(symmetry).save(folder / "symmetry.png")

    surface = surface_of(arrays["canon_depth"], arrays["canon_normal"], options)
    write_glb(folder / "mesh.glb", surface, arrays["canon_albedo"])
    write_obj(folder / "mesh.obj", surface, arrays["canon_image"])
    write_video(folder / "turntable.mp4", turntable_frames(arrays, options))
    write_video(folder / "relight.mp4", relight_frames(arrays, options))


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
    arrays: dict[str, np.ndarray], options: ModelOptions
) -> dict[str, Float[np.ndarray, "h w 3"]]:
    """A picture of every map among `named_arrays`, of the map's own size."""
    scene = options.scene
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
            shown[name] = np.repeat(array[..., None], 3, axis=-1)
        else:
            shown[name] = array
    # recon_image_flip has its own validity, which the files do not hold; where
    # it is not covered it is mid-grey.
    for name in ("recon_depth", "recon_image"):
        shown[name] = pictures.masked_picture(shown[name], mask)
    return shown


# --- mesh -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Surface:
    """A depth map as a mesh in the frame of this module.

    Attributes:
        vertices: (v, 3) metres.
        normals: (v, 3) unit, outward.
        uv: (v, 2) texture coordinates, (0, 0) at the image's lower left.
        faces: (f, 3), counter-clockwise from outside.
    """

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    uv: Float[np.ndarray, "v 2"]
    faces: Int[np.ndarray, "f 3"]


def surface_of(
    depth: Float[np.ndarray, "h w"],
    normal: Float[np.ndarray, "h w 3"],
    options: ModelOptions,
) -> Surface:
    """The canonical surface, without the border columns that are clamped.

    Args:
        depth: canonical, scene units.
        normal: unit, pointing away from the camera.
    """
    scene = options.scene
    h, w = depth.shape
    cut = _border(options)
    points = np.asarray(
        geometry.depth_to_points(jnp.asarray(depth), fov_deg=scene.fov_deg)
    )
    points = (points - [0.0, 0.0, scene.centre_depth]) * [1.0, -1.0, -1.0]
    outward = np.asarray(normal) * [-1.0, 1.0, 1.0]
    # glTF wants unit length; those of compat.short_normals are a little short.
    outward = outward / np.linalg.norm(outward, axis=-1, keepdims=True)
    u, v = np.meshgrid((np.arange(w) + 0.5) / w, 1.0 - (np.arange(h) + 0.5) / h)
    kept = [
        a[:, cut : w - cut].reshape(-1, a.shape[-1])
        for a in (points, outward, np.stack([u, v], axis=-1))
    ]
    # grid_faces runs top left, bottom left, top right: counter-clockwise seen
    # from the camera, which is outside.
    faces = np.asarray(rasterizer.grid_faces(h, w - 2 * cut))
    points, outward, uv = (a.astype(np.float32) for a in kept)
    return Surface(points, outward, uv, faces.astype(np.int32))


def _border(options: ModelOptions) -> int:
    return 0 if options.supervised else options.factors.border_columns


def _texture(picture: Float[np.ndarray, "h w 3"]) -> Image.Image:
    small = Image.fromarray(pictures.to_bytes(picture))
    size = (_TEXTURE_SCALE * small.width, _TEXTURE_SCALE * small.height)
    return small.resize(size, Image.Resampling.BICUBIC)


def write_glb(
    path: str | Path, surface: Surface, albedo: Float[np.ndarray, "h w 3"]
) -> None:
    """Writes a glTF 2.0 binary: rough, not metallic, seen from both sides.

    The texture is the albedo, because a glTF viewer brings its own light.
    """
    material = PBRMaterial(
        baseColorTexture=_texture(albedo),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    mesh = Trimesh(
        vertices=surface.vertices,
        faces=surface.faces,
        vertex_normals=surface.normals,
        visual=TextureVisuals(uv=surface.uv, material=material),
        process=False,
    )
    data: Any = mesh.export(file_type="glb", include_normals=True)
    Path(path).write_bytes(data)


def write_obj(
    path: str | Path, surface: Surface, image: Float[np.ndarray, "h w 3"]
) -> None:
    """Writes Wavefront OBJ, MTL and texture PNG of one stem side by side.

    The texture is the shaded canonical image and the material is unlit, as in
    the authors' export.
    """
    path = Path(path)
    texture, material = path.with_suffix(".png"), path.with_suffix(".mtl")
    _texture(image).save(texture)
    material.write_text(
        "newmtl canonical\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 0\n"
        f"map_Kd {texture.name}\n",
        encoding="utf-8",
    )
    lines = [f"mtllib {material.name}", "usemtl canonical"]
    for key, rows in (
        ("v", surface.vertices),
        ("vt", surface.uv),
        ("vn", surface.normals),
    ):
        lines += [f"{key} " + " ".join(f"{x:.6f}" for x in row) for row in rows]
    corner = "{0}/{0}/{0}".format  # OBJ counts from one
    lines += ["f " + " ".join(map(corner, face)) for face in surface.faces + 1]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- videos ---------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("options", "size"))
def render(
    maps: Float[Array, "h w c"],
    depth: Float[Array, "h w"],
    view: Float[Array, "6"],
    *,
    options: ModelOptions,
    size: int,
) -> tuple[Float[Array, "size size c"], Array]:
    """Draws canonical maps from a viewpoint, at any resolution.

    Unlike `reprojection.reproject` it draws the surface itself, without the
    clamped border, and looks colours up at the exact surface point.

    Args:
        maps: any maps on the canonical grid.
        depth: canonical, scene units.
        view: rotation (radians), translation (scene units).
        size: height and width of the picture, pixels; static.

    Returns:
        The maps as seen, and (size, size) bool where the surface is.
    """
    scene, (h, w), cut = options.scene, depth.shape, _border(options)
    points = geometry.depth_to_points(depth, fov_deg=scene.fov_deg)
    points = geometry.transform(points, view, centre_depth=scene.centre_depth)
    pixels = geometry.project(points, (size, size), fov_deg=scene.fov_deg)
    vertices = jnp.concatenate([pixels, points[..., 2:]], axis=-1)
    faces = jnp.asarray(rasterizer.grid_faces(h, w - 2 * cut))
    fragments = rasterizer.rasterize(
        vertices[:, cut : w - cut].reshape(-1, 3), faces, (size, size)
    )
    u, v = jnp.meshgrid(
        jnp.arange(w, dtype=depth.dtype), jnp.arange(h, dtype=depth.dtype)
    )
    places = jnp.stack([u, v], axis=-1)[:, cut : w - cut].reshape(-1, 2)
    where = rasterizer.interpolate(places, faces, fragments)
    seen = sampling.sample_bilinear(maps[None], where[None])[0]
    return seen, fragments.face_index >= 0


def turntable_frames(
    arrays: dict[str, np.ndarray], options: ModelOptions
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The canonical object swinging to both sides; beside it the bare shape."""
    for step in range(TURNTABLE_FRAMES):
        yaw = TURNTABLE_YAW_DEG * np.sin(2 * np.pi * step / TURNTABLE_FRAMES)
        view = np.array([0, np.radians(yaw), 0, 0, 0, 0], np.float32)
        yield np.asarray(
            _turntable_frame(
                arrays["canon_image"],
                arrays["canon_normal"],
                arrays["canon_depth"],
                view,
                options,
            )
        )


@functools.partial(jax.jit, static_argnames="options")
def _turntable_frame(
    image: Array, normal: Array, depth: Array, view: Array, options: ModelOptions
) -> UInt8[Array, "H W 3"]:
    maps = jnp.concatenate([image, normal], axis=-1)
    size = _VIDEO_SIZE * _VIDEO_SAMPLES
    seen, covered = render(maps, depth, view, options=options, size=size)
    # The clay's light stays with the camera, so its normals turn.
    rotation = geometry.rotation_matrix(view[:3])
    turned = jnp.sum(seen[..., None, 3:] * rotation, axis=-1)
    diffuse = jnp.maximum(0.0, jnp.sum(_unit(turned) * _unit(_CLAY_LIGHT), axis=-1))
    return _frame(seen[..., :3], _grey(0.1 + 0.75 * diffuse), covered)


def relight_frames(
    arrays: dict[str, np.ndarray], options: ModelOptions
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The object as the input shows it, under a light that moves in a circle.

    Beside it the shading alone.
    """
    maps = np.concatenate([arrays["canon_albedo"], arrays["canon_normal"]], axis=-1)
    size = _VIDEO_SIZE * _VIDEO_SAMPLES
    seen, covered = render(
        maps, arrays["canon_depth"], arrays["view"], options=options, size=size
    )
    for step in range(RELIGHT_FRAMES):
        angle = 2 * np.pi * step / RELIGHT_FRAMES
        lean = _RELIGHT_LEAN * np.array([np.cos(angle), np.sin(angle)])
        direction = np.array([*lean, 1.0], np.float32)
        yield np.asarray(_relight_frame(seen, covered, direction))


@jax.jit
def _relight_frame(
    seen: Array, covered: Array, direction: Array
) -> UInt8[Array, "H W 3"]:
    normal = _unit(seen[..., 3:])
    diffuse = jnp.maximum(0.0, jnp.sum(normal * _unit(direction), axis=-1))
    shading = _grey(_RELIGHT_AMBIENT + _RELIGHT_DIFFUSE * diffuse)
    return _frame(seen[..., :3] * shading, 0.8 * shading, covered)


def _unit(vector) -> Array:
    vector = jnp.asarray(vector, jnp.float32)
    # Zero vectors occur only where nothing is drawn.
    norm = jnp.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / jnp.maximum(norm, 1e-6)


def _grey(value: Array) -> Array:
    return jnp.repeat(value[..., None], 3, axis=-1)


def _frame(left: Array, right: Array, covered: Array) -> UInt8[Array, "H W 3"]:
    """Two pictures of samples side by side: background, pixel means, 8 bits."""
    shown = [
        jnp.where(covered[..., None], jnp.clip(side, 0.0, 1.0), _VIDEO_BACKGROUND)
        for side in (left, right)
    ]
    wide = jnp.concatenate(shown, axis=1)
    h, w, c = wide.shape
    n = _VIDEO_SAMPLES
    mean = wide.reshape(h // n, n, w // n, n, c).mean((1, 3))
    return jnp.round(255.0 * mean).astype(jnp.uint8)


def write_video(path: str | Path, frames: Iterable[np.ndarray]) -> None:
    """Writes H.264 in the pixel format that every player knows.

    Args:
        path: an .mp4 file.
        frames: uint8 (H, W, 3) of one size, sides even.

    Raises:
        RuntimeError: with ffmpeg's own words, if it fails.
    """
    pixels = np.stack(list(frames))
    height, width = pixels.shape[1:3]
    # imageio's writer forks with a Python hook, which JAX's threads forbid;
    # plain arguments let the standard library spawn without running Python.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(FRAMES_PER_SECOND), "-i", "-", "-an"]
    command += ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", str(path)]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True)
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"ffmpeg could not write {path}: {message}")


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
    arrays: dict[str, np.ndarray], options: ModelOptions
) -> tuple[Float[np.ndarray, "h 2"], np.ndarray]:
    """Where the canonical midline lies in the input.

    Returns:
        Pixel coordinates (u, v), top to bottom, and whether the surface is seen
        there (not hidden behind another part, nor outside the image).
    """
    scene, depth = options.scene, arrays["canon_depth"]
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
    arrays: dict[str, np.ndarray], options: ModelOptions
) -> UInt8[np.ndarray, "H W 3"]:
    """The input, asymmetric regions in red, the symmetry plane as a line."""
    h, w = arrays["canon_depth"].shape
    scale = max(1, round(_SYMMETRY_SIZE / w))
    size = (scale * w, scale * h)
    heat = Image.fromarray(pictures.to_bytes(asymmetry(arrays)))
    heat = np.asarray(heat.resize(size, Image.Resampling.BILINEAR)) / 255.0
    picture = Image.fromarray(pictures.to_bytes(arrays["input"]))
    picture = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) / 255.0
    alpha = 0.65 * heat[..., None]
    picture = pictures.to_bytes((1 - alpha) * picture + alpha * [0.95, 0.1, 0.1])

    # Drawn twice as large, then averaged, for smooth edges.
    canvas = Image.fromarray(picture).resize((2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(canvas)
    pixels, seen = symmetry_line(arrays, options)
    pixels = 2 * scale * (pixels + 0.5)
    for i in range(h - 1):
        if seen[i] and seen[i + 1]:
            ends = [tuple(pixels[i]), tuple(pixels[i + 1])]
            draw.line(ends, fill=(60, 255, 120), width=4)
    return np.asarray(canvas.resize(size, Image.Resampling.BOX))
