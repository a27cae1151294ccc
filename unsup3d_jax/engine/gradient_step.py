"""The usual step: one loss, one optimizer, a learning rate for each network. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine.task import State, StepContext
from unsup3d_jax.rasterizer.batching import like


@struct.dataclass
class Losses:
    """What an objective leaves beside its loss.

    Attributes:
        terms: this device's share of every term, "total" among them: shares sum to
            the term of the whole batch.
        moments: sums over this device's images, for `gradient_step`'s `statistics`.
    """

    terms: dict[str, Float[Array, ""]]
    moments: dict[str, Float[Array, "..."]]


# (parameters {network: ...}, this device's part of the batch, context) -> (this
# device's share of the loss, `Losses`).
Objective = Callable[[Any, Any, StepContext], tuple[Float[Array, ""], Losses]]


def init(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state of `gradient_step` before the first update."""
    return {"params": params, "opt_state": optimizer.init(params)}


def gradient_step(
    state: State,
    batch: Any,
    context: StepContext,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    statistics: Callable[[Any], Mapping[str, Any]],
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """Applies one update; a `Task.step` once its keywords are given.

    The objective returns each device's *share* of the loss of the whole batch,
    so gradients and terms are summed, never averaged, over the devices: the
    update does not depend on how the batch is split, up to the rounding of a
    sum in another order.

    Args:
        state: of `init`.
        context: its schedule is an `optimizer.Schedule`, under "rates".
        objective, optimizer, statistics: static; `statistics` makes scalars of
            moments summed over all devices.

    Returns:
        The next state and scalar metrics: every loss term, the statistics,
        `learning_rate` (and that of each network that is ramped in), `grad_norm`
        (before clipping, whole and by network), and `finite`.
    """
    # Inside `jax.shard_map` the derivative with respect to what is the same on all
    # devices comes summed already; ours is summed once, with all else that crosses.
    params = like(state["params"], batch)

    def loss_of(params: Any) -> tuple[Array, Losses]:
        return objective(params, batch, context)

    (loss, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    # One collective for everything that crosses devices.
    sums = (grads, loss, losses.terms, losses.moments)
    if context.axis_name is not None:
        sums = jax.lax.psum(sums, context.axis_name)
    grads, loss, terms, moments = sums

    schedule: optimizers.Schedule = context.schedule["rates"]
    rates = optimizers.network_rates(schedule, context.step)
    updates: Any
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    # A rate of 0 leaves parameters bit-equal: p - 0 * u is p.
    next_params = {
        name: jax.tree.map(
            lambda p, u, rate=rates[name]: p - rate * u, params, updates[name]
        )
        for name, params in state["params"].items()
    }
    norms = {name: optax.tree.norm(g) for name, g in grads.items()}
    grad_norm = jnp.sqrt(sum(jnp.square(n) for n in norms.values()))
    metrics = {
        **terms,
        **statistics(moments),
        "learning_rate": optimizers.learning_rate(schedule, context.step),
        **{f"learning_rate_{name}": rates[name] for name in schedule.ramps},
        "grad_norm": grad_norm,
        **{f"grad_norm_{name}": norm for name, norm in norms.items()},
        "finite": jnp.isfinite(loss) & jnp.isfinite(grad_norm),
    }
    return {"params": next_params, "opt_state": opt_state}, metrics
