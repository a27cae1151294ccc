"""One run in one workdir, from its lock to its last checkpoint."""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unsup3d_jax.data import folder
from unsup3d_jax.engine import loop, parallel, warm_start
from unsup3d_jax.engine.checkpoint import load_parts
from unsup3d_jax.engine.hosts import Hosts
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.task import Identity, Session, Task
from unsup3d_jax.engine.workdir import (
    check_workdir,
    claim_workdir,
    lock_workdir,
    newest_step,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is to do, whatever it finds in its workdir.

    Attributes:
        make_task: called only if there is something left to train.
        describe: what it trains on, for people: "6000 images of 32 px". Looks at the
            data, and raises what is wrong with them before the workdir is claimed.
        identity: which keys make two runs the same.
        results: parts of the state that the caller wants.
        start: reads what the run begins from, if it begins; None: noise.
    """

    make_task: Callable[[], Task]
    describe: Callable[[], str]
    identity: Identity
    results: tuple[str, ...] = ("params",)
    start: Callable[[], warm_start.Start] | None = None


def train(session: Session, workdir: Path, plan: Plan) -> tuple[Any, int]:
    """Trains, or resumes, in a workdir.

    With several processes, only the first touches the workdir.

    Returns:
        The wanted parts of the state on the first device of this process (None if
        training was finished already and this is not the first process), and the
        step reached, which is below `train.steps` if the run was interrupted.

    Raises:
        UserError: for anything the user can fix.
        Diverged, HostLost: see `loop.fit`.
    """
    config = session.config
    folder.check_output(config, workdir, "--workdir")
    devices, hosts = parallel.run_devices(config), Hosts()
    with ExitStack() as held:
        lock = functools.cache(lambda: held.enter_context(lock_workdir(workdir)))

        def look() -> int | None:
            if workdir.is_dir():  # before hours of data preparation
                lock()
            check_workdir(workdir, config, plan.identity)
            return newest_step(workdir)

        done = hosts.from_first(look)
        if done is not None and done >= config.train.steps:
            kept = []

            def load() -> int:
                found, step = load_parts(workdir, plan.results)
                kept.append(found)
                return step

            step = hosts.from_first(load)
            if step >= config.train.steps:  # else the newest one is damaged
                if hosts.first:
                    say(f"{workdir}: training is finished ({step} steps).")
                return (kept[0] if kept else None), step
        task, read = plan.make_task(), plan.start
        starts = []
        if done is None and read is not None:
            # Before hours of data preparation; and never again.
            hosts.from_first(lambda: starts.append(read()))
        what = plan.describe()

        def claim() -> None:  # only now: the data is usable
            lock()  # another process may have made the folder since
            claim_workdir(workdir, config, devices, plan.identity)
            for start in starts:
                warm_start.begin(workdir, task, config.seed, start)

        hosts.from_first(claim)
        if hosts.first:
            say(
                f"{'resuming' if done else 'training'} {config.name} in {workdir}"
                f"{f' at step {done}' if done else ''}"
                f"{f' from {starts[0]}' if starts else ''}: {what}, "
                f"{config.train.steps} steps of {config.train.batch_size} images, "
                f"{len(devices)} x {devices[0].device_kind}"
                f"{f' in {hosts.count} processes' if hosts.count > 1 else ''}."
            )
        state = loop.fit(session, task, workdir, devices=devices)
    parts = {name: state.parts[name] for name in plan.results}
    return parallel.one_copy(parts), int(state.step)
