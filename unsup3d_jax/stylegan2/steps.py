"""One step of the two players; pure.

In turn, as in the released code: the discriminator's loss, its R1 penalty where it is
due, the generator's loss, its path lengths where they are due, and the averages. A
penalty is an update of its own, `every` times as heavy, and the optimizers are slowed
down for it (lazy regularisation, Karras et al., CVPR 2020, appendix B). One program
holds all; what is not due is not run.

Every image draws its numbers from its place in the whole batch, and groups of the
minibatch statistics do not cross devices: the update does not depend on how the batch
is split, up to rounding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from unsup3d_jax.configuration import changed
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine.task import State, StepContext
from unsup3d_jax.nets import stylegan2 as nets
from unsup3d_jax.rasterizer.batching import like
from unsup3d_jax.stylegan2 import augment, losses
from unsup3d_jax.stylegan2.options import GROUP, Lazy, TrainOptions

PATH_DECAY = 0.01  # of the running mean of path lengths, a step that has them


@dataclasses.dataclass(frozen=True)
class Players:
    """The optimizers, without learning rates."""

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation


def lazy_optimizer(config: ConfigDict, lazy: Lazy) -> optax.GradientTransformation:
    """The config's Adam, its moments corrected for the updates that are added."""
    c, train = lazy.correction, config.train
    betas = {"train.beta1": train.beta1**c, "train.beta2": train.beta2**c}
    return optimizers.make_optimizer(changed(config, betas))


def step(
    state: State,
    batch: Any,
    context: StepContext,
    *,
    options: TrainOptions,
    players: Players,
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """Applies one update to both players; a `Task.step` once its keywords are given.

    Args:
        state: of `task.initial_parts`.
        batch: images in [0, 1].
        context: its schedule is an `optimizer.Schedule`, under "rates".

    Returns:
        The next state and scalars: the losses "d" and "g", their sum "total", mean
        signs of the logits, the penalties, "sample_spread" (see `_spread`), ...
    """
    axis, rows = context.axis_name, _rows(len(batch.image), context.axis_name)
    real = 2.0 * batch.image - 1.0
    rates = optimizers.network_rates(context.schedule["rates"], context.step)
    keys = jax.random.split(context.key, 5)
    probability = state["ada"]["probability"]

    def shown(key: Array, images: Array) -> Array:
        """As the discriminator is given images."""
        if options.augment.target > 0:
            images = augment.augment(_each(key, rows), images, probability)
        return _in_groups(images)

    def judged(params: Any, key: Array, images: Array) -> Array:
        return nets.discriminate(params, shown(key, images), options.gan)

    def descend(
        name: str, lazy: Lazy, params: Any, moments: Any, objective: Callable
    ) -> tuple[Any, Any, Array, Any]:
        """One update of a player; the loss, and what the objective leaves beside."""
        local = like(params, batch)
        (loss, beside), grads = jax.value_and_grad(objective, has_aux=True)(local)
        loss, beside, grads = _summed((loss, beside, grads), axis)
        optimizer = getattr(players, name)
        updates, moments = optimizer.update(grads, moments, params)
        rate = rates[name] * lazy.correction
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return params, moments, loss, (beside, optax.tree.norm(grads))

    count = jnp.float32(options.batch_size)
    penalties = dict(state["penalties"])

    # --- discriminator ---
    fake, _ = _generated(like(state["generator"], batch), keys[0], rows, options)

    def loss_d(params: Any) -> tuple[Array, Any]:
        seen, false = judged(params, keys[1], real), judged(params, keys[2], fake)
        loss = jnp.sum(losses.discriminator_loss(seen, false)) / count
        return loss, {
            "real_sign": jnp.sum(jnp.sign(seen)) / count,
            "fake_sign": jnp.sum(jnp.sign(false)) / count,
        }

    params_d, opt_d, value_d, (signs, norm_d) = descend(
        "discriminator", options.r1, state["discriminator"], state["opt_d"], loss_d
    )

    if options.r1.weight > 0:

        def loss_r1(params: Any) -> tuple[Array, Any]:
            penalty = jnp.sum(
                losses.gradient_penalty(lambda x: judged(params, keys[1], x), real)
            )
            weight = 0.5 * options.r1.weight * options.r1.every
            return weight * penalty / count, penalty / count

        def with_r1() -> Any:
            params, moments, _, (penalty, _) = descend(
                "discriminator", options.r1, params_d, opt_d, loss_r1
            )
            return params, moments, penalty

        is_due = context.step % options.r1.every == 0
        params_d, opt_d, penalties["r1"] = jax.lax.cond(
            is_due, with_r1, lambda: (params_d, opt_d, penalties["r1"])
        )

    # --- generator ---
    def loss_g(params: Any) -> tuple[Array, Any]:
        images, w = _generated(params, keys[3], rows, options)
        logits = judged(like(params_d, batch), keys[4], images)
        middle = jnp.sum(w, axis=0) / count
        loss = jnp.sum(losses.generator_loss(logits)) / count
        return loss, (middle, _moments(images), _moments(real))

    params_g, opt_g, value_g, ((middle, *spread), norm_g) = descend(
        "generator", options.path, state["generator"], state["opt_g"], loss_g
    )
    path_mean = state["path_mean"]
    if options.path.weight > 0:
        # Of half as many images, which have numbers of their own.
        half = max(len(batch.image) // 2, 1)
        some = _rows(half, axis)
        of_path = jnp.float32(half * options.batch_size // len(batch.image))
        path_key = jax.random.fold_in(keys[3], 1)

        def lengths_of(params: Any) -> Array:
            draw, image_key = jax.random.split(path_key)
            latent, noise, _ = _latents(params, draw, some, options)
            size = options.gan.image_size
            directions = jax.vmap(
                lambda key: jax.random.normal(key, (size, size, 3), jnp.float32)
            )(_each(image_key, some))

            def image_of(w: Array) -> Array:
                return nets.synthesise(params["synthesis"], w, noise, options.gan)

            return losses.path_lengths(image_of, latent, directions)

        def loss_path(params: Any) -> tuple[Array, Any]:
            lengths = lengths_of(params)
            now = _summed(jnp.sum(jax.lax.stop_gradient(lengths)) / of_path, axis)
            mean = path_mean + PATH_DECAY * (now - path_mean)
            penalty = jnp.sum(losses.path_penalty(lengths, mean)) / of_path
            weight = options.path.weight * options.path.every
            return weight * penalty, (penalty, jnp.sum(lengths) / of_path)

        def with_path() -> Any:
            params, moments, _, ((penalty, now), _) = descend(
                "generator", options.path, params_g, opt_g, loss_path
            )
            mean = path_mean + PATH_DECAY * (now - path_mean)
            return params, moments, penalty, mean

        is_due = context.step % options.path.every == 0
        params_g, opt_g, penalties["path"], path_mean = jax.lax.cond(
            is_due, with_path, lambda: (params_g, opt_g, penalties["path"], path_mean)
        )

    # --- averages ---
    decay = average_decay(options)
    ema = jax.tree.map(lambda a, p: p + decay * (a - p), state["ema"], params_g)
    mean_w = middle + decay * (state["mean_w"] - middle)
    ada = augment.adapted(
        state["ada"], signs["real_sign"], count, context.step, options.augment
    )
    norm = jnp.sqrt(jnp.square(norm_d) + jnp.square(norm_g))
    total = value_d + value_g
    metrics = {
        "total": total,
        "d": value_d,
        "g": value_g,
        **signs,
        "r1": penalties["r1"],
        "sample_spread": _spread(*spread),
        "grad_norm": norm,
        "learning_rate": rates["generator"],
        "finite": jnp.isfinite(total) & jnp.isfinite(norm),
    }
    if options.path.weight > 0:
        metrics |= {"path": penalties["path"], "path_mean": path_mean}
    if options.augment.target > 0:
        metrics["augmented"] = ada["probability"]
    return {
        "generator": params_g,
        "discriminator": params_d,
        "ema": ema,
        "opt_g": opt_g,
        "opt_d": opt_d,
        "path_mean": path_mean,
        "mean_w": mean_w,
        "ada": ada,
        "penalties": penalties,
    }, metrics


def average_decay(options: TrainOptions) -> float:
    """What the average keeps of itself in a step: half of it after `half_life`."""
    return 0.5 ** (options.batch_size / options.half_life)


# --- whose numbers an image has -------------------------------------------------------


def _rows(count: int, axis_name: str | None) -> Int[Array, " b"]:
    """Places in the whole batch of this device's images."""
    rows = jnp.arange(count)
    if axis_name is not None:
        rows += jax.lax.axis_index(axis_name) * count
    return rows


def _each(key: Key[Array, ""], rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """A key for each image."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _summed(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _in_groups(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Reordered so that four images in a row share their minibatch statistics.

    The discriminator's groups are images b/4 apart, and so would be others on another
    number of devices.
    """
    b = len(images)
    if b <= GROUP:
        return images
    order = jnp.arange(b).reshape(b // GROUP, GROUP).T.reshape(-1)
    return images[order]


# --- images ---------------------------------------------------------------------------


def _latents(
    params: Any, key: Key[Array, ""], rows: Int[Array, " b"], options: TrainOptions
) -> tuple[Float[Array, "b n s"], Any, Float[Array, "b s"]]:
    """W+, noise maps (None: there are none), and the w that is not mixed."""
    gan = options.gan

    def draw(key: Array) -> tuple[Array, Array, Array, Any]:
        one, two, cut, noise = jax.random.split(key, 4)
        maps = nets.random_noise(noise, gan, 1) if gan.noise else ()
        z = jax.random.normal(one, (2, gan.style), jnp.float32)
        mixed = jax.random.bernoulli(two, options.mixing)
        layer = jax.random.randint(cut, (), 1, gan.latents)
        return z, jnp.where(mixed, layer, gan.latents), two, maps

    z, cut, _, maps = jax.vmap(draw)(_each(key, rows))
    w = nets.map_latent(params["mapping"], z[:, 0], gan)
    latent = jnp.broadcast_to(w[:, None], (len(w), gan.latents, gan.style))
    if options.mixing > 0:
        other = nets.map_latent(params["mapping"], z[:, 1], gan)
        later = jnp.arange(gan.latents)[None] >= cut[:, None]
        latent = jnp.where(later[..., None], other[:, None], latent)
    noise = tuple(part[:, 0] for part in maps) if gan.noise else None
    return latent, noise, w


def _generated(
    params: Any, key: Key[Array, ""], rows: Int[Array, " b"], options: TrainOptions
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b s"]]:
    """Signed images and their w."""
    latent, noise, w = _latents(params, key, rows, options)
    images = nets.synthesise(params["synthesis"], latent, noise, options.gan)
    return images, w


def _moments(images: Float[Array, "b h w 3"]) -> tuple[Array, Array, Array]:
    """Sums over this device's images of their 4 x 4 means, and of their squares."""
    b, h, w, _ = images.shape
    small = jax.lax.stop_gradient(images)
    small = small.reshape(b, 4, h // 4, 4, w // 4, 3).mean((2, 4))
    return jnp.float32(b), jnp.sum(small, 0), jnp.sum(jnp.square(small), 0)


def _spread(fake: Any, real: Any) -> Float[Array, ""]:
    """How much samples of a batch differ from one another, over what images do.

    Root mean square over the pixels of 4 x 4 thumbnails of the standard deviation.
    """

    def variance(moments: Any) -> Array:
        n, total, squares = moments
        return jnp.mean(squares / n - jnp.square(total / n))

    ratio = variance(fake) / jnp.maximum(variance(real), 1e-8)
    return jnp.sqrt(jnp.maximum(ratio, 0.0))
