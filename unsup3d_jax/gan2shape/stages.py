"""Stage after stage, for some groups of images at a time; resumes, bit for bit.

What a run is follows from its config: a list of phases (`options.phases`), each some
iterations of one kind. An iteration of a kind is one compiled program; every
`log.every` of them the host waits for their losses. The engine's loop has one kind of
step and one batch for each; here there are five kinds, and nothing is fed: so this is a
driver of its own, on the engine's checkpoints, logs and interrupts.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.checkpoint import Checkpoints
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.log import MetricsFile, duration, say
from unsup3d_jax.engine.packing import unpacked
from unsup3d_jax.engine.recorder import Diverged
from unsup3d_jax.engine.task import RunState
from unsup3d_jax.engine.workdir import newest_step
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import steps
from unsup3d_jax.gan2shape.options import Phase, ShapeOptions
from unsup3d_jax.gan2shape.projection import Projection
from unsup3d_jax.gan2shape.steps import Common, Given, Group, Looks, Moment


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done to some groups of images; static.

    Attributes:
        phases: of `options.phases`.
        side_by_side: groups in one program, on each device; 0: all.
        devices: that groups are shared out among.
        log_every, checkpoint_every, keep: of sections log and checkpoint.
    """

    phases: tuple[Phase, ...]
    options: ShapeOptions
    projection: Projection
    optimizer: optax.GradientTransformation
    side_by_side: int
    devices: tuple[jax.Device, ...]
    log_every: int
    checkpoint_every: int
    keep: int

    @property
    def last(self) -> int:
        """Iterations of the whole run."""
        return self.phases[-1].last

    @property
    def rows(self) -> int:
        """Of the record: before the first stage, and after each."""
        return 1 + self.phases[-1].stage


@dataclasses.dataclass(frozen=True)
class Work:
    """Some groups, and how they begin.

    Attributes:
        given: leading axis of groups.
        common: of all of them.
        key: of each group (n,), for the networks' first parameters.
        params: {network: parameters} that all groups begin with; None: noise.
        images: JSON-able; tells these images from others.
    """

    given: Given
    common: Common
    key: Key[Array, " n"]
    params: Mapping[str, Any] | None
    images: Mapping[str, Any]


def begin(work: Work, plan: Plan) -> RunState:
    """The state before the first iteration; parts "params", "moments", "store" and
    "record" with leading axes of groups, the record's behind that of its rows."""
    images = work.given.image.shape[1]

    def one(key: Key[Array, ""]) -> Group:
        return steps.begin(key, images, plan.options, plan.projection, plan.optimizer)

    groups = jax.jit(jax.vmap(one))(work.key)
    if work.params is not None:
        count = len(work.key)
        given = {
            name: jax.tree.map(
                lambda x: jnp.broadcast_to(jnp.asarray(x), (count, *x.shape)), tree
            )
            for name, tree in work.params.items()
        }
        groups = dataclasses.replace(groups, params={**groups.params, **given})
    looks = jax.eval_shape(_compiled_look(plan), groups, work.given, work.common)
    record = jax.tree.map(
        lambda x: jnp.zeros((plan.rows, *x.shape), x.dtype), vars(looks)
    )
    state = _state(jnp.zeros((), jnp.int32), groups, record)
    return _recorded(state, work, plan, row=0) if work.params is not None else state


def run(
    work: Work, plan: Plan, folder: Path, interrupts: Interrupts
) -> tuple[RunState, bool]:
    """Runs all phases, or goes on with them.

    Args:
        folder: of these groups alone.
        interrupts: a request is heard where the host waits.

    Returns:
        The last state, saved, and whether it is the end.

    Raises:
        Diverged: if a loss or a parameter is not finite.
        UserError: if the folder is of other images, or cannot be written.
    """
    checkpoints = Checkpoints(folder, keep=plan.keep)
    try:
        state = _restored(checkpoints, work, plan)
        log = MetricsFile(folder / "metrics.jsonl")
        log.truncate(int(state.step) or None)

        def unsaved() -> bool:
            return int(state.step) > (newest_step(folder) or 0)

        with interrupts.deferred(unsaved):
            for phase in plan.phases:
                began = time.monotonic()
                while int(state.step) < phase.last:
                    if interrupts.requested:
                        _save(checkpoints, state, work)
                        checkpoints.wait()
                        return state, False
                    waited = time.monotonic()
                    state, line = _advance(state, work, plan, phase)
                    waited = time.monotonic() - waited
                    log.append(line | {"seconds": round(waited, 3)})
                    if _is_due(line["step"], phase, plan):
                        _save(checkpoints, state, work)
                    if line["step"] == phase.last:
                        seconds = duration(time.monotonic() - began)
                        say(
                            f"stage {phase.stage}, {phase.kind}: loss "
                            f"{line['total']:.5f}, {seconds}"
                        )
            checkpoints.wait()
        return state, True
    finally:
        checkpoints.close()


def _is_due(step: int, phase: Phase, plan: Plan) -> bool:
    return step == phase.last or step % plan.checkpoint_every == 0


def _restored(checkpoints: Checkpoints, work: Work, plan: Plan) -> RunState:
    start = begin(work, plan)
    found = checkpoints.restore_newest(jax.eval_shape(lambda: start))
    if found is None:
        return start
    tree, images = found
    if images != dict(work.images):
        raise UserError(
            "the run in this --workdir is of other images; choose another --workdir, "
            "or give the same images again."
        )
    return jax.tree.map(jnp.asarray, unpacked(tree, start))


def _save(checkpoints: Checkpoints, state: RunState, work: Work) -> None:
    try:
        checkpoints.save(state, dict(work.images))
    except FloatingPointError:
        raise Diverged(f"step {int(state.step)}: a parameter is not finite.") from None


def _state(step: Array, groups: Group, record: Mapping[str, Array]) -> RunState:
    parts = {
        "params": groups.params,
        "moments": groups.moments,
        "store": {"image": groups.store_image, "mask": groups.store_mask},
        "record": dict(record),
    }
    # The keys of a run are its images', which the caller makes anew.
    return RunState(step=step, key=jax.random.key(0), parts=parts)


def _groups(state: RunState) -> Group:
    parts = state.parts
    return Group(
        params=parts["params"],
        moments=parts["moments"],
        store_image=parts["store"]["image"],
        store_mask=parts["store"]["mask"],
    )


def _recorded(state: RunState, work: Work, plan: Plan, *, row: int) -> RunState:
    """The state with a row of its record filled in."""
    looks = _compiled_look(plan)(_groups(state), work.given, work.common)
    record = {
        name: rows.at[row].set(getattr(looks, name))
        for name, rows in state.parts["record"].items()
    }
    return dataclasses.replace(state, parts={**state.parts, "record": record})


@functools.lru_cache(maxsize=8)
def _compiled_look(plan: Plan) -> Callable[..., Looks]:
    def looks(groups: Group, given: Given, common: Common) -> Looks:
        def one(group: Group, given: Given) -> Looks:
            return steps.look(group.params, given, common, plan.options)

        return _mapped(one, plan.side_by_side)(groups, given)

    return jax.jit(looks)


def _advance(
    state: RunState, work: Work, plan: Plan, phase: Phase
) -> tuple[RunState, dict[str, Any]]:
    """Iterations up to where the host waits next; the log's line of them."""
    start = int(state.step)
    every = plan.log_every
    stop = min(phase.last, (start // every + 1) * every, _next_save(start, plan))
    groups = _groups(state)
    if start == phase.first:
        groups = _compiled_renewal(plan, phase.kind)(groups)
    groups, losses = _iterated(groups, work, plan, phase, range(start, stop))
    if not np.isfinite(losses).all():
        raise Diverged(f"step {stop}: the loss of stage {phase.stage} is not finite.")
    record = state.parts["record"]
    state = _state(jnp.asarray(stop, jnp.int32), groups, record)
    if stop == phase.last and phase.kind in ("prior", "shape"):
        state = _recorded(state, work, plan, row=phase.stage)
    line = {
        "step": stop,
        "split": "train",
        "stage": phase.stage,
        "kind": phase.kind,
        "total": float(losses.mean()),
        "worst": float(losses.max()),
    }
    return state, line


def _next_save(step: int, plan: Plan) -> int:
    return (step // plan.checkpoint_every + 1) * plan.checkpoint_every


@functools.lru_cache(maxsize=32)
def _compiled_renewal(plan: Plan, kind: str) -> Callable[[Group], Group]:
    def renewed(groups: Group) -> Group:
        return jax.vmap(lambda g: steps.renew(g, kind, plan.options, plan.optimizer))(
            groups
        )

    return jax.jit(renewed)


def _iterated(
    groups: Group, work: Work, plan: Plan, phase: Phase, steps_of_run: range
) -> tuple[Group, Float[np.ndarray, " n"]]:
    """The groups after some iterations, and the mean loss of each.

    The host calls one program an iteration, and does not wait for it. A loop within the
    program would be slower by far on a CPU: XLA runs the derivatives of convolutions in
    loops by its slowest code.

    Of several devices each has some of the groups, and its own copy of what they share,
    until the host waits; then all is on the first one again. So nothing that is saved
    knows how many there were.
    """
    count = len(work.key)
    devices = plan.devices[:count]
    iterate = _compiled_iteration(plan, phase.kind, phase.flip, devices)
    size = (plan.side_by_side or -(-count // len(devices))) * len(devices)
    began = Moment(
        step=jnp.asarray(steps_of_run.start, jnp.int32),
        first=jnp.asarray(phase.first, jnp.int32),
    )
    found: list[tuple[Group, Array]] = []
    for first in range(0, count, size):
        part, given = (
            jax.tree.map(lambda x, first=first: x[first : first + size], tree)
            for tree in (groups, work.given)
        )
        total, at, common = jnp.zeros(len(given.key)), began, work.common
        there = len(total)
        if len(devices) > 1:
            part, total, given = parallel.share_out(
                _filled((part, total, given), len(devices)), devices
            )
            at, common = parallel.replicate((at, common), devices)
        for _ in steps_of_run:
            part, total, at = iterate(part, total, at, given, common)
        if len(devices) > 1:
            part, total = jax.device_put((part, total), devices[0])
            part, total = jax.tree.map(lambda x, n=there: x[:n], (part, total))
        found.append((part, total / len(steps_of_run)))
    done, losses = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
    return done, np.asarray(losses)


def _filled(tree: Any, multiple: int) -> Any:
    """Rows up to a multiple: copies of the last, which a device without rows works on.

    It would wait for the others otherwise, and the program would be another one.
    """
    count = len(jax.tree.leaves(tree)[0])
    rows = np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)
    return tree if len(rows) == count else jax.tree.map(lambda x: x[rows], tree)


@functools.lru_cache(maxsize=32)
def _compiled_iteration(
    plan: Plan, kind: str, flip: bool, devices: tuple[jax.Device, ...]
) -> Callable[..., tuple[Group, Array, Moment]]:
    """(groups, sums of losses, when, given, common) -> the first three afterwards.

    Several devices: the first two and `given` shared out, the others on all.
    """

    def iteration(
        groups: Group,
        total: Float[Array, " n"],
        at: Moment,
        given: Given,
        common: Common,
    ) -> tuple[Group, Float[Array, " n"], Moment]:
        def one(group: Group, given: Given) -> tuple[Group, Array]:
            return steps.iterate(
                group,
                given,
                common,
                at,
                kind=kind,
                flip=flip,
                options=plan.options,
                projection=plan.projection,
                optimizer=plan.optimizer,
            )

        if len(total) > 1:
            groups, loss = jax.vmap(one)(groups, given)
        else:  # kernels without an axis of groups
            alone = jax.tree.map(lambda x: x[0], (groups, given))
            groups, loss = jax.tree.map(lambda x: x[None], one(*alone))
        after = dataclasses.replace(at, step=at.step + 1)
        return groups, total + loss, after

    step = iteration
    if len(devices) > 1:
        step = parallel.mapped_step(
            iteration,
            devices,
            shared=(True, True, False, True, False),
            results=(True, True, False),
        )
    return jax.jit(step, donate_argnums=(0, 1))


def _mapped(function: Callable, side_by_side: int) -> Callable:
    """The function of one group for all, some side by side."""

    def mapped(*trees: Any) -> Any:
        size = side_by_side or len(jax.tree.leaves(trees)[0])
        return jax.lax.map(
            lambda args: function(*args), trees, batch_size=None if size == 1 else size
        )

    return mapped
