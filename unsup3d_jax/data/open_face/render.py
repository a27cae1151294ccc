"""Pictures of a batch of faces, with the truth about them.

The image is 2x2 supersampled; depth, mask and normal are those at the pixel
centre. One compiled program does a fixed number of faces; `render` feeds it.
Products are float32 in full: the half precision that accelerators prefer would
move a head by a tenth of a pixel, and the same seed must be the same face.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from unsup3d_jax.data.open_face import appearance, scene
from unsup3d_jax.data.open_face.appearance import Appearance, Numbers, Surface
from unsup3d_jax.data.open_face.model import FaceModel, Seeds
from unsup3d_jax.data.open_face.scene import Backdrop, Scene
from unsup3d_jax.formation import geometry
from unsup3d_jax.rasterizer import interpolate, rasterize

FAR = scene.DEPTH_RANGE[1]  # depth of pixels that show no face
SAMPLES_PER_CHUNK = 1 << 18  # bounds memory: about 64 MB of attributes
LANDMARK_TOLERANCE = 0.004  # metres behind the depth map and still visible


class Pictures(NamedTuple):
    """n renderings, h = w."""

    image: Numbers  # (n, h, w, 3) [0, 1]
    albedo: Numbers  # (n, h, w, 3) [0, 1], mean over the face's samples; else 0
    depth: Numbers  # (n, h, w) metres, FAR off the face
    mask: Numbers  # (n, h, w) bool
    normal: Numbers  # (n, h, w, 3) unit, z > 0: away from the camera; else 0
    keypoints: Numbers  # (n, 68, 3) u, v in pixels, depth
    keypoints_visible: Numbers  # (n, 68) bool


class Mesh(NamedTuple):
    """The parts of the model that rendering needs, as device arrays."""

    mean: Float[Array, "p 3"]
    basis: Float[Array, "k p 3"]
    faces: Array
    labels: Array
    corner_ids: Array  # (v, m) faces around each vertex, padded with f
    landmarks: Array
    rest: Float[Array, "v 3"]
    masks: Float[Array, "v 4"]
    occlusion: Float[Array, "v"]
    lash: Float[Array, "v"]
    membrane: Float[Array, "v"]


def make_mesh(model: FaceModel, basis: np.ndarray) -> Mesh:
    around: list[list[int]] = [[] for _ in range(len(model.rest))]
    for i, face in enumerate(model.faces):
        for vertex in face:
            around[vertex].append(i)
    width = max(len(a) for a in around)
    padded = np.full((len(around), width), len(model.faces), np.int32)
    for i, ids in enumerate(around):
        padded[i, : len(ids)] = ids
    names = "rest masks occlusion lash membrane faces labels landmarks mean".split()
    return Mesh(
        basis=jnp.asarray(basis),
        corner_ids=jnp.asarray(padded),
        **{name: jnp.asarray(getattr(model, name)) for name in names},
    )


def head_points(mesh: Mesh, coefficients: Float[Array, "n k"]):
    """Heads and eye centres (n, v + 2, 3), metres, model frame."""
    flat = coefficients @ mesh.basis.reshape(len(mesh.basis), -1)
    return mesh.mean + flat.reshape(len(coefficients), *mesh.mean.shape)


def vertex_normals(mesh: Mesh, points: Float[Array, "v 3"]) -> Float[Array, "v 3"]:
    """Outward normals, weighted by the area of the faces around a vertex.

    A gather over padded neighbours: sums in a fixed order, and no scatter.
    """
    a, b, c = (points[mesh.faces[:, i]] for i in range(3))
    normal = jnp.cross(b - a, c - a)
    normal = jnp.concatenate([normal, jnp.zeros((1, 3))])
    total = normal[mesh.corner_ids].sum(1)
    # A vertex of the smallest faces has a normal of about 1e-7 m^2.
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-14)


def to_pixels(points: Float[Numbers, "*v 3"], size: int) -> Float[Array, "*v 3"]:
    """Camera-space points to (u, v, depth), as `geometry.project`."""
    pixels = geometry.project(jnp.asarray(points), (size, size), fov_deg=scene.FOV_DEG)
    return jnp.concatenate([pixels, points[..., 2:]], axis=-1)


class Heads(NamedTuple):
    """Shapes with hair, metres, model frame."""

    vertices: Float[Array, "n v 3"]
    normals: Float[Array, "n v 3"]
    eyes: Float[Array, "n 2 3"]  # centres, left and right


@jax.jit
@jax.default_matmul_precision("highest")
def shape_heads(
    mesh: Mesh, coefficients: Float[Array, "n k"], look: Appearance
) -> Heads:
    points = head_points(mesh, coefficients)
    head, eyes = points[:, :-2], points[:, -2:]
    normals = jax.vmap(functools.partial(vertex_normals, mesh))(head)
    cover = jax.vmap(appearance.hair_cover, in_axes=(0, None, None))(
        look, mesh.rest, mesh.masks[:, 2]
    )
    head = head + (look.hair_volume[:, None] * cover)[..., None] * normals
    return Heads(head, jax.vmap(functools.partial(vertex_normals, mesh))(head), eyes)


def to_camera(turn: Float[Array, "n 3 3"]) -> Float[Array, "n 3 3"]:
    """What directions of the model's frame, as rows, are multiplied by."""
    flip = jnp.asarray([1.0, -1.0, -1.0])
    return jnp.swapaxes(turn, 1, 2) * flip[:, None]


def fixed_attributes(mesh: Mesh) -> Float[Array, "v 9"]:
    """What `surface_of` reads of each vertex that is the same of every head."""
    return jnp.concatenate(
        [
            mesh.rest,
            mesh.masks[:, :3],
            jnp.stack([mesh.occlusion, mesh.lash, mesh.membrane], axis=1),
        ],
        axis=1,
    )


def surface_of(
    place: Float[Array, "p 2"],
    broad: Float[Array, "p"],
    fixed: Float[Array, "p 9"],
    label: Int[Array, "p"],
    eyes: Float[Array, "2 3"],
) -> Surface:
    """What is painted of one head, at points between its vertices.

    Args:
        place: x and y on this head, model frame, metres.
        broad: of `appearance.broad_noise`.
        fixed: of `fixed_attributes`.
        label: of the face; 0 for none.
        eyes: centres, left and right.
    """
    eye = jnp.where((label == 1)[:, None], eyes[None, 0, :2], eyes[None, 1, :2])
    return Surface(
        rest=fixed[:, :3],
        eye_offset=place - eye,
        label=label,
        lips=fixed[:, 3],
        eyelids=fixed[:, 4],
        ears=fixed[:, 5],
        occlusion=fixed[:, 6],
        lash=fixed[:, 7],
        membrane=fixed[:, 8],
        broad_noise=broad,
    )


@functools.partial(jax.jit, static_argnames="size")
@jax.default_matmul_precision("highest")
def render_chunk(
    mesh: Mesh,
    heads: Heads,
    look: Appearance,
    where: Scene,
    turn: Float[Array, "n 3 3"],
    *,
    size: int,
) -> Pictures:
    """Renders n faces at once; `turn` is the rotation of each view."""
    head, normals, eyes = heads
    centre = jnp.asarray([0.0, 0.0, scene.CENTRE_DEPTH])
    into_camera = to_camera(turn)
    camera = where.scale[:, None, None] * head @ into_camera
    camera = camera + (where.view[:, None, 3:] + centre)
    # The project's normals point away from the camera, into the surface.
    inward = -(normals @ into_camera)

    broad = jax.vmap(appearance.broad_noise, in_axes=(0, None))(look, mesh.rest)
    fixed = fixed_attributes(mesh)
    varying = jnp.concatenate([head[..., :2], inward, broad[..., None]], axis=-1)
    attributes = jnp.concatenate(
        [varying, jnp.broadcast_to(fixed, (len(varying), *fixed.shape))], axis=-1
    )

    # Samples at u = X +- 1/4 are the pixel centres of an image of twice the size.
    screen = to_pixels(camera, size)
    fine_screen = screen * jnp.asarray([2.0, 2.0, 1.0]) + jnp.asarray([0.5, 0.5, 0.0])
    fragments = rasterize(fine_screen, mesh.faces, (2 * size, 2 * size))
    values = interpolate(attributes, mesh.faces, fragments)
    values = values.reshape(len(values), -1, values.shape[-1])
    face = fragments.face_index.reshape(len(values), -1)
    label = jnp.where(face < 0, 0, mesh.labels[face])
    surface = jax.vmap(surface_of)(
        values[..., :2], values[..., 5], values[..., 6:], label, eyes
    )
    drawn = (face >= 0).astype(jnp.float32)
    albedo = jax.vmap(appearance.paint)(look, surface) * drawn[..., None]
    shading = jax.vmap(shade)(where.light, face_away(values[..., 2:5]))

    def pool(samples):  # (n, 4 h w, ...) -> (n, h, w, ...), sum over 2x2
        tail = samples.shape[2:]
        grid = samples.reshape(len(samples), size, 2, size, 2, *tail)
        return grid.sum((2, 4))

    coverage = pool(drawn)[..., None] / 4
    lit = pool(jnp.clip(albedo * shading[..., None], 0.0, 1.0)) / 4
    backdrop = jax.vmap(functools.partial(paint_backdrop, size=size))(where.backdrop)
    image = lit + (1 - coverage) * backdrop

    centred = rasterize(screen, mesh.faces, (size, size))
    mask = centred.face_index >= 0
    normal = face_away(interpolate(inward, mesh.faces, centred))
    keypoints = screen[:, mesh.landmarks]
    # Poses are chosen by vertices, so a silhouette may graze the limit (by < 1 mm);
    # below it, depth < FAR is the mask without exception.
    depth = jnp.where(mask, jnp.minimum(centred.depth, FAR - 1e-4), FAR)
    return Pictures(
        image=jnp.clip(image, 0.0, 1.0),
        albedo=pool(albedo) / jnp.maximum(4 * coverage, 1.0),
        depth=depth,
        mask=mask,
        normal=jnp.where(mask[..., None], normal, 0.0),
        keypoints=keypoints,
        keypoints_visible=jax.vmap(visible)(keypoints, depth),
    )


def face_away(normal: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Unit normals with z > 0: interpolated ones overshoot at silhouettes."""
    z = jnp.maximum(normal[..., 2:], 1e-2)
    normal = jnp.concatenate([normal[..., :2], z], axis=-1)
    return normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)


def shade(
    light: Float[Numbers, "5"], normal: Float[Array, "*n 3"]
) -> Float[Array, "*n"]:
    """Lambertian shading, k_s + k_d max(0, <n, l>)."""
    return light[0] + light[1] * jnp.maximum(normal @ light[2:], 0.0)


def visible(
    keypoints: Float[Array, "68 3"], depth: Float[Array, "h w"]
) -> Bool[Array, "68"]:
    """Whether keypoints lie in the image and not behind the nearest pixel's depth."""
    size = depth.shape[0]
    column, row = (jnp.round(keypoints[:, i]).astype(jnp.int32) for i in range(2))
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    nearest = depth[jnp.clip(row, 0, size - 1), jnp.clip(column, 0, size - 1)]
    return inside & (keypoints[:, 2] < nearest + LANDMARK_TOLERANCE)


def paint_backdrop(b: Backdrop, *, size: int) -> Float[Array, "h w 3"]:
    """A gradient, fractal or coloured noise, warped stripes or blobs."""
    axis = jnp.linspace(-1.0, 1.0, size)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="xy"), axis=-1)

    # Three channels of four octaves, in one lookup: far quicker to compile.
    octaves, gains = (
        np.asarray([1.0, 2.1, 4.3, 8.7], np.float32),
        np.asarray([50, 27, 15, 8], np.float32) / 100,
    )
    flat = b.zoom * octaves[:, None, None, None] * grid
    planes = jnp.broadcast_to(
        7.3 * jnp.arange(3.0)[:, None, None, None, None], (3, *flat.shape[:-1], 1)
    )
    flat = jnp.broadcast_to(flat, (3, *flat.shape))
    points = jnp.concatenate([flat, planes], axis=-1) + b.offset
    waves = jnp.einsum("coij,o->ijc", appearance.value_noise(points), gains)
    along = grid @ b.direction
    ramp = jnp.clip(0.5 + 0.45 * along + 0.1 * waves[..., 0], 0.0, 1.0)
    cloud = jnp.clip(0.5 + 1.3 * waves[..., 0], 0.0, 1.0)
    phase = b.frequency * (along + 0.25 * b.warp * waves[..., 1])
    stripe = appearance.smoothstep(-0.25, 0.25, jnp.sin(phase))
    spots = appearance.smoothstep(-0.04, 0.04, waves[..., 2])
    first, second, third = b.colors
    mixes = jnp.stack([ramp, cloud, cloud, stripe, spots], axis=-1)
    t = (mixes @ b.weights)[..., None]
    color = first + t * (second - first)
    color += b.weights[2] * b.tint * waves
    color += 0.35 * jnp.maximum(waves[..., 1:2], 0.0) * (third - color)
    grain_points = jnp.concatenate(
        [(size - 1) / 2 * grid, jnp.zeros((size, size, 1))], axis=-1
    )
    grain = appearance.value_noise(grain_points + jnp.round(b.offset))
    return jnp.clip(color + b.grain * grain[..., None], 0.0, 1.0)


def chunk_size(size: int) -> int:
    """How many faces of a size are rendered at once."""
    return max(1, SAMPLES_PER_CHUNK // (2 * size) ** 2)


class Placed(NamedTuple):
    """Heads before the camera, padded to one size of batch."""

    heads: Heads  # numpy
    look: Appearance
    where: Scene


def place(
    mesh: Mesh,
    seeds: Seeds,
    coefficients: np.ndarray,
    look: Appearance,
    *,
    size: int,
    pose: str,
) -> Placed:
    """Shapes at most chunk_size(size) heads and draws where each of them is.

    The batch is padded to that fixed size: one program is compiled, and a face is
    the same in whatever batch it is made.
    """
    count = len(seeds.pose)
    if not 0 < count <= chunk_size(size):
        raise ValueError(f"need 1..{chunk_size(size)} faces at a time, got {count}.")
    rows = np.minimum(np.arange(chunk_size(size)), count - 1)
    seeds, coefficients, look = jax.tree.map(
        lambda x: x[rows], (seeds, coefficients, look)
    )
    heads = jax.tree.map(np.asarray, shape_heads(mesh, coefficients, look))
    where = scene.sample_scenes(seeds, heads.vertices, heads.normals, pose=pose)
    return Placed(heads, look, where)


def render(
    mesh: Mesh,
    seeds: Seeds,
    coefficients: np.ndarray,
    look: Appearance,
    *,
    size: int,
    pose: str,
) -> tuple[Pictures, Scene]:
    """Places and renders at most chunk_size(size) faces, as numpy arrays."""
    count = len(seeds.pose)
    heads, look, where = place(mesh, seeds, coefficients, look, size=size, pose=pose)
    turn = scene.rotation(where.view.astype(np.float64)).astype(np.float32)
    pictures = render_chunk(mesh, heads, look, where, turn, size=size)
    return jax.tree.map(lambda x: np.asarray(x)[:count], (pictures, where))
