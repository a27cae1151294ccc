"""Runs the stages for all images of a command, and scores what they have found.

Groups are worked on some at a time, each lot in a folder of its own,
`<workdir>/groups/<number>`: a run of thousands of images needs no more memory than one
of some, and is resumed at the lot that it was in. The stage that all images share
before that, if there is one, lies in `<workdir>/joint`.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.data import folder
from unsup3d_jax.engine import checkpoint, parallel, run_report, scored
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.log import MetricsFile, duration, say
from unsup3d_jax.engine.task import RunState, Session, run_keys
from unsup3d_jax.engine.workdir import (
    check_workdir,
    claim_workdir,
    lock_workdir,
    newest_step,
)
from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import Arguments, command
from unsup3d_jax.gan2shape import (
    generated,
    losses,
    options,
    sampling,
    score,
    sheet,
    stages,
    subjects,
)
from unsup3d_jax.gan2shape import start as first
from unsup3d_jax.gan2shape.options import IDENTITY
from unsup3d_jax.gan2shape.prior import THRESHOLD
from unsup3d_jax.gan2shape.projection import Projection
from unsup3d_jax.gan2shape.steps import Common, Given
from unsup3d_jax.gan2shape.subjects import Subjects

# Folders of a workdir.
_JOINT, _GROUPS = "joint", "groups"


@dataclasses.dataclass(frozen=True)
class Lot:
    """Images that are worked on together.

    Attributes:
        rows: of `Subjects`.
        folder: of their checkpoints.
    """

    rows: slice
    folder: Path


def train(args: Arguments, interrupts: Interrupts) -> None:
    """Mode train: all stages for all images, then the table of the scores.

    Raises:
        UserError: for anything the user can fix.
        Diverged: see `stages.run`.
    """
    config, workdir = args.config, args.workdir
    static = options.check_config(config)
    folder.check_output(config, workdir, "--workdir")
    projection, shared = generated.make(config)
    found = subjects.of_config(config, args.input)
    lots = lots_of(config, workdir, len(found))
    check_folders(config, workdir)
    shared_stage = options.joint_stage(config)
    with lock_workdir(workdir):
        plan = plan_of(config, static, projection)
        claim_workdir(workdir, config, list(plan.devices), IDENTITY)
        found = generated.known(config, found, shared, workdir)
        common = common_of(config, found)
        start = first.first_params(config)
        began = time.monotonic()

        if shared_stage is not None:
            company = _company(config, found, shared, workdir / _JOINT)
            lot = Lot(slice(0, len(company)), workdir / _JOINT)
            first_plan = plan_of(
                shared_stage, options.options_from_config(shared_stage), projection
            )
            work = work_of(shared_stage, company, lot, common, None)
            state = _worked_on(lot, shared_stage, first_plan, work, interrupts)
            if state is None:
                return
            start = jax.device_get(jax.tree.map(lambda x: x[0], state.parts["params"]))
        for number, lot in enumerate(lots):
            work = work_of(config, found, lot, common, start)
            if _worked_on(lot, config, plan, work, interrupts) is None:
                return
            minutes = duration(time.monotonic() - began)
            say(f"{number + 1} of {len(lots)} lots done, {minutes}.")
    if found.dataset is not None:
        _report(config, workdir, found, plan.last)


def _company(config: ConfigDict, found: Subjects, shared: Any, place: Path) -> Subjects:
    """The images of the joint stage: all, and those that take part in it alone.

    Args:
        place: where the latents of the latter are kept.
    """
    if not config.stages.joint_others:
        return found
    place.mkdir(parents=True, exist_ok=True)
    others = generated.known(config, subjects.others(config), shared, place)
    return subjects.together(found, others)


def check_folders(config: ConfigDict, workdir: Path) -> None:
    """Refuses a workdir of another config.

    Raises:
        UserError: naming the keys that differ.
    """
    for folder_of_lot in sorted((workdir / _GROUPS).glob("*")):
        check_workdir(folder_of_lot, config, IDENTITY)
    if (shared_stage := options.joint_stage(config)) is not None:
        check_workdir(workdir / _JOINT, shared_stage, IDENTITY)


def recorded_row(session: Session, workdir: Path) -> dict[str, Any] | None:
    """The scores that a finished run wrote, the last stage's; None: it has yet to.

    They count if they are of the config's images. Whose the workdir is must have been
    asked before (`check_folders`).
    """
    config = session.config
    last = options.phases(config)[-1].last
    count = subjects.count_of(config, session.splits(config.eval.split))
    lots = lots_of(config, workdir, count)
    if any(newest_step(lot.folder) != last for lot in lots):
        return None
    return scored.recorded_row(
        session, workdir, last, config.eval.split, score.conditions(config)
    )


def seconds_of(config: ConfigDict, workdir: Path, count: int) -> float | None:
    """What all iterations of a run took, compilation included; latents are not in it.

    Args:
        count: of its images.

    Returns:
        None for a run whose log does not say (of an older version).
    """
    folders = [lot.folder for lot in lots_of(config, workdir, count)]
    if options.joint_stage(config) is not None:
        folders.append(workdir / _JOINT)
    lines = [
        x for place in folders for x in MetricsFile(place / "metrics.jsonl").read()
    ]
    if not lines or any("seconds" not in line for line in lines):
        return None
    return sum(line["seconds"] for line in lines)


def _worked_on(
    lot: Lot,
    config: ConfigDict,
    plan: stages.Plan,
    work: stages.Work,
    interrupts: Interrupts,
) -> RunState | None:
    """A lot after its last phase; None: it was stopped before, and is saved."""
    groups = len(work.key)
    used = plan.devices[:groups]
    claim_workdir(lot.folder, config, list(used), IDENTITY)
    say(
        f"{config.name} in {lot.folder}: images {lot.rows.start + 1} to "
        f"{lot.rows.stop}, {plan.last} iterations; {groups} group(s) on "
        f"{len(used)} of {len(plan.devices)} device(s)."
    )
    try:
        state, done = stages.run(work, plan, lot.folder, interrupts)
    finally:
        run_report.write(lot.folder)
    if done:
        return state
    say(
        f"stopped at iteration {int(state.step)} of {plan.last}; the checkpoint is "
        f"saved. To resume: {command()}"
    )
    return None


def evaluate(args: Arguments) -> None:
    """Mode eval: the table of a run, of as many images as are finished.

    Raises:
        UserError: if there are none, or nothing true is known of them.
    """
    config, workdir = args.config, args.workdir
    options.check_config(config)
    found = subjects.of_config(config, None)
    _report(config, workdir, found, options.phases(config)[-1].last)


def _report(config: ConfigDict, workdir: Path, found: Subjects, last: int) -> None:
    """Writes and prints what a run has come to, as a table and as a picture."""
    record = read_record(config, workdir, len(found))
    print(score.score(config, workdir, found, record, last), flush=True)
    path = workdir / "eval" / f"{config.eval.split}_stages.png"
    first_name, fov = options.start_name(config), config.view.fov_deg
    picture = sheet.of_stages(found, record, first=first_name, fov_deg=fov)
    sheet.write(path, picture)
    say(f"image, normals by stage, albedo, rendering: {path}")


def lots_of(config: ConfigDict, workdir: Path, count: int) -> list[Lot]:
    """Which images are worked on together.

    Raises:
        UserError: if the images do not make whole groups.
    """
    size = config.stages.group * config.stages.groups_at_a_time
    if config.stages.mode == "joint":
        size = count
    elif count % config.stages.group:
        raise UserError(
            f"stages.group={config.stages.group}: {count} images do not make whole "
            "groups; change eval.max_images."
        )
    firsts = range(0, count, size)
    return [
        Lot(
            slice(first, min(first + size, count)),
            workdir / _GROUPS / f"{first:05d}",
        )
        for first in firsts
    ]


def plan_of(
    config: ConfigDict, static: options.ShapeOptions, projection: Projection
) -> stages.Plan:
    """What is done to the images of a checked config."""
    beside = config.stages.side_by_side
    if beside == 0 and jax.default_backend() == "cpu":
        beside = 1
    return stages.Plan(
        phases=options.phases(config),
        options=static,
        projection=projection,
        optimizer=optimizers.make_optimizer(config),
        side_by_side=beside,
        devices=tuple(parallel.wanted_devices(config)),
        log_every=config.log.every,
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
    )


def common_of(config: ConfigDict, found: Subjects) -> Common:
    """What all groups share."""
    weights, remark = losses.load_perceptual(
        config.loss.perceptual_kind, config.loss.perceptual_weights
    )
    if remark:
        say(remark)
    return Common(
        statistics=sampling.load(config.sampling.statistics),
        perceptual=weights,
        projection=found.shared,
    )


def work_of(
    config: ConfigDict,
    found: Subjects,
    lot: Lot,
    common: Common,
    start: Mapping[str, Any] | None,
) -> stages.Work:
    """The groups of a lot, with keys that are theirs in whatever lot they are."""
    joint = config.stages.mode == "joint"
    rows = range(len(found))[lot.rows]
    group = len(rows) if joint else config.stages.group
    count = len(rows) // group
    init_key, run_key = run_keys(config.seed)

    def grouped(array: Any) -> Any:
        part = jnp.asarray(array)[lot.rows]
        return part.reshape(count, group, *part.shape[1:])

    def keys_of(key: jax.Array, numbers: Any) -> jax.Array:
        return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)

    images = jnp.arange(rows.start, rows.stop)
    given = Given(
        image=grouped(found.image),
        mask=grouped(found.mask >= THRESHOLD),
        prior=grouped(found.prior),
        key=keys_of(run_key, images).reshape(count, group),
        own=jax.tree.map(grouped, found.own),
    )
    return stages.Work(
        given=given,
        common=common,
        key=keys_of(init_key, images[::group]),
        params=start,
        images=found.identity(lot.rows),
    )


def read_record(config: ConfigDict, workdir: Path, count: int) -> dict[str, np.ndarray]:
    """What the networks of a run said of its images: rows of the record by image.

    Returns:
        Fields of `steps.Looks`, axes (rows, images, ...).

    Raises:
        UserError: if a lot is not finished.
    """
    last, found = options.phases(config)[-1].last, []
    for lot in lots_of(config, workdir, count):
        parts, step = checkpoint.load_parts(lot.folder, ("record",))
        if step < last:
            raise UserError(
                f"{lot.folder} is at iteration {step} of {last}; finish it first "
                "(--mode=train)."
            )
        rows = {
            name: values.reshape(values.shape[0], -1, *values.shape[3:])
            for name, values in parts["record"].items()
        }
        wanted, there = lot.rows.stop - lot.rows.start, rows["view"].shape[1]
        if there != wanted:
            raise UserError(
                f"{lot.folder} is of {there} images, not of {wanted}; score them with "
                "the eval.split and eval.max_images that they were found with."
            )
        found.append(rows)
    return {k: np.concatenate([part[k] for part in found], axis=1) for k in found[0]}
