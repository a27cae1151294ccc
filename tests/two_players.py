"""A task as unlike the autoencoder's as methods to come: two players in turn.

A generator and a discriminator with an optimizer each, of which every step moves one; a
moving average of the generator; a scalar that follows what was seen; typed PRNG keys in
the state, one of them spent and renewed by each step; noise drawn from the step's key.
All arithmetic that crosses devices is exact (numbers of few bits), so that any number
of devices leads to the same bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_task

from unsup3d_jax.engine.task import Task

WIDTH = 4
_FIRST, _SECOND = optax.adam(0.05), optax.sgd(0.1, momentum=0.5)


def init(key):
    keys = jax.random.split(key, 3)
    generator = {"w": jax.random.normal(keys[0], (WIDTH,))}
    discriminator = {"w": jax.random.normal(keys[1], (WIDTH,)), "b": jnp.zeros(())}
    return {
        "generator": generator,
        "discriminator": discriminator,
        "optimizers": (_FIRST.init(generator), _SECOND.init(discriminator)),
        "average": generator,
        "pressure": jnp.zeros(()),
        "flags": {"turns": jnp.zeros((), jnp.int8), "ever": jnp.zeros((), bool)},
        "dice": keys[2],
    }


def _rounded(x):
    """To a multiple of 2^-10: sums of a few of them are exact in any order."""
    return jnp.round(x * 1024.0) / 1024.0


def step(state, batch, context):
    """Even steps move the discriminator, odd ones the generator."""
    image = batch.image
    rows = jnp.arange(len(image))
    if context.axis_name is not None:
        rows += jax.lax.axis_index(context.axis_name) * len(image)
    # Each image has its own noise, whatever device it lies on.
    draw = jax.vmap(lambda row: jax.random.fold_in(context.key, row))(rows)
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(draw)
    dice, spent = jax.random.split(state["dice"])
    kept = jax.random.bernoulli(spent, 0.75, (WIDTH,)).astype(jnp.float32)

    def loss_of(players, image, noise):
        generator, discriminator = players
        real = image.reshape(-1)[:WIDTH]
        fake = jnp.tanh(noise * generator["w"]) * kept
        margin = (real - fake) @ discriminator["w"]
        return jax.nn.softplus(-margin) + 0.1 * jnp.square(discriminator["b"] - margin)

    players = (state["generator"], state["discriminator"])
    each = jax.vmap(jax.value_and_grad(loss_of), in_axes=(None, 0, 0))
    # Image by image, then rounded, then summed: exactly, in any order.
    loss, grads = jax.tree.map(
        lambda x: _rounded(x).sum(0), each(players, image, noise)
    )
    if context.axis_name is not None:
        loss, grads = jax.lax.psum((loss, grads), context.axis_name)

    def turn(optimizer, grads, old, params):
        updates, new = optimizer.update(grads, old, params)
        return optax.apply_updates(params, updates), new

    first, second = state["optimizers"]
    generator, discriminator = state["generator"], state["discriminator"]
    moved = turn(_FIRST, jax.tree.map(jnp.negative, grads[0]), first, generator)
    judged = turn(_SECOND, grads[1], second, discriminator)
    is_first = context.step % 2 == 1

    def choose(new, old):
        return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), new, old)

    generator, first = choose(moved, (generator, first))
    discriminator, second = choose((discriminator, second), judged)
    average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, state["average"], generator)
    flags = state["flags"]
    next_state = {
        "generator": generator,
        "discriminator": discriminator,
        "optimizers": (first, second),
        "average": average,
        "pressure": 0.9 * state["pressure"] + 0.1 * loss,
        "flags": {
            "turns": flags["turns"] + jnp.int8(1),
            "ever": flags["ever"] | (loss > context.constants["limit"]),
        },
        "dice": dice,
    }
    metrics = {"total": loss, "pressure": next_state["pressure"]}
    return next_state, metrics | {"finite": jnp.isfinite(loss)}


def task(config, source=tiny_task.Source, **changes):
    """On the images of the tiny task's source."""
    fields = {
        "init": init,
        "step": step,
        "make_source": lambda devices: source(devices, config.train.batch_size),
        "constants": {"limit": jnp.float32(3.0)},
    }
    return Task(**(fields | changes))


def leaves(state):
    """Everything a `RunState` holds, as numpy arrays."""
    return [
        np.asarray(jax.random.key_data(x))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.asarray(x)
        for x in jax.tree.leaves(state)
    ]
