"""From theta to pixels: the grid generator of Bas et al., ICCVW 2017.

The vector theta is (r, t, log s, alpha), of length 6 + d, as in their Eq. (5).

Model frame: right-handed, x to the subject's left (the image's right), y up, z out of
the face, model units, the origin where the head turns. Posed frame: the same axes
after X' = R(r) X, the viewer at +z. Pixels: u right, v down, centres on integers, in a
square image whose half is (size - 1) / 2 pixels: "half-image units" below.

Functions take one example; callers `vmap`. Products that make positions are float32 in
full on every backend.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from unsup3d_jax.formation.geometry import rotate
from unsup3d_jax.formation.sampling import sample_bilinear
from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.stn3dmm.types import GridModel

POSE_SIZE = 6  # entries of theta before the coefficients
# Below this squared angle the series are exact even to float64 (what they leave out is
# 1e-20 of the first term), and the closed forms lose digits.
_SMALL_ANGLE2 = 1e-4
# exp(20) half images are out of sight of any loss; beyond, squares overflow.
_LARGEST_LOG_SCALE = 20.0
# Of the distance between the camera and the origin: what comes nearer to the camera,
# or lies behind it, is drawn as if it were this near, with no gradient in depth.
_NEAREST = 0.05


@struct.dataclass
class Theta:
    """What a face's appearance on the grid is made of.

    Attributes:
        rotation: (3,) axis times angle, radians.
        translation: (2,) half-image units, x right, y up.
        log_scale: () of the scale relative to the camera's.
        alpha: (d,) coefficients, standard deviations: identity, then expression.
    """

    rotation: Float[Leaf, "*b 3"]
    translation: Float[Leaf, "*b 2"]
    log_scale: Float[Leaf, "*b"]
    alpha: Float[Leaf, "*b d"]


@dataclasses.dataclass(frozen=True)
class Camera:
    """What stays the same for all images; static.

    Attributes:
        scale: half-image units a model unit at log_scale 0, for points at the depth of
            the origin.
        offset: (x right, y up), half-image units: where the origin is seen at t = 0.
        perspective: kappa = tan(fov / 2), fov the angle between the outermost pixel
            centres of a row; 0 is the scaled orthographic camera of the paper.
    """

    scale: float
    offset: tuple[float, float]
    perspective: float = 0.0


@struct.dataclass
class Posed:
    """A model turned and projected.

    Attributes:
        vertices: (g*g, 3) turned, model units, not scaled and not moved.
        pixels: (g*g, 2) (u, v) of the vertices, where the sampler looks.
        landmarks: (l, 2) (u, v) of the landmarks, pixels.
        landmark_points: (l, 3) landmarks turned, model units.
    """

    vertices: Float[Leaf, "*b n 3"]
    pixels: Float[Leaf, "*b n 2"]
    landmarks: Float[Leaf, "*b l 2"]
    landmark_points: Float[Leaf, "*b l 3"]


def split(vector: Float[AnyArray, " p"]) -> Theta:
    """The parts of (r, t, log s, alpha), Eq. (5).

    Args:
        vector: of length 6 + d.

    Raises:
        ValueError: if it has fewer than 6 entries.
    """
    if vector.shape[-1] < POSE_SIZE:
        raise ValueError(f"theta needs at least 6 entries, got {vector.shape[-1]}.")
    vector = jnp.asarray(vector)
    return Theta(vector[:3], vector[3:5], vector[5], vector[POSE_SIZE:])


def join(theta: Theta) -> Float[Array, " p"]:
    """The vector that `split` takes apart."""
    return jnp.concatenate(
        [
            theta.rotation,
            theta.translation,
            jnp.asarray(theta.log_scale)[None],
            theta.alpha,
        ]
    )


def mirror_matrix(
    coefficient_mirror: Float[AnyArray, "d d"],
) -> Float[np.ndarray, "p p"]:
    """Takes a theta vector to that of the mirrored image: u becomes size - 1 - u.

    For a camera that looks at the symmetric mean face in the middle, offset x = 0.

    Args:
        coefficient_mirror: of the `GridModel`; alpha of a mirrored face is M @ alpha.
    """
    of_shape = np.asarray(coefficient_mirror, np.float32)
    matrix = np.zeros((POSE_SIZE + len(of_shape),) * 2, np.float32)
    matrix[:POSE_SIZE, :POSE_SIZE] = np.diag([1, -1, -1, -1, 1, 1])
    matrix[POSE_SIZE:, POSE_SIZE:] = of_shape
    return matrix


def _cross_matrix(r: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """[r]x, with [r]x p = r x p."""
    x, y, z = r
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return jnp.stack([jnp.stack(row) for row in rows])


def rotation_matrix(rotation: Float[AnyArray, "3"]) -> Float[Array, "3 3"]:
    """R = I + A [r]x + B [r]x^2 of an axis times an angle (Rodrigues).

    A = sin(a) / a and B = (1 - cos(a)) / a^2 for a = |r|, by their series near 0, where
    the derivative with respect to r_i is [e_i]x exactly.

    Args:
        rotation: radians; any length.
    """
    r = jnp.asarray(rotation)
    x, y, z = r
    angle2 = x * x + y * y + z * z
    small = angle2 < _SMALL_ANGLE2
    # The branch that is not taken must have a finite derivative too.
    safe2 = jnp.where(small, 1.0, angle2)
    angle = jnp.sqrt(safe2)
    half = jnp.sin(0.5 * angle)
    a_series = 1.0 - angle2 / 6.0 * (1.0 - angle2 / 20.0 * (1.0 - angle2 / 42.0))
    b_series = 0.5 - angle2 / 24.0 * (1.0 - angle2 / 30.0 * (1.0 - angle2 / 56.0))
    a = jnp.where(small, a_series, jnp.sin(angle) / angle)
    # 1 - cos as twice the squared sine of the half angle keeps its digits.
    b = jnp.where(small, b_series, 2.0 * half * half / safe2)
    outer = r[:, None] * r[None, :]
    eye = jnp.eye(3, dtype=r.dtype)
    # [r]x^2 = r r^T - |r|^2 I.
    return eye + a * _cross_matrix(r) + b * (outer - angle2 * eye)


def rotation_log(matrix: Float[AnyArray, "3 3"]) -> Float[Array, "3"]:
    """Axis times angle of a rotation, the angle in [0, pi].

    Through the unit quaternion that has the largest divisor, so that angles near 0 and
    near pi keep their digits. At pi either sign of the axis is right, and there alone
    the derivative jumps.

    Args:
        matrix: a rotation.
    """
    m = jnp.asarray(matrix)
    diagonal = jnp.diagonal(m)
    trace = jnp.sum(diagonal)
    # Four times the squares of (w, x, y, z), which add up to 4: one of them is at
    # least 1, and only by its root is anything divided.
    squares = jnp.concatenate([(1.0 + trace)[None], 1.0 - trace + 2.0 * diagonal])
    skew = jnp.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    even = m + m.T
    # Row i: 4 q_i times the quaternion q.
    rows = jnp.concatenate(
        [
            jnp.concatenate([squares[:1], skew])[None],
            jnp.concatenate(
                [
                    skew[:, None],
                    even - jnp.diag(jnp.diagonal(even)) + jnp.diag(squares[1:]),
                ],
                axis=1,
            ),
        ]
    )
    best = jnp.argmax(squares)
    quaternion = rows[best] / (2.0 * jnp.sqrt(jnp.maximum(squares[best], 0.5)))
    # q and -q are one rotation; with w >= 0 the angle is at most pi.
    quaternion = jnp.where(quaternion[0] < 0.0, -quaternion, quaternion)
    w, axis = quaternion[0], quaternion[1:]
    sine2 = jnp.sum(axis * axis)
    small = sine2 < 0.25 * _SMALL_ANGLE2
    sine = jnp.sqrt(jnp.where(small, 1.0, sine2))
    # angle / sin(angle / 2), for a quaternion that may be short of unit length.
    ratio2 = sine2 / jnp.where(small, w * w, 1.0)
    series = 2.0 / jnp.where(small, w, 1.0) * (1.0 - ratio2 / 3.0 + ratio2**2 / 5.0)
    factor = jnp.where(small, series, 2.0 * jnp.arctan2(sine, w) / sine)
    return factor * axis


def shape(
    model: GridModel, alpha: Float[AnyArray, " d"]
) -> tuple[Float[Array, "n 3"], Float[Array, "l 3"]]:
    """X = mean + alpha . basis: vertices and landmarks of a face, model frame."""
    return (
        _combine(model.mean, model.basis, alpha),
        _combine(model.landmark_mean, model.landmark_basis, alpha),
    )


def _combine(
    mean: Float[AnyArray, "n 3"], basis: Float[AnyArray, "d n 3"], alpha: AnyArray
) -> Float[Array, "n 3"]:
    return jnp.asarray(mean) + jnp.tensordot(alpha, basis, axes=1, precision="highest")


def turn(
    points: Float[AnyArray, "n 3"], rotation: Float[AnyArray, "3"]
) -> Float[Array, "n 3"]:
    """X' = R(r) X: points of the model frame in the posed frame."""
    return rotate(jnp.asarray(points), rotation_matrix(rotation))


def scale_of(theta: Theta, camera: Camera) -> Float[Array, ""]:
    """s: half-image units a model unit, at the depth of the origin."""
    log_scale = jnp.minimum(theta.log_scale, _LARGEST_LOG_SCALE)
    return camera.scale * jnp.exp(log_scale)


def project(
    turned: Float[AnyArray, "n 3"], theta: Theta, camera: Camera, size: int
) -> Float[Array, "n 2"]:
    """Points of the posed frame to pixels.

    x_n = (s x' + t_x + offset_x) / (1 - kappa s z'), y_n likewise; u = half (1 + x_n)
    and v = half (1 - y_n), half = (size - 1) / 2. For kappa = 0 the scaled orthographic
    projection of the paper. Points nearer to the camera than a twentieth of its
    distance are drawn as if they were that far; log_scale counts up to 20.

    Args:
        turned: model units.
        theta: for its translation and scale.
        camera: static.
        size: pixels a side of the image; static.

    Returns:
        (u, v), pixels.

    Raises:
        ValueError: if size < 2.
    """
    if size < 2:
        raise ValueError(f"an image needs 2 pixels a side or more, got {size=}.")
    s = scale_of(theta, camera)
    centre = theta.translation + jnp.asarray(camera.offset, turned.dtype)
    plane = s * turned[:, :2] + centre
    if camera.perspective != 0.0:
        plane = plane / distance(turned, theta, camera)[:, None]
    half = (size - 1) / 2.0
    return half + half * plane * jnp.array([1.0, -1.0], turned.dtype)


def distance(
    turned: Float[AnyArray, "n 3"], theta: Theta, camera: Camera
) -> Float[Array, " n"]:
    """1 - kappa s z': along the optical axis, in distances of camera and origin.

    At least 0.05. All 1 for an orthographic camera.
    """
    nearness = camera.perspective * scale_of(theta, camera) * turned[:, 2]
    return jnp.maximum(1.0 - nearness, _NEAREST)


def posed(model: GridModel, theta: Theta, camera: Camera, *, image_size: int) -> Posed:
    """Shapes, turns and projects a model: all that theta says of an image.

    Args:
        model: d coefficients.
        theta: one example.
        camera: static.
        image_size: pixels a side; static.

    Raises:
        ValueError: if theta and model have different numbers of coefficients.
    """
    if theta.alpha.shape != model.basis.shape[:1]:
        raise ValueError(
            f"the model has {model.basis.shape[0]} coefficients, theta has "
            f"{theta.alpha.shape}."
        )
    points, landmarks = shape(model, theta.alpha)
    # Both at once: one product by R, one division.
    together = turn(jnp.concatenate([points, landmarks]), theta.rotation)
    pixels = project(together, theta, camera, image_size)
    n = points.shape[0]
    return Posed(
        vertices=together[:n],
        pixels=pixels[:n],
        landmarks=pixels[n:],
        landmark_points=together[n:],
    )


def landmark_shape(
    model: GridModel, alpha: Float[AnyArray, " d"]
) -> Float[Array, "l 3"]:
    """The landmarks of a face, model frame."""
    return _combine(model.landmark_mean, model.landmark_basis, alpha)


def project_landmarks(
    model: GridModel, theta: Theta, camera: Camera, *, image_size: int
) -> Float[Array, "l 2"]:
    """The landmarks of `posed` alone, pixels; for who has no use for the grid."""
    points = landmark_shape(model, theta.alpha)
    return project(turn(points, theta.rotation), theta, camera, image_size)


def flatten_image(
    images: Float[AnyArray, "b h w c"], pixels: Float[AnyArray, "b n 2"], grid: int
) -> Float[Array, "b g g c"]:
    """Images sampled at the projected vertices: flattened faces, not masked.

    Bilinear; what lies outside an image counts as 0, tap by tap.

    Args:
        images: any range.
        pixels: (u, v) of the grid's vertices, row-major.
        grid: g; static.

    Raises:
        ValueError: if n is not g * g, or the batch sizes differ.
    """
    if pixels.shape[1] != grid * grid:
        raise ValueError(
            f"a grid of {grid} x {grid} has {grid * grid} vertices, got "
            f"{pixels.shape[1]}."
        )
    return sample_bilinear(images, jnp.reshape(pixels, (-1, grid, grid, 2)))


def perspective_of(fov_deg: float) -> float:
    """kappa = tan(fov / 2) of a camera's field of view in degrees; 0 for 0.

    Raises:
        ValueError: if fov_deg lies outside [0, 180).
    """
    if not 0.0 <= fov_deg < 180.0:
        raise ValueError(f"need 0 <= fov_deg < 180, got {fov_deg}.")
    return math.tan(math.radians(fov_deg) / 2.0)
