"""The optimizers of a config's section `train`, and its learning rates."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from optax import contrib

from unsup3d_jax.formation.types import Leaf

ADAM_EPSILON = 1e-8  # authors' code, PyTorch's default
MUON_MOMENTUM = 0.95
# Root mean square of an update's entries, about Adam's, so that learning rates
# found for one serve the other (Liu et al., Muon is Scalable, 2025).
MUON_RMS = 0.2


@struct.dataclass
class Schedule:
    """Learning rates as arrays, so that no value of theirs is compiled in.

    Sweeps over these numbers share one compiled step, and a schedule cannot
    cause recompilation. Build it with `schedule_from_config`.

    Attributes:
        peak: learning rate after the warm-up.
        warmup: steps of the linear warm-up.
        decay_start, decay_end: the cosine falls from 1 to 0 between these
            steps; both infinite for a constant rate.
        scale: {network name: factor}.
        ramps: {network name: (start, full)} of networks that do not move before step
            `start` and are ramped in linearly until step `full`.
    """

    peak: Float[Leaf, ""]
    warmup: Float[Leaf, ""]
    decay_start: Float[Leaf, ""]
    decay_end: Float[Leaf, ""]
    scale: dict[str, Float[Leaf, ""]]
    ramps: dict[str, tuple[Float[Leaf, ""], Float[Leaf, ""]]]


def make_optimizer(
    config: ConfigDict, decays: Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Adam, Muon or SGD with the L2 penalty in the gradient; without learning rates.

    As the authors' PyTorch Adam does, weight decay adds `weight_decay * w` to
    the gradient *before* the moments (decoupled decay, AdamW, differs). The
    penalty is added after clipping: `clip_norm` bounds the gradient of the
    loss. The result is a descent direction of unit rate; `gradient_step`
    multiplies it by each network's learning rate.

    Args:
        config: reads `train`.
        decays: parameters -> whether the penalty counts each; None: all.
    """
    train = config.train
    clip = optax.clip_by_global_norm(train.clip_norm)
    return optax.chain(
        clip if train.clip_norm > 0 else optax.identity(),
        optax.add_decayed_weights(train.weight_decay, decays),
        _direction(train),
    )


def _direction(train: ConfigDict) -> optax.GradientTransformation:
    if train.optimizer == "muon":
        return _muon(train)
    if train.optimizer == "sgd":
        return optax.trace(train.beta1)
    return optax.scale_by_adam(b1=train.beta1, b2=train.beta2, eps=ADAM_EPSILON)


def _muon(train: ConfigDict) -> optax.GradientTransformation:
    """Momentum of each convolution kernel made orthogonal; Adam for the rest.

    optax's Muon, whose Adam looks ahead as its momentum does (Nesterov).

    A kernel (rows, columns, in, out) counts as a matrix of rows * columns * in
    by out, whose singular values all become about 1 (Jordan et al., 2024): no
    direction of a kernel waits because its gradient is small.
    """

    def kernels(params: Any) -> Any:
        as_matrix = contrib.MuonDimensionNumbers((-4, -3, -2), (-1,))
        return jax.tree.map(lambda p: as_matrix if p.ndim >= 4 else None, params)

    muon = contrib.muon(
        learning_rate=1.0,
        beta=MUON_MOMENTUM,
        ns_steps=4,
        preconditioning="aol",  # saves the fifth iteration
        adam_b1=train.beta1,
        adam_b2=train.beta2,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=kernels,
    )
    # Ours are directions to be subtracted, optax's to be added.
    return optax.chain(muon, optax.scale(-1.0))


def schedule_from_config(
    config: ConfigDict, *, ramps: Mapping[str, tuple[float, float]]
) -> Schedule:
    """Reads section `train`; every leaf is a float32 scalar.

    Args:
        ramps: see `Schedule`, in steps.
    """
    train = config.train
    cosine = train.schedule == "cosine"
    numbers = {
        "peak": train.learning_rate,
        "warmup": train.warmup_steps,
        "decay_start": train.constant_fraction * train.steps if cosine else jnp.inf,
        "decay_end": train.steps if cosine else jnp.inf,
        "scale": dict(train.lr_scale),
        "ramps": dict(ramps),
    }
    return Schedule(**jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), numbers))


def learning_rate(schedule: Schedule, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The common learning rate of the update that follows `step` updates.

    The warm-up rises linearly from 0 and reaches `peak` with update number
    `warmup`, so that the first update is not wasted on a rate of 0.
    """
    done = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum((done + 1.0) / jnp.maximum(schedule.warmup, 1.0), 1.0)
    # A constant rate has infinite bounds: the mask keeps inf - inf out.
    falls = jnp.isfinite(schedule.decay_start)
    start = jnp.where(falls, schedule.decay_start, 0.0)
    span = jnp.maximum(jnp.where(falls, schedule.decay_end, 1.0) - start, 1.0)
    share = jnp.clip((done - start) / span, 0.0, 1.0)
    cosine = jnp.where(falls, 0.5 * (1.0 + jnp.cos(jnp.pi * share)), 1.0)
    return schedule.peak * warm * cosine


def ramp(
    start: Float[Array, ""], full: Float[Array, ""], step: Int[Array, ""] | int
) -> Float[Array, ""]:
    """Factor in [0, 1] of a network's rate: 0 while frozen, then linear to 1."""
    done = jnp.asarray(step, jnp.float32)
    span = jnp.maximum(full - start, 1.0)
    return jnp.clip((done + 1.0 - start) / span, 0.0, 1.0)


def network_rates(
    schedule: Schedule, step: Int[Array, ""] | int
) -> dict[str, Float[Array, ""]]:
    """Learning rate of each network; exactly 0 while it is frozen."""
    rate = learning_rate(schedule, step)
    rates = {name: rate * scale for name, scale in schedule.scale.items()}
    for name, (start, full) in schedule.ramps.items():
        rates[name] = rates[name] * ramp(start, full, step)
    return rates
