"""A four-network stand-in for the model, for tests of the loop.

Same interface as `model.objective`: shares that sum over devices, masked
means with summed denominators, `Outputs`-like results. It compiles in a
fraction of a second.
"""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import default
from unsup3d_jax.engine import gradient_step, optimizer
from unsup3d_jax.engine.task import Task
from unsup3d_jax.formation import losses
from unsup3d_jax.formation.types import Batch, Factors
from unsup3d_jax.unsup3d.task import step_functions

SIZE = 8


@struct.dataclass
class Outputs:
    factors: Factors
    reconstruction: struct.PyTreeNode
    terms: dict


@struct.dataclass
class Plain:
    valid: jax.Array


@struct.dataclass
class Reconstruction:
    plain: Plain


def init(key):
    keys = jax.random.split(key, 4)
    names = ("depth", "albedo", "light", "view")
    return {
        n: {"w": 0.5 * jax.random.normal(k, (3,)), "b": jnp.zeros(3)}
        for n, k in zip(names, keys, strict=True)
    }


def objective(params, constants, batch, weights, *, axis_name=None):
    """Masked fit of the image; each image masks another number of pixels."""
    image = batch.image

    def apply(name):
        return jnp.tanh(image * params[name]["w"] + params[name]["b"])

    depth = 1.0 + 0.1 * apply("depth")[..., 0]
    albedo = apply("albedo")
    view = 0.5 * apply("view").mean((1, 2))
    light = apply("light").mean((1, 2))
    light = jnp.concatenate([light, jnp.zeros((len(image), 2))], axis=1)
    valid = image[..., 0] > image[..., 1].mean((1, 2), keepdims=True)
    mask = valid.astype(jnp.float32)
    error = jnp.abs(albedo * depth[..., None] - constants["target"]).mean(-1)
    fit = losses.mean_share(losses.Weighted(error, mask), axis_name=axis_name)
    size = jnp.square(view.sum(1) + light.sum(1) - 1.0)
    other = losses.mean_share(
        losses.Weighted(size, jnp.ones(len(image))), axis_name=axis_name
    )
    total = fit + weights * other
    factors = Factors(
        raw_depth=depth,
        canon_depth=depth,
        canon_albedo=albedo,
        light=light,
        view=jnp.concatenate([view, view], axis=1),
        conf_sigma=jnp.abs(albedo[..., 0]) + 0.1,
    )
    terms = {"total": total, "fit": fit, "other": other}
    return total, Outputs(factors, Reconstruction(Plain(valid)), terms)


class Source:
    """Batches that follow from (seed, position); leaves (devices, b/n, ...)."""

    def __init__(self, devices, batch_size, seed=0, kill_at=None, number=None):
        self.position, self._seed, self._reordered = 0, seed, 0
        self._shape = (len(devices), batch_size // len(devices), SIZE, SIZE, 3)
        mine = [d.process_index == jax.process_index() for d in devices]
        self._mine = np.flatnonzero(mine)
        self._kill_at, self._signal = kill_at, number or signal.SIGTERM
        mesh = Mesh(np.array(devices)[self._mine], ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))

    def __next__(self):
        if self.position == self._kill_at:
            os.kill(os.getpid(), self._signal)
        rng = np.random.default_rng([self._seed, self.position, self._reordered])
        self.position += 1
        image = rng.random(self._shape, np.float32)[self._mine]
        return Batch(image=jax.device_put(image, self._split))

    def state(self):
        return {"position": self.position, "reordered": self._reordered}

    def restore(self, state):
        self.position = state.get("position", 0)
        self._reordered = state.get("reordered", 0)

    def reorder(self, number):
        self._reordered = number


def weights_at(step):
    return jnp.where(step < 3, 1.0, 0.5)


def task(config, objective=objective, weights_at=weights_at, **changes):
    """A `Task`; other keyword arguments replace its fields or go to `Source`."""
    source_args = {k: changes.pop(k) for k in ("kill_at", "number") if k in changes}

    def start(key):
        return gradient_step.init(init(key), optimizer.make_optimizer(config))

    fields = {
        "init": start,
        "constants": {"target": jnp.full((3,), 0.5)},
        "make_source": lambda devices: Source(
            devices, config.train.batch_size, config.seed, **source_args
        ),
        **step_functions(config, objective, weights_at),
    }
    return Task(**(fields | changes))


def params(state):
    """The parameters of a `RunState` of this task."""
    return state.parts["params"]


def config(**train_keys):
    """Twelve steps of eight images, a line and a checkpoint every few steps."""
    c = default.get_config()
    c.train.steps, c.train.batch_size, c.train.learning_rate = 12, 8, 1e-2
    c.log.every, c.log.tensorboard, c.log.picture_every = 2, False, 0
    c.checkpoint.every, c.eval.every = 4, 0
    for key, value in train_keys.items():
        c.train[key] = value
    return c
