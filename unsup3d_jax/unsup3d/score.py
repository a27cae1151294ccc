"""The last act of a run: its scores beside the baselines, written and printed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.configuration import changed
from unsup3d_jax.engine import scored
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.log import record_once, say
from unsup3d_jax.engine.scored import THIS_RUN, Scored, Scoring
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.workdir import newest_step
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.evaluation import report
from unsup3d_jax.evaluation.scores import limits_of
from unsup3d_jax.unsup3d import belief, evaluate, model, task
from unsup3d_jax.unsup3d.options import loss_weights

# Of the validation split; fewer say nothing of what is usual.
_LEAST_IMAGES = 20
TRAINED = {
    "supervised": "the depth net trained on true depth",
    "oracle": "the method with true view and light given",
}


def baseline_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config that trains a baseline with the loop of the method.

    `supervised` learns depth from the truth for `eval.baseline_steps`: Table 2's upper
    bound, if that is long enough. `oracle` learns depth and albedo as the method does
    and as long, with true view and light.

    Raises:
        ValueError: for another name.
    """
    changes: dict[str, Any] = {
        "eval.baselines": (),
        "eval.every": 0,  # its best checkpoint is of no interest
        "log.picture_every": 0,
        "train.init_from": "",
        # The viewpoint is given, or not asked for: depth need not wait for it.
        "view.warmup_steps": 0,
        "train.depth_start": 0,
        "train.depth_full": 0,
    }
    if name == "supervised":
        changes |= {
            "train.steps": config.eval.baseline_steps or config.train.steps,
            "model.supervision": "depth",
            # No relief is held back.
            "depth.bump_height": 0.0,
            "depth.output_gain": 1.0,
            "train.lr_scale.depth": 1.0,
        }
    elif name == "oracle":
        changes |= {"model.oracle_view": True, "model.oracle_light": True}
    else:
        raise ValueError(f"no trained baseline is called {name!r}.")
    return changed(config, changes)


def check_data(session: Session) -> None:
    """Finds out before hours are spent what the data cannot do.

    Loads the splits that pictures, evaluations and the final table will want, and
    asks whether the baselines can be trained.

    Raises:
        UserError: naming the split that is missing or empty, or the baseline and
            the field that it lacks.
    """
    config, splits = session.config, session.splits
    if config.log.picture_every or config.eval.every:
        splits("val")
    splits(config.eval.split)
    needs = {"supervised": ("depth", "mask"), "oracle": ("view", "light")}
    wanted = [n for n in config.eval.baselines if n in task.TRAINED_BASELINES]
    if not wanted:
        return
    known = splits("train").take([0])
    for name in wanted:
        missing = [field for field in needs[name] if field not in known]
        if missing:
            raise UserError(
                f"eval.baselines: {name!r} needs true {' and '.join(missing)}, which "
                f"the data set {config.data.name!r} does not have; leave it out."
            )


def score_run(
    session: Session,
    workdir: Path,
    ours: Scored,
    split: str,
    *,
    train_baselines: bool,
) -> str:
    """Scores parameters and the configured baselines on one split.

    Baselines that need training live in `<workdir>/baselines/<name>/`. They
    are trained (or resumed) there if `train_baselines`; otherwise those that
    are not finished are left out of the table, and a message says so.

    Returns:
        The table, whose last row is "ours"; `eval/<split>.json` holds the same. Of
        this run's own parameters `belief.json` is left, too.

    Raises:
        Interrupted: if a signal stopped the training of a baseline.
        UserError: if the data set is too small or lacks what is asked for.
    """
    config = session.config
    options = task.check_config(config)
    ev, data = config.eval, session.splits(split)
    limits = limits_of(config)
    scores = evaluate.score_images(
        ours.params,
        data,
        options,
        constants=model.load_constants(config),
        weights=loss_weights(config, ours.step),
        limits=limits,
    )
    row = evaluate.row_of("ours", scores)
    untrained = [n for n in ev.baselines if n not in task.TRAINED_BASELINES]
    rows = evaluate.baselines(
        data,
        # The untrained row is the method's start, also in a supervised run.
        options,
        names=untrained,
        initial_params=task.initial_params(config) if untrained else None,
        limits=limits,
        shared=scores.usable,
    )
    for name in ev.baselines:
        if name not in task.TRAINED_BASELINES:
            continue
        config_b = baseline_config(config, name)
        workdir_b = workdir / "baselines" / name
        done = newest_step(workdir_b) or 0
        if done < config_b.train.steps and not train_baselines:
            say(f"baseline {name!r} is left out: --mode=train has yet to train it.")
            continue
        say(f"baseline {name!r}:")
        params_b, step_b = task.train(session.of(config_b), workdir_b)
        if step_b < config_b.train.steps:
            raise Interrupted
        row_b = evaluate.evaluate(
            params_b,
            data,
            task.check_config(config_b),
            name=name,
            limits=limits,
            shared=scores.usable,
        )
        row_b["description"] = f"{TRAINED[name]}, {step_b} steps of the same loop"
        rows.append(row_b)
    path = report.write_scores(
        workdir,
        row,
        provenance(config, data, ours, split),
        baseline_rows=rows,
    )
    say(f"scores of {row['images']} images of split {split}: {path}")
    if ours.checkpoint == THIS_RUN:
        usual = find_usual(config, session.splits, ours.params, ours.step)
        if isinstance(usual, str):
            say(f"{belief.NAME} is not written: {usual}")
        else:
            with writing(workdir / belief.NAME):
                belief.save(workdir, usual)
    return report.format_table([*rows, row])


def find_usual(
    config: ConfigDict, splits: Callable[[str], Any], params: Any, step: int
) -> belief.Usual | str:
    """What is usual for photos of the validation split; or why nobody can know."""
    options = task.check_config(config)
    if options.supervised or options.oracle_view or options.oracle_light:
        return "the model does not read all of its factors off a photo."
    try:
        data = splits("val")
    except UserError as error:
        return str(error)
    if len(data) < _LEAST_IMAGES:
        return f"{len(data)} validation images are too few ({_LEAST_IMAGES})."
    scores = evaluate.score_images(
        params,
        data,
        options,
        constants=model.load_constants(config),
        weights=loss_weights(config, step),
        limits=dataclasses.replace(limits_of(config), max_images=belief.MOST_IMAGES),
    )
    return belief.Usual.of(scores, step)


def log_scores(session: Session, workdir: Path, step: int, split: str) -> None:
    """Writes the recorded scores of a finished run into its log, once.

    As a line of metrics.jsonl with `"split": "eval"`, and `"of"` the split, and as
    eval/<name> in TensorBoard.
    """
    row = recorded_row(session, workdir, step, split)
    if row is None:
        return
    record_once(
        workdir,
        {"step": step, "split": "eval", "of": split, **report.scalars(row)},
        tensorboard=session.config.log.tensorboard,
    )


def recorded_table(
    session: Session, workdir: Path, step: int, split: str
) -> str | None:
    """The table that a finished run wrote, or None if it has yet to be scored.

    It counts only if `recorded_row` does and it has every configured baseline.
    """
    row = recorded_row(session, workdir, step, split)
    if row is None:
        return None
    try:
        rows, wanted = row["baselines"], set(session.config.eval.baselines)
        complete = not row["ground_truth"] or wanted <= set(rows)
        return report.format_table([*rows.values(), row]) if complete else None
    except (ValueError, KeyError, TypeError):
        return None


def recorded_row(session: Session, workdir: Path, step: int, split: str) -> dict | None:
    """The scores that a finished run wrote, or None if it has yet to be scored.

    `scored.recorded_row` says which count.
    """
    return scored.recorded_row(
        session, workdir, step, split, _conditions(session.config)
    )


def provenance(
    config: ConfigDict, data: Any, ours: Scored, split: str
) -> report.Provenance:
    """What `recorded_row` compares; see `scored.provenance`."""
    return scored.provenance(config, data, ours, split, _conditions(config))


def _conditions(config: ConfigDict) -> dict[str, Any]:
    """What else of a config may change the rows (`task.IDENTITY.meaning` cannot)."""
    found = {
        "max_images": config.eval.max_images,
        "crop": list(config.data.crop),
        "raster": config.raster.to_dict(),
        "seed": config.seed,  # of the untrained row
    }
    if "supervised" in config.eval.baselines:  # which alone has them
        found["baseline_steps"] = config.eval.baseline_steps
    return found


SCORING = Scoring(check_data, score_run, recorded_table, log_scores)
