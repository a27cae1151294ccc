"""GAN inversion: the latent whose picture comes nearest to a given one.

The search of Karras et al., CVPR 2020 (appendix on projection to W), with two changes:
it starts from the nearest of many samples, not from their mean, and noise maps stay as
they are, because GAN2Shape (Pan et al., ICLR 2021) freezes them. One vector of W serves
all layers, which the offset rule of GAN2Shape wants.

`invert` knows no network: a `Model` brings it the functions it needs. `DISCRIMINATOR`
and `LPIPS` are those of a StyleGAN2 (`nets.stylegan2`), which differ in what they
compare.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from unsup3d_jax.formation import losses
from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.nets import stylegan2
from unsup3d_jax.nets.lpips import Lpips
from unsup3d_jax.nets.lpips import distance as lpips_distance


@dataclasses.dataclass(frozen=True)
class InversionOptions:
    """How the search goes; static.

    Attributes:
        samples: pictures of the generator among which the start is looked for.
        chunk: of them made at a time; divides `samples`.
        steps: of Adam.
        learning_rate: its largest.
        warm_up, ramp_down: shares of the steps in which it rises to that, linearly,
            and falls from it, by half a cosine.
        noise: standard deviation of what is added to the latent at first, over the
            spread of W (see `noise_scale`).
        noise_until: share of the steps after which nothing is added.
        pixel: weight of the mean squared error, signed units.
        feature: weight of `Model.distance`; 0 leaves it out.
        mean: weight of the pull to the mean latent: squared distance over the
            squared spread.
    """

    samples: int = 4096
    chunk: int = 128
    steps: int = 1000
    learning_rate: float = 0.1
    warm_up: float = 0.05
    ramp_down: float = 0.25
    noise: float = 0.05
    noise_until: float = 0.75
    pixel: float = 1.0
    feature: float = 1.0
    mean: float = 0.02


@dataclasses.dataclass(frozen=True)
class Model:
    """What the search asks of a generator; static, so of functions that compare equal.

    Attributes:
        sample: (parameters, key, count) -> latents of W (count, style).
        generate: (parameters, latents (b, style)) -> signed pictures (b, h, w, 3).
        describe: (parameters, signed pictures (b, h, w, 3)) -> any pytree of arrays
            (b, ...): what of a picture is compared.
        distance: (parameters, description, description, mask (b, h, w)) -> how far
            apart they are in the mean; a number, 0 for equal ones.
    """

    sample: Callable[[Any, PRNGKeyArray, int], Array]
    generate: Callable[[Any, Array], Array]
    describe: Callable[[Any, Array], Any]
    distance: Callable[[Any, Any, Any, Array], Array]


@struct.dataclass
class Inverted:
    """What the search found, a row a picture.

    Errors are root mean squares over the mask and the channels, signed units (pictures
    span [-1, 1]).

    Attributes:
        w: latents.
        signed: their pictures, not clamped.
        error: of these pictures.
        nearest_error: of the sample that the search began with.
        mean_error: of the mean of all samples' pictures: what knowing nothing of the
            photo costs.
    """

    w: Float[Leaf, "b style"]
    signed: Float[Leaf, "b h w 3"]
    error: Float[Leaf, " b"]
    nearest_error: Float[Leaf, " b"]
    mean_error: Float[Leaf, " b"]


def learning_rate(
    progress: Float[Array, ""], options: InversionOptions
) -> Float[Array, ""]:
    """Adam's learning rate, at a share of the steps in [0, 1]."""
    falling = jnp.minimum(1.0, (1.0 - progress) / options.ramp_down)
    rising = jnp.minimum(1.0, progress / options.warm_up)
    return options.learning_rate * rising * 0.5 * (1.0 - jnp.cos(math.pi * falling))


def noise_scale(
    progress: Float[Array, ""], spread: Float[Array, ""], options: InversionOptions
) -> Float[Array, ""]:
    """Standard deviation of each entry of what is added to the latent.

    Args:
        progress: share of the steps, [0, 1].
        spread: of W: root mean squared Euclidean distance of latents to their mean.

    Returns:
        `noise` times the spread at first, down to 0 by the square of what is left of
        the share `noise_until`.
    """
    left = jnp.maximum(0.0, 1.0 - progress / options.noise_until)
    return options.noise * spread * jnp.square(left)


def masked_rms(
    a: Float[AnyArray, "b h w 3"],
    b: Float[AnyArray, "b h w 3"],
    mask: Float[AnyArray, "b h w"],
) -> Float[Array, " b"]:
    """Root mean squared difference over a mask and the channels; 0 for an empty one."""
    squared = jnp.square(a - b).mean(-1)
    total = jnp.maximum(mask.sum((1, 2)), 1e-3)
    return jnp.sqrt((squared * mask).sum((1, 2)) / total)


@functools.partial(jax.jit, static_argnames=("model", "options"))
def invert(
    key: PRNGKeyArray,
    params: Any,
    signed: Float[AnyArray, "b h w 3"],
    model: Model,
    options: InversionOptions,
    *,
    mask: Float[AnyArray, "b h w"] | None = None,
) -> Inverted:
    """Finds a latent of W for each picture.

    Pictures share the samples and know nothing else of one another.

    Args:
        key: of samples and latent noise; the noise of a picture depends on its place
            in the batch.
        params: of the model; any pytree, an argument and no constant of the program.
        signed: pictures in [-1, 1], of the generator's size.
        model, options: static.
        mask: 1 where the picture counts; None: everywhere.

    Raises:
        ValueError: unless `chunk` divides `samples`.
    """
    if options.samples % options.chunk:
        raise ValueError(
            f"chunk must divide samples, got {options.chunk} and {options.samples}."
        )
    signed = jnp.asarray(signed)
    mask = jnp.ones(signed.shape[:3]) if mask is None else jnp.asarray(mask)
    of_samples, of_noise = jax.random.split(key)
    latents = model.sample(params, of_samples, options.samples)
    centre = latents.mean(0)
    spread = jnp.sqrt(jnp.square(latents - centre).sum(-1).mean())
    nearest, mean_picture = _nearest(params, latents, signed, mask, model, options)
    start = latents[nearest]

    def search(key: Array, w: Array, picture: Array, mask: Array) -> Array:
        return _search(key, params, w, picture, mask, (centre, spread), model, options)

    keys = jax.random.split(of_noise, len(signed))
    w = jax.vmap(search)(keys, start, signed, mask)
    found = model.generate(params, w)
    return Inverted(
        w=w,
        signed=found,
        error=masked_rms(found, signed, mask),
        nearest_error=masked_rms(model.generate(params, start), signed, mask),
        mean_error=masked_rms(
            jnp.broadcast_to(mean_picture, signed.shape), signed, mask
        ),
    )


def _nearest(
    params: Any,
    latents: Float[Array, "n style"],
    signed: Float[Array, "b h w 3"],
    mask: Float[Array, "b h w"],
    model: Model,
    options: InversionOptions,
) -> tuple[Array, Float[Array, "h w 3"]]:
    """Which sample is nearest to each picture, in pixels; and the samples' mean."""
    weight = jnp.broadcast_to(mask[..., None], signed.shape).reshape(len(signed), -1)
    wanted = signed.reshape(len(signed), -1) * weight

    def look(chunk: Array) -> tuple[Array, Array]:
        pictures = model.generate(params, chunk)
        flat = pictures.reshape(len(chunk), -1)
        # |m (a - b)|^2 without |m a|^2, which is the same for all samples.
        squared = weight @ jnp.square(flat).T - 2.0 * wanted @ flat.T
        return squared, pictures.mean(0)

    chunks = latents.reshape(-1, options.chunk, latents.shape[1])
    squared, means = jax.lax.map(look, chunks)
    squared = jnp.moveaxis(squared, 0, 1).reshape(len(signed), -1)
    return jnp.argmin(squared, axis=1), means.mean(0)


def _search(
    key: Array,
    params: Any,
    start: Float[Array, " style"],
    picture: Float[Array, "h w 3"],
    mask: Float[Array, "h w"],
    of_w: tuple[Array, Array],
    model: Model,
    options: InversionOptions,
) -> Float[Array, " style"]:
    """Adam on one latent."""
    centre, spread = of_w
    wanted = model.describe(params, picture[None]) if options.feature else None
    total = jnp.maximum(mask.sum(), 1e-3)

    def loss(w: Array, noise: Array) -> Array:
        made = model.generate(params, (w + noise)[None])
        squared = jnp.square(made[0] - picture).mean(-1)
        cost = options.pixel * (squared * mask).sum() / total
        if options.feature:
            seen = model.describe(params, made)
            apart = model.distance(params, seen, wanted, mask[None])
            cost = cost + options.feature * apart
        away = jnp.square(w - centre).sum() / jnp.square(spread)
        return cost + options.mean * away

    adam = optax.scale_by_adam()

    def step(index: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        w, moments = state
        progress = index / options.steps
        noise = jax.random.normal(jax.random.fold_in(key, index), w.shape)
        noise = noise * noise_scale(progress, spread, options)
        direction: Any
        direction, moments = adam.update(jax.grad(loss)(w, noise), moments)
        return w - learning_rate(progress, options) * direction, moments

    w, _ = jax.lax.fori_loop(0, options.steps, step, (start, adam.init(start)))
    return w


# --- of a StyleGAN2 -------------------------------------------------------------------


@struct.dataclass
class Weights:
    """The parameters of `DISCRIMINATOR` and `LPIPS`.

    Attributes:
        gan: generator and discriminator.
        lpips: None for `DISCRIMINATOR`.
    """

    gan: stylegan2.StyleGan
    lpips: Lpips | None = None


def _sample(weights: Weights, key: PRNGKeyArray, count: int) -> Array:
    gan = weights.gan
    z = jax.random.normal(key, (count, gan.options.style))
    return stylegan2.map_latent(gan.mapping, z, gan.options)


def _generate(weights: Weights, w: Array) -> Array:
    return stylegan2.generate(weights.gan, w)


def _features(weights: Weights, signed: Array) -> tuple[Array, ...]:
    gan = weights.gan
    return stylegan2.discriminator_features(gan.discriminator, signed, gan.options)


def _features_apart(weights: Weights, a: Any, b: Any, mask: Array) -> Array:
    return losses.mean_share(losses.feature_l1(a, b, mask))


def _as_it_is(weights: Weights, signed: Array) -> Array:
    return signed


def _lpips_apart(weights: Weights, a: Array, b: Array, mask: Array) -> Array:
    """LPIPS of the pictures, mid-grey where nothing counts."""
    if weights.lpips is None:
        raise ValueError("LPIPS needs `Weights.lpips`, got None.")
    shown = ((x * mask[..., None] + 1.0) / 2.0 for x in (a, b))
    return lpips_distance(weights.lpips, *shown).mean()


DISCRIMINATOR = Model(_sample, _generate, _features, _features_apart)
LPIPS = Model(_sample, _generate, _as_it_is, _lpips_apart)
