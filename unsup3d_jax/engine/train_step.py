"""One update: gradients summed over devices, optimizer, statistics. Pure."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, UInt8

from unsup3d_jax.engine import train_state
from unsup3d_jax.engine.train_state import Schedule, TrainState
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d import watch

# (params, constants, batch, weights, axis_name=) -> (loss, Outputs): see
# `model.objective`, whose losses are this device's share of the whole.
Objective = Callable[..., tuple[Float[Array, ""], Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        init: key -> {network name: parameters}.
        objective: see `Objective`.
        weights_at: step -> scheduled weights, traced.
        constants: arrays the objective needs beside parameters.
        make_source: devices -> iterator of batches with `state`, `restore` and
            `reorder`.
        validate: (parameters, step) -> numbers for the log; "total" chooses
            the best checkpoint.
        picture: (parameters, step) -> image for `pictures/`.
        depth_range: largest minus smallest depth, scene units; for the watch.
        learns_view: whether the viewpoint is learnt; for the watch.
    """

    init: Callable[[Key[Array, ""]], Any]
    objective: Objective
    weights_at: Callable[[Array], Any]
    constants: Any
    make_source: Callable[[Sequence[jax.Device]], Any]
    validate: Callable[[Any, int], Mapping[str, float]] | None = None
    picture: Callable[[Any, int], UInt8[np.ndarray, "h w 3"]] | None = None
    depth_range: float = 0.2
    learns_view: bool = True


def train_step(
    state: TrainState,
    batch: Batch,
    constants: dict,
    schedule: Schedule,
    *,
    objective: Objective,
    weights_at: Callable[[Array], Any],
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    skip: bool = False,
    grad_norm_max: float = 0.0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Applies one update.

    The objective returns each device's *share* of the loss of the whole batch,
    so gradients and terms are summed, never averaged, over `axis_name`: the
    update does not depend on how the batch is split, up to the rounding of a
    sum in another order.

    Args:
        state: donated by the caller.
        batch: this device's part of the global batch.
        constants: of `model.load_constants`.
        schedule: learning rates.
        objective, weights_at, optimizer, axis_name: static.
        skip: leave parameters and moments as they are where `finite` is 0; static.
        grad_norm_max: a larger gradient counts as not finite; 0: none does; static.

    Returns:
        The next state and scalar metrics, equal on every device: every loss
        term, `learning_rate`, `grad_norm` (before clipping, whole and by
        network), `finite` (1 or 0) and the statistics of `watch`.
    """
    weights = weights_at(state.step)

    def loss_of(params: Any) -> tuple[Array, Any]:
        return objective(params, constants, batch, weights, axis_name=axis_name)

    (loss, outputs), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    # One collective for everything that crosses devices.
    sums = (grads, loss, outputs.terms, watch.moments(outputs))
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    grads, loss, terms, moments = sums

    rates = train_state.network_rates(schedule, state.step)
    updates: Any
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # A rate of 0 leaves parameters bit-equal: p - 0 * u is p.
    params = {
        name: jax.tree.map(
            lambda p, u, rate=rates[name]: p - rate * u, params, updates[name]
        )
        for name, params in state.params.items()
    }

    norms = {name: optax.global_norm(g) for name, g in grads.items()}
    grad_norm = jnp.sqrt(sum(jnp.square(n) for n in norms.values()))
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if grad_norm_max > 0:
        finite &= grad_norm <= grad_norm_max
    if skip:
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
    metrics = {
        **terms,
        **watch.statistics(moments),
        "learning_rate": train_state.learning_rate(schedule, state.step),
        "learning_rate_depth": rates["depth"],
        "grad_norm": grad_norm,
        **{f"grad_norm_{name}": norm for name, norm in norms.items()},
        "finite": finite.astype(jnp.float32),
    }
    next_state = dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state
    )
    return next_state, metrics
