"""What a photo's folder holds: flattened face, mask, pose, mesh, frontal view."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from PIL import Image
from scipy.spatial.transform import Rotation

import unsup3d_jax.rasterizer as rasterizer
from unsup3d_jax.data import tiles
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.show import mesh_files
from unsup3d_jax.show.pictures import grey_picture
from unsup3d_jax.show.viewer import content, page
from unsup3d_jax.stn3dmm import flattening, layers, pictures, textures
from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.morphable import GridModel
from unsup3d_jax.stn3dmm.visibility import cosine

ARRAYS = "factors.npz"
_PANEL_SIDE = 224
# Cosine below which a texel is rather filled from the other half: where pose is off by
# a little, it shows the background.
_GRAZING = 0.3


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How the outputs are made; whatever the localiser was trained with does not bind.

    Attributes:
        photo_size: pixels a side at which the photo is sampled; the localiser sees a
            smaller copy.
        visibility: "facing" or "zbuffer".
        texture_scale: texels of the mesh's texture a vertex of the grid, each way.
    """

    photo_size: int
    visibility: str
    texture_scale: int


class Found(NamedTuple):
    """All that theta says of one photo, and what is sampled from it.

    Attributes:
        posed: of the photo at its own size.
        shape: (g*g, 3) not turned, model frame, model units.
        flattened: (g, g, 3) not masked; 0 outside the photo.
        visibility: (g, g) 1 where the texel is seen, inside the photo; else 0.
        cosine: (g, g) of the angle at which it is seen.
        texture: (t, t, 3) the same photo, sampled more finely.
    """

    posed: layers.Posed
    shape: Float[Array, "n 3"]
    flattened: Float[Array, "g g 3"]
    visibility: Float[Array, "g g"]
    cosine: Float[Array, "g g"]
    texture: Float[Array, "t t 3"]


@functools.partial(jax.jit, static_argnames=("camera", "options"))
def flatten(
    model: GridModel,
    vector: Float[AnyArray, " p"],
    image: Float[AnyArray, "h w 3"],
    camera: Camera,
    options: ExportOptions,
) -> Found:
    """Samples one photo at the places that theta says.

    Args:
        model: at the resolution of the output.
        vector: theta, see `layers.split`.
        image: of `options.photo_size`, [0, 1].
        camera, options: static.

    Raises:
        ValueError: if the photo has another size than `options` says.
    """
    size = options.photo_size
    if image.shape[:2] != (size, size):
        raise ValueError(f"need a photo of {size} x {size} pixels, got {image.shape}.")
    batch = flattening.flatten(
        model, vector[None], image[None], camera, mode=options.visibility
    )
    posed, flattened, seen = jax.tree.map(
        lambda x: x[0], (batch.posed, batch.faces, batch.mask)
    )
    theta = layers.split(vector)
    shape, _ = layers.shape(model, theta.alpha)
    texture = textures.photo_texture(image, posed.pixels, scale=options.texture_scale)
    steep = cosine(posed, theta, camera, grid=model.size)
    return Found(posed, shape, flattened, seen, steep, texture)


def usable(found: Found) -> Float[np.ndarray, "g g"]:
    """1 where a texel is seen, and not so flatly that it may show what lies behind."""
    return np.where(np.asarray(found.cosine) > _GRAZING, found.visibility, 0.0)


def export(
    folder: Path,
    image: Float[np.ndarray, "h w 3"],
    vector: Float[np.ndarray, " p"],
    model: GridModel,
    camera: Camera,
    options: ExportOptions,
) -> tuple[dict[str, Any], Found]:
    """Writes everything about one photo into a folder.

    Args:
        folder: exists.
        image, vector, model, camera, options: see `flatten`.

    Returns:
        Numbers about it, JSON-able: "theta", "pose", "visible"; and what was found,
        on the host.
    """
    found = jax.device_get(flatten(model, vector, image, camera, options))
    arrays = named_arrays(image, vector, found, model)
    np.savez_compressed(folder / ARRAYS, **arrays)  # pyright: ignore
    whole, view = frontal_view(found, vector, model, camera, options)
    shown: dict[str, AnyArray] = {
        "input": image,
        "flattened": found.flattened,
        "visibility": grey_picture(found.visibility),
        "overlay": pictures.mesh_overlay(image, found.posed.pixels, found.visibility),
        "landmarks": pictures.landmarks_picture(image, found.posed.landmarks),
        "frontal": view[..., :3],
        "frontal_marked": pictures.marked(view[..., :3], view[..., 3:]),
    }
    for name, picture in shown.items():
        Image.fromarray(tiles.to_bytes(picture)).save(folder / f"{name}.png")
    columns = {
        "photo": "input",
        "mesh": "overlay",
        "landmarks": "landmarks",
        "flattened": "flattened",
        "visible": "visibility",
        "frontal": "frontal",
        "frontal, not seen: tinted": "frontal_marked",
    }
    panel = {title: [shown[name]] for title, name in columns.items()}
    Image.fromarray(pictures.labelled(panel, side=_PANEL_SIDE)).save(
        folder / "panel.png"
    )
    _write_mesh(folder, image, found, model, whole.texture)
    return numbers_of(np.asarray(vector), found), found


def frontal_view(
    found: Found,
    vector: Float[AnyArray, " p"],
    model: GridModel,
    camera: Camera,
    options: ExportOptions,
) -> tuple[textures.Completed, Float[np.ndarray, "s s 6"]]:
    """The photo's texture without holes, and the face with it from the front.

    Args:
        found: of `flatten` with the others, on the host.

    Returns:
        The texture; and the view, `options.photo_size` pixels a side: three channels
        of colour in [0, 1], and three of `pictures.source_shares`.
    """
    scale = options.texture_scale
    finer = usable(found).repeat(scale, axis=0).repeat(scale, axis=1)
    whole = textures.completed(found.texture, finer)
    shares = pictures.source_shares(whole.source)
    layered = np.concatenate([whole.texture, shares], axis=-1)
    drawn = _from_the_front(model, vector, layered, camera, options.photo_size)
    return whole, jax.device_get(drawn)


@functools.partial(jax.jit, static_argnames=("camera", "size"))
def _from_the_front(
    model: GridModel,
    vector: Float[AnyArray, " p"],
    texture: Float[AnyArray, "t t c"],
    camera: Camera,
    size: int,
) -> Float[Array, "s s c"]:
    front = textures.frontal(layers.split(vector))
    return textures.view_of(model, front, camera, texture, size=size)[0]


def _write_mesh(
    folder: Path,
    image: Float[np.ndarray, "h w 3"],
    found: Found,
    model: GridModel,
    texture: Float[np.ndarray, "t t 3"],
) -> None:
    """The face itself, not turned, in metres, as large as the model has it."""
    surface = mesh_files.surface_of_mesh(
        model.unit * np.asarray(found.shape),
        rasterizer.grid_faces(model.size, model.size),
        uv=textures.texture_coordinates(model.size),
    )
    skin = mesh_files.Texture(texture, 1)
    glb = mesh_files.glb(surface, skin)
    (folder / "mesh.glb").write_bytes(glb)
    visible = content.Map(
        "visible",
        "Seen",
        "White where the photo shows the face; elsewhere the texture is filled in.",
        grey_picture(found.visibility),
    )
    shown = content.Content(
        title=folder.name,
        glb=glb,
        texture="Texture",
        eye=content.eye_for(surface),
        photo=image,
        maps=[visible],
    )
    page.write(folder, shown)
    mesh_files.write_obj(folder / "mesh.obj", surface, skin)


def named_arrays(
    image: Float[np.ndarray, "h w 3"],
    vector: Float[AnyArray, " p"],
    found: Found,
    model: GridModel,
) -> dict[str, np.ndarray]:
    """The arrays of factors.npz, float32, under their public names.

    input (h, w, 3): the photo's square, [0, 1]. theta (6 + d). pixels (g, g, 2) and
    landmarks (l, 2): (u, v) in pixels of `input`, centres on integers. flattened
    (g, g, 3): not masked. visibility (g, g): 1 where the photo shows the texel.
    vertices (g, g, 3): the face, not turned, model frame, metres.
    """
    grid = model.size
    arrays = {
        "input": image,
        "theta": vector,
        "pixels": np.reshape(found.posed.pixels, (grid, grid, 2)),
        "landmarks": found.posed.landmarks,
        "flattened": found.flattened,
        "visibility": found.visibility,
        "vertices": model.unit * np.reshape(found.shape, (grid, grid, 3)),
    }
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def numbers_of(vector: Float[np.ndarray, " p"], found: Found) -> dict[str, Any]:
    """What the record tells of one photo.

    Angles are those of the project's camera frame (x right, y down, z forward), R = Rz
    Ry Rx: yaw > 0 turns the nose to the image's left, pitch > 0 down, roll > 0
    clockwise; degrees.
    """
    numbers = [float(number) for number in vector]
    pitch, yaw, roll = angles_deg(vector[:3])
    return {
        "theta": numbers,
        "pose": {
            "pitch_deg": pitch,
            "yaw_deg": yaw,
            "roll_deg": roll,
            "translation": numbers[3:5],
            "scale": math.exp(numbers[5]),
        },
        "visible": float(np.mean(found.visibility)),
    }


def angles_deg(rotation: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    """Pitch, yaw and roll, degrees, of an axis times an angle of the model's frame."""
    # The camera's frame has y and z the other way round.
    turned = np.asarray(rotation, np.float64) * [1.0, -1.0, -1.0]
    roll, yaw, pitch = Rotation.from_rotvec(turned).as_euler("ZYX", degrees=True)
    return float(pitch), float(yaw), float(roll)
