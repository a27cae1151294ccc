"""Several seeds of one run, trained as one: a task whose parameters are stacked.

Every parameter gets a leading seed axis, and the loss is the sum over seeds, so
that each seed's gradient is its own and is clipped by its own norm; Adam and weight
decay act on every number by itself, Muon on every kernel of every seed. Each seed
keeps its initial parameters and its order of images, so it learns what it would learn
alone, to the rounding of another program. The loop, checkpoints and resumption are
those of `loop.fit`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.engine import loop, train_step
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.train_state import TrainState
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d.model import Outputs


def check_config(config: ConfigDict) -> None:
    """Refuses what would tie the seeds together.

    Raises:
        UserError: naming the key.
    """
    for key, value in (("grad_norm_max", 0.0), ("rollbacks", 0), ("nan", "stop")):
        if config.train[key] != value:
            raise UserError(
                f"tables.together needs train.{key} = {value}, got "
                f"{config.train[key]}: it would let one seed change another."
            )


def fit(
    config: ConfigDict,
    tasks: Sequence[train_step.Task],
    workdir: Path,
    *,
    devices: Sequence[jax.Device],
    interrupts: Interrupts,
) -> TrainState:
    """`loop.fit` of all seeds at once, with stacked parameters.

    Args:
        config: of the first seed; the others are seed + 1, seed + 2, ...
        tasks: of each seed's config.
        workdir, devices, interrupts: as of `loop.fit`.

    Raises:
        UserError: of `check_config`, and as `loop.fit`.
        Diverged: if any seed does.
    """
    check_config(config)
    seeds = range(config.seed, config.seed + len(tasks))
    task = stacked_task(tasks, seeds, clip_norm=config.train.clip_norm)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.clip_norm = 0.0  # the task does it, seed by seed
    return loop.fit(config, task, workdir, devices=devices, interrupts=interrupts)


class StackedSource:
    """One batch of every seed a step: leaves (devices, seeds, b/devices, ...)."""

    def __init__(self, sources: Sequence[Any]):
        self._sources = list(sources)
        self._stack = jax.jit(
            lambda batches: jax.tree.map(lambda *x: jnp.stack(x, axis=1), *batches)
        )

    def __iter__(self) -> "StackedSource":
        return self

    def __next__(self) -> Any:
        return self._stack([next(source) for source in self._sources])

    def state(self) -> dict[str, Any]:
        """The positions of all sources, JSON-able."""
        return {"seeds": [source.state() for source in self._sources]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state()`.

        Raises:
            UserError: if it is of another number of seeds, or of other data.
        """
        if len(state["seeds"]) != len(self._sources):
            raise UserError(
                f"the checkpoint trains {len(state['seeds'])} seeds together, "
                f"tables.seeds asks for {len(self._sources)}."
            )
        for source, position in zip(self._sources, state["seeds"], strict=True):
            source.restore(position)


def stacked_task(
    tasks: Sequence[train_step.Task], seeds: Sequence[int], *, clip_norm: float = 0.0
) -> train_step.Task:
    """The task that trains all seeds at once.

    Args:
        tasks: of each seed's config, which differ in nothing but the seed.
        seeds: of the configs, in the same order.
        clip_norm: largest gradient norm of a seed; 0: no clipping.

    Returns:
        A task without evaluation and pictures, which are made of each seed
        afterwards. Loss terms are means over the seeds.
    """
    first = tasks[0]

    def init(_key: Array) -> Any:
        # As `loop.fit` does with the seed of one run.
        keys = [jax.random.split(jax.random.key(seed))[0] for seed in seeds]
        params = [task.init(key) for task, key in zip(tasks, keys, strict=True)]
        return jax.tree.map(lambda *x: jnp.stack(x), *params)

    def objective(
        params: Any,
        constants: Any,
        batch: Any,
        weights: Any,
        *,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, ""], Outputs]:
        def one(params: Any, batch: Any) -> tuple[Array, Any]:
            return first.objective(
                params, constants, batch, weights, axis_name=axis_name
            )

        if clip_norm > 0:
            params = _clip_gradient(params, clip_norm, axis_name)
        losses, outputs = jax.vmap(one)(params, batch)
        # Statistics are taken over images, whatever their seed.
        factors, reconstruction = jax.tree.map(
            lambda a: a.reshape(-1, *a.shape[2:]),
            (outputs.factors, outputs.reconstruction),
        )
        terms = jax.tree.map(lambda a: a.mean(0), outputs.terms)
        return losses.sum(), Outputs(factors, reconstruction, terms)

    return train_step.Task(
        init=init,
        objective=objective,
        weights_at=first.weights_at,
        constants=first.constants,
        make_source=functools.partial(_stacked_source, tasks),
        depth_range=first.depth_range,
        learns_view=first.learns_view,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _clip_gradient(params: Any, max_norm: float, axis_name: str | None) -> Any:
    """The parameters; their gradient is scaled down to a norm, seed by seed.

    As `optax.clip_by_global_norm`, which would take one norm over all seeds. Every
    device has a share of the gradient, and scales it by the norm of their sum.
    """
    return params


def _clip_forward(params: Any, *_: Any) -> tuple[Any, None]:
    return params, None


def _clip_backward(
    max_norm: float, axis_name: str | None, _: None, grads: Any
) -> tuple[Any]:
    total = grads if axis_name is None else jax.lax.psum(grads, axis_name)
    norms = jax.vmap(optax.global_norm)(total)
    scale = max_norm / jnp.maximum(norms, max_norm)
    return (jax.vmap(lambda g, s: jax.tree.map(lambda x: s * x, g))(grads, scale),)


_clip_gradient.defvjp(_clip_forward, _clip_backward)


def _stacked_source(
    tasks: Sequence[train_step.Task], devices: Sequence[jax.Device]
) -> StackedSource:
    return StackedSource([task.make_source(devices) for task in tasks])


def params_of(params: Any, index: int) -> Any:
    """The parameters of one seed out of stacked ones."""
    return jax.tree.map(lambda a: a[index], params)
