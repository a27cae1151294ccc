"""The paper's sums and the released program's conventions, for who compares with them.

Known only by behaviour, of the MATLAB program that Bas et al. (ICCVW 2017) released:

- theta is (r, t, log s, alpha) with t in pixels, x right and y up, and
  s = 0.99 ^ log s: a larger number is a smaller face. The paper says exp.
- Landmarks are vertices of the grid. Pixels of labels are counted from 1, the row is
  225 - y; the sampler puts the same point at up to one pixel from there.
- A normal sums three of a vertex's triangles at most: one assignment with repeated
  indices keeps the last.
- What is masked is 0, and a value that is 0 counts as masked, in each channel.
- Images are 0 to 255.

Not copied, since they are wrong: in its backward passes both members of a pair get a
gradient of the same sign, neither image loss divides its gradient by the count, and
that of the grid layer is divided by the grid's side where the forward pass divides by
half the image's. Ours are the derivatives of the forward passes.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unsup3d_jax.formation.losses import Weighted
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.stn3dmm import layers
from unsup3d_jax.stn3dmm.layers import Camera, Posed, Theta
from unsup3d_jax.stn3dmm.types import GridModel
from unsup3d_jax.stn3dmm.visibility import cell_triangles

IMAGE_SIZE = 224
_BASE = 0.99
# Weights of the release, in the order of its loss.
LANDMARK_WEIGHT, PRIOR_WEIGHT = 0.8998, 0.1
MULTI_VIEW_WEIGHT = SYMMETRY_WEIGHT = 1e-4
HEAD_RATES = 4.0, 8.0  # of the last layer's weights and bias, times all others'


def unit_scales() -> tuple[float, float, float]:
    """Ours for one of the release's: t_x, t_y and log s, but for where they begin.

    Half-image units a pixel, and the logarithm of 0.99. r and alpha are the same; an
    open model's expressions are in deviations, the release's are not.
    """
    half = IMAGE_SIZE / 2.0
    return 1.0 / half, 1.0 / half, math.log(_BASE)


def scale(log_scale: Float[AnyArray, "*b"]) -> Float[Array, "*b"]:
    """s = 0.99 ^ log s: pixels a model unit."""
    return jnp.exp(log_scale * jnp.log(jnp.asarray(_BASE, jnp.result_type(log_scale))))


def project(turned: Float[AnyArray, "n 3"], theta: Theta) -> Float[Array, "n 2"]:
    """Y = s X'_xy + t: pixels, x right, y up."""
    return scale(theta.log_scale) * turned[:, :2] + theta.translation


def to_grid(points: Float[AnyArray, "n 2"]) -> Float[Array, "n 2"]:
    """The sampler's (u, v) in [-1, 1], v down: 112 is half the image, whatever g."""
    half = IMAGE_SIZE / 2.0
    return (jnp.asarray(points) - half) / half * jnp.array([1.0, -1.0], points.dtype)


def sampler_pixels(points: Float[AnyArray, "n 2"]) -> Float[Array, "n 2"]:
    """Where the sampler looks, pixels from 0: (v + 1) / 2 of 223 down, u alike."""
    return (to_grid(points) + 1.0) / 2.0 * (IMAGE_SIZE - 1.0)


def label_pixels(points: Float[AnyArray, "*n 2"]) -> Float[Array, "*n 2"]:
    """Where a label or a drawn point of (x, y up) lies, pixels from 0: (x-1, 224-y)."""
    return jnp.stack([points[..., 0] - 1.0, IMAGE_SIZE - points[..., 1]], axis=-1)


def label_points(pixels: Float[AnyArray, "*n 2"]) -> Float[Array, "*n 2"]:
    """The inverse of `label_pixels`: (x, y up) as the release's labels have it."""
    return jnp.stack([pixels[..., 0] + 1.0, IMAGE_SIZE - pixels[..., 1]], axis=-1)


def posed(model: GridModel, theta: Theta) -> Posed:
    """`layers.posed` for a theta of the release, on its image of 224 pixels.

    Vertices are where its sampler looks, landmarks where its labels are drawn, which
    for the same point differ by up to one pixel.
    """
    vertices, landmarks = layers.shape(model, theta.alpha)
    vertices = layers.turn(vertices, theta.rotation)
    landmarks = layers.turn(landmarks, theta.rotation)
    return Posed(
        vertices=vertices,
        pixels=sampler_pixels(project(vertices, theta)),
        landmarks=label_pixels(project(landmarks, theta)),
        landmark_points=landmarks,
    )


def to_default(theta: Theta, camera: Camera) -> Theta:
    """The theta that shows to our orthographic camera what the release's sampler sees.

    Raises:
        ValueError: for a perspective camera.
    """
    if camera.perspective != 0.0:
        raise ValueError("the release's camera is orthographic; perspective must be 0.")
    half = IMAGE_SIZE / 2.0
    return Theta(
        rotation=theta.rotation,
        translation=(theta.translation - half) / half
        - jnp.asarray(camera.offset, theta.translation.dtype),
        log_scale=jnp.log(scale(theta.log_scale) / (half * camera.scale)),
        alpha=theta.alpha,
    )


def select(
    model: GridModel, indices: Int[AnyArray, " l"], flip: Int[AnyArray, " l"]
) -> GridModel:
    """The model with vertices of its grid for landmarks, as the selection layer has it.

    Args:
        model: whose own landmarks go.
        indices: of the grid's vertices, row-major, from 0; the released lists are
            from 1.
        flip: the landmark that each one becomes in the mirror, from 0.
    """
    return dataclasses.replace(
        model,
        landmark_mean=model.mean[indices],
        landmark_basis=model.basis[:, indices],
        landmark_flip=flip,
    )


def vertex_normals(vertices: Float[AnyArray, "n 3"], grid: int) -> Float[Array, "n 3"]:
    """Normals that sum at most one triangle a corner: the last one written.

    Triangles are written cell by cell, columns outside and rows inside, so that within
    the grid the first corner is left to the first triangle of cell (i, j), the second
    corner to the second triangle of cell (i-1, j), and the third corner to the first
    triangle of cell (i-1, j). At the upper, lower and right border other triangles
    come last.

    Args: as for `visibility.vertex_normals`.
    """
    first, second = cell_triangles(vertices, grid)
    total = jnp.zeros((grid, grid, 3), first.dtype)
    part_of = slice(None, -1), slice(1, None)
    for corner, (of_first, of_second, second_wins) in enumerate(
        (
            # Rows and columns of the vertices that have this corner in each triangle.
            # Of two, the one of the later column wins, and then that of the later row.
            ((0, 0), (1, 1), False),
            ((0, 1), (1, 0), True),
            ((1, 0), (0, 1), False),
        )
    ):
        layer = jnp.zeros_like(total)
        order = [(of_first, first), (of_second, second)]
        for (row, column), part in order if second_wins else order[::-1]:
            layer = layer.at[part_of[row], part_of[column]].set(part[:, :, corner])
        total = total + layer
    return total.reshape(-1, 3)


def facing(vertices: Float[AnyArray, "n 3"], grid: int) -> Bool[Array, "g g"]:
    """The release's visibility: n_z >= 0 of `vertex_normals`."""
    return (vertex_normals(vertices, grid)[:, 2] >= 0.0).reshape(grid, grid)


# --- losses ---------------------------------------------------------------------------


def landmark_sum(
    points: Float[AnyArray, "b l 2"],
    labels: Float[AnyArray, "b l 2"],
    confidence: Float[AnyArray, "b l"],
) -> Float[Array, " b"]:
    """sum_i c_i |L_i - l_i|^2, Eq. (1), for each image; paper and release alike.

    Both in pixels and of one convention. A label that is not finite counts 0, whatever
    its confidence. The release sums over the batch.
    """
    known = jnp.all(jnp.isfinite(labels), axis=-1)
    error = jnp.where(known[..., None], points - labels, 0.0)
    return jnp.sum(confidence * jnp.sum(jnp.square(error), axis=-1), axis=-1)


def prior_sum(alpha: Float[AnyArray, "b d"]) -> Float[Array, " b"]:
    """|alpha|^2, Eq. (4), for each image; paper and release alike."""
    return jnp.sum(jnp.square(alpha), axis=-1)


def symmetry_sum(
    flat: Float[AnyArray, "b g g c"], mask: Float[AnyArray, "b g g"]
) -> Float[Array, " b"]:
    """Eq. (2) as printed: the sum over texels, each pair twice, and channels."""
    weight = (mask * mask[:, :, ::-1])[..., None]
    return jnp.sum(weight * jnp.square(flat - flat[:, :, ::-1]), axis=(1, 2, 3))


def multi_view_sum(
    first: Float[AnyArray, "b g g c"],
    second: Float[AnyArray, "b g g c"],
    mask_first: Float[AnyArray, "b g g"],
    mask_second: Float[AnyArray, "b g g"],
) -> Float[Array, " b"]:
    """Eq. (3) as printed: the sum over texels and channels, for each pair."""
    weight = (mask_first * mask_second)[..., None]
    return jnp.sum(weight * jnp.square(first - second), axis=(1, 2, 3))


def symmetry_by_count(masked: Float[AnyArray, "b g g c"]) -> Weighted:
    """Eq. (2) as released: values that are 0 are masked, by channel.

    Args:
        masked: flattened faces times their masks.

    Returns:
        Of all values; the weighted mean over a batch is the release's loss, divided by
        the number of values that are not 0.
    """
    return _by_count(masked, masked[:, :, ::-1], masked)


def multi_view_by_count(masked: Float[AnyArray, "b g g c"]) -> Weighted:
    """Eq. (3) as released, for pairs (0, 1), (2, 3), ... of the batch.

    Args:
        masked: flattened faces times their masks, b even.

    Returns:
        Of all values; the weighted mean over a batch is the release's loss: each pair
        counts once, and is divided by the number of values of *both* members that are
        not 0.

    Raises:
        ValueError: for an odd batch.
    """
    if masked.shape[0] % 2:
        raise ValueError(f"pairs need an even batch, got {masked.shape[0]}.")
    first, second = masked[0::2], masked[1::2]
    # Half of the difference on each member: the sum over both is that of the pair.
    both = jnp.stack([first, second], axis=1)
    other = jnp.stack([second, first], axis=1)
    cost = _by_count(both, other, both)
    return Weighted(0.5 * cost.value, cost.weight)


def _by_count(
    a: Float[AnyArray, "*n"], b: Float[AnyArray, "*n"], counted: Float[AnyArray, "*n"]
) -> Weighted:
    # Where b is not 0 but a is, the value is not counted; where a is not 0 but b is,
    # it counts and costs nothing.
    cost = jnp.where((a != 0) & (b != 0), jnp.square(a - b), 0.0)
    return Weighted(cost, (counted != 0).astype(cost.dtype))
