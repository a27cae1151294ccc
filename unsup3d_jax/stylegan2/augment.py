"""Augmentation of what a discriminator sees, as much as it needs: ADA.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS
2020: each transform is applied to an image with one probability, which is raised while
the discriminator tells real images too well. Left out: rotations by 90 degrees and the
flip of luminance, as faces are upright and lit. Departure: images are resampled
bilinearly, not through wavelets, so that a transformed one is a little softer.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unsup3d_jax.formation.sampling import sample_bilinear
from unsup3d_jax.stylegan2.options import AdaOptions

# Standard deviations; of factors, in powers of two.
_SCALE, _ASPECT, _SHIFT = 0.2, 0.2, 0.125
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.2, 0.5, 1.0
_JUMP = 0.125  # of the image's side, whole pixels, either way


def augment(
    keys: Key[Array, " b"],
    signed: Float[Array, "b h w 3"],
    probability: Float[Array, ""],
) -> Float[Array, "b h w 3"]:
    """Each image transformed by its own draws; with probability 0 bit-equal.

    Args:
        keys: one an image.
        signed: in [-1, 1]; what a transform brings in is the image mirrored at its
            border.
        probability: of each transform, in [0, 1].
    """
    b, h, w, _ = signed.shape
    if h != w:
        raise ValueError(f"images must be square, got {h} x {w}.")
    draws = jax.vmap(lambda key: jax.random.split(key))(keys)
    affine = jax.vmap(lambda key: affine_draw(key, probability, w))(draws[:, 0])
    colours = jax.vmap(lambda key: colour_draw(key, probability))(draws[:, 1])
    moved = _moved(signed, affine)
    mix = colours[:, :, :3]
    painted = jnp.einsum("bij,bhwj->bhwi", mix, moved, precision="highest")
    painted += colours[:, None, None, :, 3]
    return jnp.where(probability > 0, painted, signed)


def affine_draw(
    key: Key[Array, ""], probability: Float[Array, ""], size: int
) -> Float[Array, "3 3"]:
    """Takes places in the result to places in the image; pixels, about the middle."""
    keys = iter(jax.random.split(key, 16))

    def chosen(value: Array, neutral: float, share: Array = probability) -> Array:
        return jnp.where(jax.random.bernoulli(next(keys), share), value, neutral)

    def normal() -> Array:
        return jax.random.normal(next(keys))

    flip = chosen(jnp.float32(-1.0), 1.0, 0.5 * probability)
    jump = jax.random.uniform(next(keys), (2,), minval=-_JUMP, maxval=_JUMP)
    jump = chosen(jnp.round(jump * size), 0.0)
    scale = chosen(jnp.exp2(_SCALE * normal()), 1.0)
    # Before and after the change of aspect; either one with the chance that makes
    # `probability` of both.
    half = 1.0 - jnp.sqrt(1.0 - probability)
    angles = [
        chosen(jax.random.uniform(next(keys), (), jnp.float32, -math.pi, math.pi), 0.0,
               half)
        for _ in range(2)
    ]  # fmt: skip
    aspect = chosen(jnp.exp2(_ASPECT * normal()), 1.0)
    shift = jax.random.normal(next(keys), (2,)) * _SHIFT * size
    shift = chosen(shift, 0.0)
    steps = [
        _diagonal(flip, 1.0),
        _translation(jump),
        _diagonal(scale, scale),
        _rotation(angles[0]),
        _diagonal(aspect, 1.0 / aspect),
        _rotation(angles[1]),
        _translation(shift),
    ]
    result = jnp.eye(3)
    for matrix in steps:
        result = jnp.matmul(result, matrix, precision="highest")
    return result


def colour_draw(
    key: Key[Array, ""], probability: Float[Array, ""]
) -> Float[Array, "3 4"]:
    """What colours in [-1, 1] are multiplied with, and what is added."""
    keys = iter(jax.random.split(key, 16))

    def chosen(value: Array, neutral: float) -> Array:
        return jnp.where(jax.random.bernoulli(next(keys), probability), value, neutral)

    def normal() -> Array:
        return jax.random.normal(next(keys))

    brightness = chosen(_BRIGHTNESS * normal(), 0.0)
    contrast = chosen(jnp.exp2(_CONTRAST * normal()), 1.0)
    turn = jax.random.uniform(next(keys), (), jnp.float32, -math.pi, math.pi)
    hue = chosen(turn, 0.0)
    saturation = chosen(jnp.exp2(_SATURATION * normal()), 1.0)
    grey = jnp.ones(3) / math.sqrt(3.0)
    along = jnp.outer(grey, grey)
    across = jnp.eye(3) - along
    cross = jnp.cross(jnp.eye(3), grey)  # v -> grey x v, transposed
    turned = along + jnp.cos(hue) * across - jnp.sin(hue) * cross
    mixed = jnp.matmul(along + saturation * across, turned, precision="highest")
    return jnp.concatenate(
        [contrast * mixed, jnp.full((3, 1), 1.0) * (contrast * brightness)], axis=1
    )


def adapted(
    state: Mapping[str, Float[Array, ""]],
    real_sign: Float[Array, ""],
    images: Float[Array, ""],
    step: Int[Array, ""],
    options: AdaOptions,
) -> dict[str, Float[Array, ""]]:
    """The probability for the next step.

    Every `options.every` steps it moves by the share of `options.images` that was seen
    since: up while real images are told more surely than `options.target`, else down.

    Args:
        state: {"probability", "signs": sum over images since the last change,
            "images": how many}.
        real_sign: mean sign of the logits of this step's real images.
        images: of the step.
    """
    if options.target == 0:
        return dict(state)
    signs, seen = state["signs"] + real_sign * images, state["images"] + images
    direction = jnp.sign(signs / seen - options.target)
    moved = state["probability"] + direction * seen / options.images
    moved = jnp.clip(moved, 0.0, options.most)
    is_due = (step + 1) % options.every == 0
    return {
        "probability": jnp.where(is_due, moved, state["probability"]),
        "signs": jnp.where(is_due, 0.0, signs),
        "images": jnp.where(is_due, 0.0, seen),
    }


def _diagonal(x: Array | float, y: Array | float) -> Float[Array, "3 3"]:
    return jnp.diag(jnp.stack([jnp.asarray(v, jnp.float32) for v in (x, y, 1.0)]))


def _translation(by: Float[Array, "2"]) -> Float[Array, "3 3"]:
    return jnp.eye(3).at[:2, 2].set(by)


def _rotation(angle: Float[Array, ""]) -> Float[Array, "3 3"]:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.eye(3).at[:2, :2].set(jnp.array([[c, -s], [s, c]]))


def _moved(
    images: Float[Array, "b h w 3"], affine: Float[Array, "b 3 3"]
) -> Float[Array, "b h w 3"]:
    b, size, _, _ = images.shape
    middle = (size - 1) / 2.0
    line = jnp.arange(size, dtype=jnp.float32) - middle
    x, y = jnp.meshgrid(line, line)
    places = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    found = jnp.einsum("bij,hwj->bhwi", affine, places, precision="highest")
    return sample_bilinear(images, _mirrored(found[..., :2] + middle, size))


def _mirrored(place: Float[Array, "*n"], size: int) -> Float[Array, "*n"]:
    """Pixel coordinates beyond the outermost centres, brought back by mirrors there."""
    last = float(size - 1)
    inside = jnp.mod(place, 2.0 * last)
    return jnp.where(inside > last, 2.0 * last - inside, inside)
