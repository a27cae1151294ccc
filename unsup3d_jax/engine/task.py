"""What the engine trains: a `Task` brings all that is particular to a method.

The engine knows devices, steps, checkpoints and logs. What a step does, what it
carries along, which numbers follow a schedule and what a healthy run looks like, it
learns from the task alone.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.formation.types import Leaf

# {part: pytree of arrays}. Parts are saved, checked and read back under their names;
# "step" and "key" are the engine's. Typed PRNG keys may be among the leaves.
State = dict[str, Any]


@struct.dataclass
class RunState:
    """One logical state, the same on every device.

    Attributes:
        step: number of updates applied so far.
        key: of the run; a step draws from `fold_in(key, step)`.
        parts: what the task carries from step to step.
    """

    step: Int[Leaf, ""]
    key: Key[Leaf, ""]
    parts: State


@struct.dataclass
class StepContext:
    """What a step may use beside its state and its batch.

    Attributes:
        step: number of updates applied before this one.
        key: of this step, the same on every device. `fold_in` the device's index for
            what should differ there.
        constants: `Task.constants`.
        schedule: `Task.schedule`.
        axis_name: of the devices that share the batch; None on one without `pmap`.
            What a step returns must be equal on all of them.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    constants: Any
    schedule: Any
    axis_name: str | None = struct.field(pytree_node=False, default=None)


class Source(Protocol):
    """Where batches come from; leaves (devices, images a device, ...)."""

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]:
        """The position, JSON-able."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state()`, exactly; an empty one is the beginning."""
        ...

    def reorder(self, number: int) -> None:
        """Goes on at the same step in another order; 0 is the first one."""
        ...


def no_warnings(line: Mapping[str, Any], history: Sequence[Mapping]) -> list[str]:
    """Of a task without a watch."""
    return []


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        init: key -> state before the first step.
        step: (state, this device's part of the batch, context) -> next state and
            scalar metrics. Pure; traced once. The metrics hold "total", the loss, and
            "finite", whether the step may count; perhaps "grad_norm", which
            config.train.grad_norm_max bounds. All go to the log but "finite".
        make_source: devices -> batches.
        random_batch: devices -> a batch of noise with the shapes of the source's, on
            the host; for trials without data.
        constants: arrays that steps read.
        schedule: numbers that steps read, as arrays: what depends on them is not
            compiled anew when they change.
        validate: (parts, step) -> numbers for the log; "total" chooses the best
            checkpoint.
        picture: (parts, step) -> image for `pictures/`.
        repeats: whether an array that a checkpoint holds without the leading axis is
            repeated along it: of stacked seeds, whose counters were common once.
        warnings: (training line, earlier lines) -> sentences about what looks like a
            collapse; each starts with its kind and a colon.
    """

    init: Callable[[Key[Array, ""]], State]
    step: Callable[[State, Any, StepContext], tuple[State, dict[str, Array]]]
    make_source: Callable[[Sequence[jax.Device]], Any]
    random_batch: Callable[[int], Any] | None = None
    constants: Any = ()
    schedule: Any = ()
    validate: Callable[[State, int], Mapping[str, float]] | None = None
    picture: Callable[[State, int], UInt8[np.ndarray, "h w 3"]] | None = None
    repeats: bool = False
    warnings: Callable[[Mapping[str, Any], Sequence[Mapping]], list[str]] = no_warnings


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which keys of a method's config make a run what it is.

    `workdir` adds those that are the same for all methods.

    Attributes:
        harmless: keys, and sections ("eval."), that may differ between the starts of
            a run: none of them changes a parameter.
        meaning: beginnings of keys that give parameters their meaning: scoring or
            using a checkpoint under other values would be wrong without a word.
        on_the_way: keys among them that say how a model is reached: another run may
            begin from it under other values.
        younger: keys that some workdirs are older than, and the value that means what
            was done then.
        defaults: -> the config that says nothing of its own; None: not known. Only for
            the record.
    """

    harmless: tuple[str, ...] = ()
    meaning: tuple[str, ...] = ()
    on_the_way: tuple[str, ...] = ()
    younger: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Callable[[], ConfigDict] | None = None


@dataclasses.dataclass(frozen=True)
class Session:
    """What everything that trains or scores is given.

    Attributes:
        config: resolved, locked.
        splits: split name -> data set, loaded when first asked for.
        interrupts: entered already.
        profile: (first, last) step to trace; None: none.
    """

    config: ConfigDict
    splits: Callable[[str], Any]
    interrupts: Interrupts
    profile: tuple[int, int] | None = None

    def of(self, config: ConfigDict) -> "Session":
        """The same for another config; nothing of it is traced."""
        return dataclasses.replace(self, config=config, profile=None)


def run_keys(seed: int) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The two keys of a run: of its initial state, and of its steps."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    return init_key, run_key


def initial_state(task: Task, seed: int) -> RunState:
    """The state before the first update."""
    init_key, run_key = run_keys(seed)
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        # A moving average begins as what it follows. The step, which is given the
        # memory of its state, could not be given the same array twice.
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    parts = jax.tree.map(own, task.init(init_key))
    return RunState(jnp.zeros((), jnp.int32), run_key, parts)


def advance(
    state: RunState,
    batch: Any,
    constants: Any,
    schedule: Any,
    *,
    task: Task,
    axis_name: str | None = None,
    skip: bool = False,
    grad_norm_max: float = 0.0,
) -> tuple[RunState, dict[str, Float[Array, ""]]]:
    """Applies one update.

    Args:
        state: donated by the caller.
        batch: this device's part of the global batch.
        constants, schedule: of the task, as arguments, so that they are no constants
            of the program.
        task, axis_name: static.
        skip: leave the parts as they are where the step is not finite; static.
        grad_norm_max: a larger gradient counts as not finite; 0: none does; static.

    Returns:
        The next state, and the step's metrics with `finite` as 1 or 0.
    """
    context = StepContext(
        step=state.step,
        key=jax.random.fold_in(state.key, state.step),
        constants=constants,
        schedule=schedule,
        axis_name=axis_name,
    )
    parts, metrics = task.step(state.parts, batch, context)
    finite = metrics["finite"]
    if grad_norm_max > 0 and "grad_norm" in metrics:
        finite &= metrics["grad_norm"] <= grad_norm_max
    if skip:
        parts = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), parts, state.parts
        )
    metrics = metrics | {"finite": finite.astype(jnp.float32)}
    return dataclasses.replace(state, step=state.step + 1, parts=parts), metrics
