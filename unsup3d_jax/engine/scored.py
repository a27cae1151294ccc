"""How a run ends, whatever the method: its parameters are scored, once, and shown.

A method says how it scores (`Scoring`); that a finished run is not scored again, which
scores count, and whose parameters they are is the same for all.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.engine import checkpoint, dry_run, packing, run, run_report
from unsup3d_jax.engine.hosts import Hosts
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.task import Identity, Session
from unsup3d_jax.engine.workdir import check_meaning, check_workdir, newest_step
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import report
from unsup3d_jax.flags import Arguments, command
from unsup3d_jax.show.run_page import page

# What the parameters of a score are from, where they are not another run's.
THIS_RUN = "this run"


@dataclasses.dataclass(frozen=True)
class Scored:
    """What is scored.

    Attributes:
        params: of the method's networks; of a method whose runs are wanted for other
            parts of their state (`run.Plan.results`), those parts by name.
        step: that they were trained to.
        checkpoint: where they are from, for the record.
    """

    params: Any
    step: int
    checkpoint: str = THIS_RUN


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a method scores.

    Attributes:
        check_data: finds out, before hours are spent, what the data cannot do.
        score: (session, workdir, `Scored`, split, train_baselines=) -> the table;
            writes `eval/<split>.json`.
        recorded: (session, workdir, step, split) -> the table that a finished run
            wrote, or None if it has yet to be scored.
        log: (session, workdir, step, split): writes those scores into the log, once.
    """

    check_data: Callable[[Session], None]
    score: Callable[..., str]
    recorded: Callable[[Session, Path, int, str], str | None]
    log: Callable[[Session, Path, int, str], None]


def train(args: Arguments, session: Session, plan: run.Plan, scoring: Scoring) -> None:
    """Mode train: trains or resumes, then prints the table of the final scores.

    With several processes the first one scores. A dry run says what it would take.

    Args:
        session: of the config of `args`, which is checked.
        plan: of the run.
    """
    config, split = session.config, session.config.eval.split
    if args.dry_run:
        start = plan.start() if plan.start else None
        print(dry_run.report(config, plan.make_task(), start=start), flush=True)
        return
    # Before any data are loaded.
    check_workdir(args.workdir, config, plan.identity)
    processes = Hosts()

    def look() -> None:
        # The run, if it begins, reads it again; what is wrong with it is said now.
        if plan.start and newest_step(args.workdir) is None:
            plan.start()

    processes.from_first(look)
    if (newest_step(args.workdir) or 0) < config.train.steps:
        scoring.check_data(session)
    found, step = run.train(session, args.workdir, plan)
    if step < config.train.steps:
        if processes.first:
            say(
                f"stopped at step {step} of {config.train.steps}; the checkpoint is "
                f"saved. To resume: {command()}"
            )
        return

    def finish() -> None:
        table = scoring.recorded(session, args.workdir, step, split)
        if table is None:
            table = scoring.score(
                session,
                args.workdir,
                Scored(_params_of(found), step),
                split,
                # They train with all processes, or none.
                train_baselines=processes.count == 1,
            )
        scoring.log(session, args.workdir, step, split)
        print(table, flush=True)
        run_report.keep_table(args.workdir, split, table)
        if config.log.picture_every:
            say(f"pictures: {args.workdir / 'pictures'}")
        say(f"curves, panels, scores: {args.workdir / page.FILE}")

    processes.from_first(finish)


def evaluate(
    args: Arguments,
    session: Session,
    found: tuple[Any, int],
    scoring: Scoring,
    *,
    origin: str | None,
) -> None:
    """Mode eval: scores one checkpoint on one split, and prints the table.

    Args:
        found: of `load_params`.
        origin: where it is from; None for this run.
    """
    params, step = found
    table = scoring.score(
        session,
        args.workdir,
        Scored(params, step, origin or THIS_RUN),
        session.config.eval.split,
        train_baselines=False,
    )
    print(table, flush=True)
    run_report.keep_table(args.workdir, session.config.eval.split, table)


def _params_of(found: Mapping[str, Any]) -> Any:
    """The parameters where a run is wanted for nothing else; all parts elsewhere."""
    return found["params"] if set(found) == {"params"} else dict(found)


def load_params(
    args: Arguments,
    identity: Identity,
    expected: Callable[[], Any],
    results: tuple[str, ...] = ("params",),
) -> tuple[Any, int]:
    """Parameters and step of --checkpoint, or of the workdir's newest.

    Args:
        expected: -> shapes of the config's parameters, or of `results`.
        results: as `run.Plan.results`.

    Raises:
        UserError: if there is none, or it is not of a model like the config's.
    """
    place = args.checkpoint or args.workdir
    found, step = checkpoint.load_parts(place, results)
    check_meaning(args.config, place, identity)
    params = _params_of(found)
    packing.check_shapes(params, expected(), f"the checkpoint in {place}")
    return params, step


def origin(args: Arguments) -> str | None:
    """The checkpoint to score, unless it is one of the workdir's own."""
    if args.checkpoint is None:
        return None
    place, own = args.checkpoint.resolve(), args.workdir.resolve()
    return None if place == own or place.parent == own / "checkpoints" else str(place)


def recorded_row(
    session: Session,
    workdir: Path,
    step: int,
    split: str,
    conditions: Mapping[str, Any],
) -> dict | None:
    """The scores that a finished run wrote, or None if it has yet to be scored.

    They count only if they are of this step of this run on the config's data, under
    the same conditions: mode eval writes the same file, perhaps of fewer images, of
    other data, or of another run.

    Args:
        conditions: what else of the config may change the rows, JSON-able.
    """
    try:
        row = json.loads((workdir / "eval" / f"{split}.json").read_text())
        scored = row["scored"]
        expected = {**conditions, "checkpoint": THIS_RUN}
        same = all(scored[key] == value for key, value in expected.items())
        if row["checkpoint_step"] != step or not same:
            return None
        data = scored["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        return row if session.splits(split).digest == data else None
    except UserError:  # without the data nothing can be scored again
        return row


def provenance(
    config: ConfigDict,
    data: Any,
    ours: Scored,
    split: str,
    conditions: Mapping[str, Any],
) -> report.Provenance:
    """What `recorded_row` compares, for `report.write_scores`.

    Args:
        data: the split that was scored; only its digest is read.
        conditions: as for `recorded_row`.
    """
    known = {"data": data.digest, "checkpoint": ours.checkpoint}
    return report.Provenance(
        split=split,
        data=config.data.name,
        crop=config.data.crop,
        step=ours.step,
        scored={**conditions, **known},
    )
