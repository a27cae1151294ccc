"""Likelihoods of the reconstruction, Eqs. (3) and (7), and regularizers.

Every loss says what it costs where, and how much that place counts: a `Weighted` map,
or several whose means add up. `mean_share` alone makes a number of it, and alone
knows that a batch may lie on several devices.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from unsup3d_jax.formation.types import Leaf

# Added to sigma (photometric) or 2 sigma^2 (perceptual) as in the authors'
# code; softplus underflows to 0 in float32 below about -100.
SIGMA_EPSILON = 1e-7


@struct.dataclass
class Weighted:
    """A map whose weighted mean is a loss.

    Attributes:
        value: what each place costs.
        weight: how much it counts, 0 or more; no gradient flows through it.
    """

    value: Float[Leaf, "*n"]
    weight: Float[Leaf, "*n"]


# Several maps: the sum of their means.
Loss = Weighted | tuple[Weighted, ...]


def mean_share(loss: Loss, *, axis_name: str | None = None) -> Float[Array, ""]:
    """This device's share of sum(weight value) / sum(weight); the mean on one device.

    The denominator is summed over the devices of `axis_name`, so that the shares of
    all devices add up to the loss of the whole batch, to rounding. Means of
    per-device means would differ, because each device masks another number of
    pixels. The total weight is floored at a thousandth of a pixel, so an empty mask
    gives 0 and not NaN.

    Args:
        loss: of this device's images.
        axis_name: mapped axis over which the batch is split; None: it is not.
    """
    if isinstance(loss, tuple):
        total = jnp.zeros(())
        for part in loss:
            total = total + mean_share(part, axis_name=axis_name)
        return total
    weight = jax.lax.stop_gradient(loss.weight)
    total = jnp.sum(weight)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    return jnp.sum(loss.value * weight) / jnp.maximum(total, 1e-3)


def photometric(
    reconstruction: Float[Array, "b h w 3"],
    image: Float[Array, "b h w 3"],
    mask: Float[Array, "b h w"],
    conf_sigma: Float[Array, "b h w"] | None,
    *,
    drop_constants: bool = True,
) -> Weighted:
    """Laplacian negative log-likelihood, Eq. (3); plain L1 without confidence.

    Args:
        reconstruction, image: in [0, 1]; compared in [-1, 1], the scale that
            sigma refers to.
        mask: 1 where the reconstruction is valid.
        conf_sigma: sigma > 0 or None.
        drop_constants: leave out ln sqrt(2), as the authors' code does.

    Returns:
        Mean over channels, of valid pixels (b, h, w).
    """
    error = 2.0 * jnp.mean(jnp.abs(reconstruction - image), axis=-1)
    if conf_sigma is not None:
        sigma = conf_sigma + SIGMA_EPSILON
        error = math.sqrt(2.0) * error / sigma + jnp.log(sigma)
        if not drop_constants:
            error = error + 0.5 * math.log(2.0)
    return Weighted(error, mask)


def perceptual(
    features: Float[Array, "b hp wp c"],
    target: Float[Array, "b hp wp c"],
    mask: Float[Array, "b h w"],
    conf_sigma: Float[Array, "b hq wq"] | None,
    *,
    drop_constants: bool = True,
    sigma_squared: bool = False,
) -> Weighted:
    """Gaussian negative log-likelihood of encoder features, Eq. (7).

    Args:
        features, target: of the reconstruction and of the input.
        mask: pixel validity; averaged over each feature's cell and used as a
            fractional weight, as the authors' code does.
        conf_sigma: at a quarter of the image size, or None; repeated for
            layers of higher resolution.
        drop_constants: leave out ln sqrt(2 pi).
        sigma_squared: the normalisation as printed, 1/(sqrt(2 pi) sigma^2).
            A Gaussian has sigma, and so has the authors' code.

    Returns:
        Mean over channels, of positions (b, hp, wp).
    """
    hp = features.shape[1]
    weight = _pooled(mask, hp)
    error = jnp.mean(jnp.square(features - target), axis=-1)
    if conf_sigma is not None:
        repeat = hp // conf_sigma.shape[1]
        sigma = jnp.repeat(jnp.repeat(conf_sigma, repeat, axis=1), repeat, axis=2)
        log_sigma = jnp.log(sigma + SIGMA_EPSILON)
        error = error / (2.0 * jnp.square(sigma) + SIGMA_EPSILON)
        error = error + (2.0 if sigma_squared else 1.0) * log_sigma
        if not drop_constants:
            error = error + 0.5 * math.log(2.0 * math.pi)
    return Weighted(error, weight)


def feature_l1(
    features: Sequence[Float[Array, "b _ _ _"]],
    target: Sequence[Float[Array, "b _ _ _"]],
    mask: Float[Array, "b h w"],
) -> tuple[Weighted, ...]:
    """Absolute difference of several layers' features, each a mean of its own.

    GAN2Shape's (Pan et al., ICLR 2021) distance of a picture to what the generator
    makes of it, with the features of its discriminator.

    Args:
        features, target: maps of both pictures, from fine to coarse; their sides divide
            the mask's.
        mask: pixel validity; averaged over each feature's cell.

    Returns:
        Means over channels, of each layer's positions.
    """
    return tuple(
        Weighted(jnp.mean(jnp.abs(a - b), axis=-1), _pooled(mask, a.shape[1]))
        for a, b in zip(features, target, strict=True)
    )


def _pooled(mask: Float[Array, "b h w"], side: int) -> Float[Array, "b hp wp"]:
    """The mask averaged over the cells of a map whose height is `side`."""
    b, h, w = mask.shape
    cell = h // side
    return mask.reshape(b, side, cell, w // cell, cell).mean((2, 4))


def depth_smoothness(
    depth: Float[Array, "b h w"], *, depth_range: float
) -> tuple[Weighted, Weighted]:
    """Absolute difference of neighbours along both axes, over the range.

    Args:
        depth: scene units.
        depth_range: largest minus smallest depth, scene units.
    """
    down, right = (jnp.abs(jnp.diff(depth, axis=a)) / depth_range for a in (1, 2))
    return _alike(down), _alike(right)


def second_differences(
    x: Float[Array, "b h w *c"],
) -> tuple[Weighted, Weighted, Weighted, Weighted]:
    """Smoothness of GAN2Shape: |dxx| + |dxy| + |dyx| + |dyy|, each a mean of its own.

    Forward differences of forward differences, without padding, so that the maps
    are two columns, one row and one column, or two rows smaller than x (code of Pan
    et al., ICLR 2021, for depth and for diffuse shading). 0 for a plane.

    Args:
        x: maps, with channels or without; any unit.
    """
    right, down = jnp.diff(x, axis=2), jnp.diff(x, axis=1)
    return (
        _alike(jnp.abs(jnp.diff(right, axis=2))),
        _alike(jnp.abs(jnp.diff(right, axis=1))),
        _alike(jnp.abs(jnp.diff(down, axis=2))),
        _alike(jnp.abs(jnp.diff(down, axis=1))),
    )


def supervised_depth(
    depth: Float[Array, "b h w"],
    truth: Float[Array, "b h w"],
    mask: Float[Array, "b h w"],
) -> Weighted:
    """L1 on ground-truth depth over the object: the baseline of Table 2."""
    return Weighted(jnp.abs(depth - truth), mask)


def light_prior(
    light: Float[Array, "b 5"],
    *,
    ambient_range: tuple[float, float],
    diffuse_range: tuple[float, float],
) -> Weighted:
    """Gaussian prior on light: u_s^2 + u_d^2 + l_x^2 + l_y^2. Not of the paper.

    u is ambient or diffuse light, scaled so that its range is [-1, 1]; a range of
    no width has no term. l_x^2 + l_y^2 is the squared sine of the angle between
    light and optical axis. Smooth everywhere, 0 for frontal light of medium
    strength, and at most 4.

    Args:
        light: ambient, diffuse, unit direction.
        ambient_range, diffuse_range: (least, largest); static.

    Returns:
        One value an image, (b,).
    """
    value = jnp.sum(jnp.square(light[:, 2:4]), axis=1)
    for strength, (low, high) in zip(
        (light[:, 0], light[:, 1]), (ambient_range, diffuse_range), strict=True
    ):
        if high > low:
            value += jnp.square((2.0 * strength - high - low) / (high - low))
    return _alike(value)


def _alike(value: Array) -> Weighted:
    """A map whose places all count the same."""
    return Weighted(value, jnp.ones_like(value))
