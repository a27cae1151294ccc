"""What theta costs: Eqs. (1) to (4) of Bas et al., ICCVW 2017, and safeguards.

The default forms, which are means and do not depend on the sizes of image, grid and
batch; `compat` has the sums of the paper and of its release. Every loss is a
`Weighted` map, of which `formation.losses.mean_share` makes a number, on one device or
on many.

Image terms alone have a worthless minimum: a face that shrinks, slides out of the
image or hides itself costs nothing. `outside_image`, `scale_range` and
`visible_fraction` keep it from there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.formation.losses import Weighted
from unsup3d_jax.formation.types import AnyArray

# Added to a patch's deviation, so that noise of 1 % of the range is not blown up.
_CONTRAST_FLOOR = 0.01


def landmark(
    landmarks: Float[AnyArray, "b l 2"],
    target: Float[AnyArray, "b l 2"],
    *,
    image_size: int,
    confidence: Float[AnyArray, "b l"] | None = None,
    huber: float | None = None,
) -> Weighted:
    """Squared distance over the squared side of the image, Eq. (1) as a mean.

    Args:
        landmarks: projected, (u, v) in pixels.
        target: where they are; NaN for a landmark that is not known.
        image_size: pixels a side; static.
        confidence: c_i of the paper, 0 or more; 1 unless given.
        huber: the distance, as a share of the image's side, beyond which the cost grows
            linearly, its slope going on; None: nowhere; static.

    Returns:
        Of landmarks, (b, l); the unknown weigh 0.

    Raises:
        ValueError: unless huber > 0.
    """
    if huber is not None and not huber > 0.0:
        raise ValueError(f"a Huber bound must be above 0, got {huber}.")
    target = jnp.asarray(target)
    known = jnp.all(jnp.isfinite(target), axis=-1)
    # Before the difference: a NaN masked after it is a NaN of the gradient.
    error = jnp.where(known[..., None], landmarks - target, 0.0) / image_size
    value = jnp.sum(jnp.square(error), axis=-1)
    if huber is not None:
        value = huber_cost(value, huber)
    weight = known.astype(value.dtype)
    return Weighted(value, weight if confidence is None else weight * confidence)


def huber_cost(
    square: Float[Array, "*n"], bound: float | Float[AnyArray, ""]
) -> Float[Array, "*n"]:
    """d^2 up to d = bound > 0, then 2 bound d - bound^2, from d^2."""
    far = square > bound * bound
    distance = jnp.sqrt(jnp.where(far, square, 1.0))
    return jnp.where(far, bound * (2.0 * distance - bound), square)


def prior(alpha: Float[AnyArray, "b d"]) -> Weighted:
    """|alpha|^2 of coefficients in standard deviations, Eq. (4); (b,)."""
    return _alike(jnp.sum(jnp.square(alpha), axis=-1))


def symmetry(
    flat: Float[AnyArray, "b g g c"], mask: Float[AnyArray, "b g g"]
) -> Weighted:
    """Asymmetry of the flattened face where both sides are seen, Eq. (2) as a mean.

    Each pair counts twice, as in the paper, which a mean does not show.

    Args:
        flat: flattened faces, in [0, 1], not masked.
        mask: how far each texel counts, in [0, 1]: seen, and inside the image.

    Returns:
        Mean over channels of the squared difference, (b, g, g).
    """
    value = jnp.mean(jnp.square(flat - flat[:, :, ::-1]), axis=-1)
    mask = jnp.asarray(mask)
    return Weighted(value, mask * mask[:, :, ::-1])


def multi_view(
    flat: Float[AnyArray, "b k g g c"], mask: Float[AnyArray, "b k g g"]
) -> Weighted:
    """Difference of views of one person where both are seen, Eq. (3) as a mean.

    Args:
        flat: flattened faces of k >= 2 images of each person, in [0, 1], not masked.
        mask: how far each texel counts, in [0, 1].

    Returns:
        Mean over channels of the squared difference, for all k (k-1) / 2 pairs
        (b, pairs, g, g).

    Raises:
        ValueError: if k < 2.
    """
    k = flat.shape[1]
    if k < 2:
        raise ValueError(f"the multi-view loss needs 2 views or more, got {k}.")
    first, second = jnp.triu_indices(k, 1)
    value = jnp.mean(jnp.square(flat[:, first] - flat[:, second]), axis=-1)
    mask = jnp.asarray(mask)
    return Weighted(value, mask[:, first] * mask[:, second])


def local_contrast(
    flat: Float[AnyArray, "b g g c"],
    mask: Float[AnyArray, "b g g"],
    *,
    window: int,
) -> Float[Array, "b g g c"]:
    """A copy without the brightness and contrast of its surroundings.

    Light differs between views and between the sides of a face; what is compared
    should not. (V - mean) / (deviation + 0.01), over a square window and over what the
    mask lets through; mean by channel, one deviation for all channels.

    Args:
        flat: in [0, 1].
        mask: in [0, 1]; no gradient flows through it.
        window: texels a side, odd; static.

    Raises:
        ValueError: unless window is odd and at least 3.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 3, got {window}.")
    flat = jnp.asarray(flat)
    weight = jax.lax.stop_gradient(jnp.asarray(mask))[..., None]

    def around(x: Array) -> Array:
        # Only of a concrete 0 does JAX know that this is a sum, with a derivative.
        start, sizes = np.zeros((), x.dtype), (1, window, window, 1)
        return jax.lax.reduce_window(x, start, jax.lax.add, sizes, (1, 1, 1, 1), "SAME")

    total = jnp.maximum(around(weight), 1e-3)
    centred = flat - around(weight * flat) / total
    square = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    variance = around(weight * square) / total
    # The root has no derivative at 0, where the window is of one colour.
    deviation = jnp.sqrt(variance + _CONTRAST_FLOOR**2)
    return centred / (deviation + _CONTRAST_FLOOR)


def outside_image(pixels: Float[AnyArray, "b n 2"], *, image_size: int) -> Weighted:
    """How far vertices lie outside the image, squared, half-image units; (b, n)."""
    half = (image_size - 1) / 2.0
    beyond = jnp.maximum(jnp.abs(pixels / half - 1.0) - 1.0, 0.0)
    return _alike(jnp.sum(jnp.square(beyond), axis=-1))


def scale_range(log_scale: Float[AnyArray, " b"], *, limit: float = 0.7) -> Weighted:
    """How far log s lies outside [-limit, limit], squared; (b,)."""
    return _alike(jnp.square(jnp.maximum(jnp.abs(log_scale) - limit, 0.0)))


def visible_fraction(mask: Float[AnyArray, "b g g"], *, least: float = 0.3) -> Weighted:
    """How far the visible share of the grid falls short of `least`, squared; (b,).

    Unlike elsewhere the mask is what is judged: the gradient flows through it, which
    only a soft mask has.
    """
    seen = jnp.mean(mask, axis=(1, 2))
    return _alike(jnp.square(jnp.maximum(least - seen, 0.0)))


def _alike(value: Array) -> Weighted:
    """A map whose places all count the same."""
    return Weighted(value, jnp.ones_like(value))
