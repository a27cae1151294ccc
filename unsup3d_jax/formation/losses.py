"""Likelihoods of the reconstruction, Eqs. (3) and (7), and regularizers.

Every loss is a weighted mean whose denominator is summed over the devices of
`axis_name`: what one device returns is its *share*, and the shares of all
devices add up to the loss of the whole batch, to rounding. Means of per-device
means would differ, because each device masks another number of pixels.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Added to sigma (photometric) or 2 sigma^2 (perceptual) as in the authors'
# code; softplus underflows to 0 in float32 below about -100.
SIGMA_EPSILON = 1e-7


def weighted_mean_share(
    value: Float[Array, "*n"], weight: Float[Array, "*n"], *, axis_name: str | None
) -> Float[Array, ""]:
    """This device's share of sum(weight value) / sum(weight).

    The total weight is floored at a thousandth of a pixel, so an empty mask
    gives 0 and not NaN. No gradient flows through the weight.
    """
    weight = jax.lax.stop_gradient(weight)
    total = jnp.sum(weight)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    return jnp.sum(value * weight) / jnp.maximum(total, 1e-3)


def photometric(
    reconstruction: Float[Array, "b h w 3"],
    image: Float[Array, "b h w 3"],
    mask: Float[Array, "b h w"],
    conf_sigma: Float[Array, "b h w"] | None,
    *,
    drop_constants: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Laplacian negative log-likelihood, Eq. (3); plain L1 without confidence.

    Args:
        reconstruction, image: in [0, 1]; compared in [-1, 1], the scale that
            sigma refers to.
        mask: 1 where the reconstruction is valid.
        conf_sigma: sigma > 0 or None.
        drop_constants: leave out ln sqrt(2), as the authors' code does.

    Returns:
        This device's share of the mean over valid pixels and channels.
    """
    error = 2.0 * jnp.mean(jnp.abs(reconstruction - image), axis=-1)
    if conf_sigma is not None:
        sigma = conf_sigma + SIGMA_EPSILON
        error = math.sqrt(2.0) * error / sigma + jnp.log(sigma)
        if not drop_constants:
            error = error + 0.5 * math.log(2.0)
    return weighted_mean_share(error, mask, axis_name=axis_name)


def perceptual(
    features: Float[Array, "b hp wp c"],
    target: Float[Array, "b hp wp c"],
    mask: Float[Array, "b h w"],
    conf_sigma: Float[Array, "b hq wq"] | None,
    *,
    drop_constants: bool = True,
    sigma_squared: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
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
        This device's share of the mean over positions and channels.
    """
    b, hp, wp, _ = features.shape
    cell = mask.shape[1] // hp
    weight = mask.reshape(b, hp, cell, wp, cell).mean((2, 4))
    error = jnp.mean(jnp.square(features - target), axis=-1)
    if conf_sigma is not None:
        repeat = hp // conf_sigma.shape[1]
        sigma = jnp.repeat(jnp.repeat(conf_sigma, repeat, axis=1), repeat, axis=2)
        log_sigma = jnp.log(sigma + SIGMA_EPSILON)
        error = error / (2.0 * jnp.square(sigma) + SIGMA_EPSILON)
        error = error + (2.0 if sigma_squared else 1.0) * log_sigma
        if not drop_constants:
            error = error + 0.5 * math.log(2.0 * math.pi)
    return weighted_mean_share(error, weight, axis_name=axis_name)


def depth_smoothness(
    depth: Float[Array, "b h w"],
    *,
    depth_range: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Mean absolute difference of neighbours along both axes, over the range."""
    total = jnp.zeros(())
    for axis in (1, 2):
        step = jnp.abs(jnp.diff(depth, axis=axis)) / depth_range
        total = total + weighted_mean_share(
            step, jnp.ones_like(step), axis_name=axis_name
        )
    return total


def supervised_depth(
    depth: Float[Array, "b h w"],
    truth: Float[Array, "b h w"],
    mask: Float[Array, "b h w"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """L1 on ground-truth depth over the object: the baseline of Table 2."""
    return weighted_mean_share(jnp.abs(depth - truth), mask, axis_name=axis_name)


def light_prior(
    light: Float[Array, "b 5"],
    *,
    ambient_range: tuple[float, float],
    diffuse_range: tuple[float, float],
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Gaussian prior on light: u_s^2 + u_d^2 + l_x^2 + l_y^2. Not of the paper.

    u is ambient or diffuse light, scaled so that its range is [-1, 1]; a range of
    no width has no term. l_x^2 + l_y^2 is the squared sine of the angle between
    light and optical axis. Smooth everywhere, 0 for frontal light of medium
    strength, and at most 4.

    Args:
        light: ambient, diffuse, unit direction.
        ambient_range, diffuse_range: (least, largest); static.

    Returns:
        This device's share of the mean over images.
    """
    value = jnp.sum(jnp.square(light[:, 2:4]), axis=1)
    for strength, (low, high) in zip(
        (light[:, 0], light[:, 1]), (ambient_range, diffuse_range), strict=True
    ):
        if high > low:
            value += jnp.square((2.0 * strength - high - low) / (high - low))
    return weighted_mean_share(value, jnp.ones_like(value), axis_name=axis_name)
