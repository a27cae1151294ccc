"""Several seeds of one run, trained as one: a task whose states are stacked.

Every array of the state gets a leading seed axis and the step is mapped over it, so
each seed has its own initial state, order of images, gradient, clipping and moments: it
learns what it would learn alone, to the rounding of another program. The loop,
checkpoints and resumption are those of `loop.fit`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from unsup3d_jax.engine.task import State, StepContext, Task, run_keys
from unsup3d_jax.errors import UserError


def check_config(config: ConfigDict) -> None:
    """Refuses what would tie the seeds together.

    Raises:
        UserError: naming the key.
    """
    alone = {"grad_norm_max": 0.0, "rollbacks": 0, "nan": "stop", "init_from": ""}
    for key, value in alone.items():
        if config.train[key] != value:
            raise UserError(
                f"tables.together needs train.{key} = {value!r}, got "
                f"{config.train[key]!r}: it would let one seed change another."
            )


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


def stacked_task(tasks: Sequence[Task], seeds: Sequence[int]) -> Task:
    """The task that trains all seeds at once.

    Args:
        tasks: of each seed's config, which differ in nothing but the seed.
        seeds: of the configs, in the same order.

    Returns:
        A task without evaluation and pictures, which are made of each seed
        afterwards. Its metrics are means over the seeds; it is finite if all are.
    """
    first = tasks[0]

    def init(_key: Key[Array, ""]) -> State:
        # As `loop.fit` does with the seed of one run.
        states = [
            task.init(run_keys(seed)[0])
            for task, seed in zip(tasks, seeds, strict=True)
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    def step(
        state: State, batch: Any, context: StepContext
    ) -> tuple[State, dict[str, Array]]:
        # The run's own key is that of the first seed alone.
        keys = jnp.stack([run_keys(seed)[1] for seed in seeds])
        keys = jax.vmap(lambda key: jax.random.fold_in(key, context.step))(keys)

        def one(state: State, batch: Any, key: Array) -> tuple[State, dict]:
            return first.step(state, batch, dataclasses.replace(context, key=key))

        next_state, metrics = jax.vmap(one)(state, batch, keys)
        finite = metrics.pop("finite").all()
        means = jax.tree.map(lambda a: a.mean(0), metrics)
        return next_state, means | {"finite": finite}

    return dataclasses.replace(
        first,
        init=init,
        step=step,
        make_source=functools.partial(_stacked_source, tasks),
        random_batch=None,
        validate=None,
        picture=None,
        repeats=True,
    )


def _stacked_source(
    tasks: Sequence[Task], devices: Sequence[jax.Device]
) -> StackedSource:
    return StackedSource([task.make_source(devices) for task in tasks])


def of_seed(parts: Any, index: int) -> Any:
    """The arrays of one seed out of stacked ones."""
    return jax.tree.map(lambda a: a[index], parts)
