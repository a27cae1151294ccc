"""The last act of a run: its scores beside the baselines, written and printed."""

import copy
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.engine.checkpoint import newest_step
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.log import say
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d import evaluate, model, train
from unsup3d_jax.unsup3d.options import loss_weights

TRAINED = {
    "supervised": "the depth net trained on true depth",
    "oracle": "the method with true view and light given",
}


# What the parameters of a score are from, where they are not another run's.
THIS_RUN = "this run"


def baseline_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config that trains a baseline with the loop of the method.

    `supervised` learns depth from the truth for `eval.baseline_steps`: Table 2's upper
    bound, if that is long enough. `oracle` learns depth and albedo as the method does
    and as long, with true view and light.

    Raises:
        ValueError: for another name.
    """
    result = copy.deepcopy(config)
    with result.unlocked():
        result.eval.baselines = ()
        result.eval.every = 0  # its best checkpoint is of no interest
        result.log.picture_every = 0
        # The viewpoint is given, or not asked for: depth need not wait for it.
        result.view.warmup_steps = 0
        result.train.depth_start = result.train.depth_full = 0
        if name == "supervised":
            result.train.steps = config.eval.baseline_steps or config.train.steps
            result.model.supervision = "depth"
            # No relief is held back.
            result.depth.bump_height, result.depth.output_gain = 0.0, 1.0
            result.train.lr_scale.depth = 1.0
        elif name == "oracle":
            result.model.oracle_view = result.model.oracle_light = True
        else:
            raise ValueError(f"no trained baseline is called {name!r}.")
    return result


def check_data(config: ConfigDict, splits: train.Splits) -> None:
    """Finds out before hours are spent what the data cannot do.

    Loads the splits that pictures, evaluations and the final table will want, and
    asks whether the baselines can be trained.

    Raises:
        UserError: naming the split that is missing or empty, or the baseline and
            the field that it lacks.
    """
    if config.log.picture_every or config.eval.every:
        splits("val")
    splits(config.eval.split)
    needs = {"supervised": ("depth", "mask"), "oracle": ("view", "light")}
    wanted = [n for n in config.eval.baselines if n in train.TRAINED_BASELINES]
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
    config: ConfigDict,
    workdir: Path,
    params: Any,
    step: int,
    split: str,
    splits: train.Splits,
    *,
    train_baselines: bool,
    interrupts: Interrupts,
    checkpoint: str = THIS_RUN,
) -> str:
    """Scores parameters and the configured baselines on one split.

    Baselines that need training live in `<workdir>/baselines/<name>/`. They
    are trained (or resumed) there if `train_baselines`; otherwise those that
    are not finished are left out of the table, and a message says so.

    Args:
        checkpoint: where the parameters are from, for the record.

    Returns:
        The table, whose last row is "ours"; `eval/<split>.json` holds the same.

    Raises:
        Interrupted: if a signal stopped the training of a baseline.
        UserError: if the data set is too small or lacks what is asked for.
    """
    options = train.check_config(config)
    ev, data = config.eval, splits(split)
    limits = {"batch_size": ev.batch_size, "max_images": ev.max_images}
    ours = evaluate.evaluate(
        params,
        data,
        options,
        constants=model.load_constants(config),
        weights=loss_weights(config, step),
        **limits,
    )
    untrained = [n for n in ev.baselines if n not in train.TRAINED_BASELINES]
    rows = evaluate.baselines(
        data,
        # The untrained row is the method's start, also in a supervised run.
        options,
        names=untrained,
        initial_params=train.initial_params(config) if untrained else None,
        **limits,
    )
    for name in ev.baselines:
        if name not in train.TRAINED_BASELINES:
            continue
        config_b, workdir_b = (
            baseline_config(config, name),
            workdir / "baselines" / name,
        )
        done = newest_step(workdir_b) or 0
        if done < config_b.train.steps and not train_baselines:
            say(f"baseline {name!r} is left out: --mode=train has yet to train it.")
            continue
        say(f"baseline {name!r}:")
        params_b, step_b = train.train(
            config_b, workdir_b, splits, interrupts=interrupts
        )
        if step_b < config_b.train.steps:
            raise Interrupted
        row = evaluate.evaluate(
            params_b, data, train.check_config(config_b), name=name, **limits
        )
        row["description"] = f"{TRAINED[name]}, {step_b} steps of the same loop"
        rows.append(row)
    path = evaluate.write_scores(
        workdir,
        split,
        ours,
        baseline_rows=rows,
        step=step,
        crop=config.data.crop,
        data_name=config.data.name,
        scored=scored_with(config, data, checkpoint),
    )
    say(f"scores of {ours['images']} images of split {split}: {path}")
    return evaluate.format_table([*rows, ours])


def recorded_table(
    config: ConfigDict, workdir: Path, step: int, split: str, splits: train.Splits
) -> str | None:
    """The table that a finished run wrote, or None if it has yet to be scored.

    It counts only if `recorded_row` does and it has every configured baseline.
    """
    row = recorded_row(config, workdir, step, split, splits)
    if row is None:
        return None
    try:
        rows = row["baselines"]
        complete = not row["ground_truth"] or set(config.eval.baselines) <= set(rows)
        return evaluate.format_table([*rows.values(), row]) if complete else None
    except (ValueError, KeyError, TypeError):
        return None


def recorded_row(
    config: ConfigDict, workdir: Path, step: int, split: str, splits: train.Splits
) -> dict | None:
    """The scores that a finished run wrote, or None if it has yet to be scored.

    They count only if they are of this step of this run on the config's data, under
    the same conditions: mode eval writes the same file, perhaps of fewer images, of
    other data, or of another run.
    """
    try:
        row = json.loads((workdir / "eval" / f"{split}.json").read_text())
        scored, expected = row["scored"], _conditions(config) | {"checkpoint": THIS_RUN}
        same = all(scored[key] == value for key, value in expected.items())
        if row["checkpoint_step"] != step or not same:
            return None
        data = scored["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        return row if splits(split).digest == data else None
    except UserError:  # without the data nothing can be scored again
        return row


def scored_with(
    config: ConfigDict, data: Any, checkpoint: str = THIS_RUN
) -> dict[str, Any]:
    """What `recorded_row` compares, for `evaluate.write_scores`.

    Args:
        data: the split that was scored.
        checkpoint: where the parameters are from.
    """
    return _conditions(config) | {"data": data.digest, "checkpoint": checkpoint}


def _conditions(config: ConfigDict) -> dict[str, Any]:
    """What else of a config may change the rows; `checkpoint.MEANING` cannot."""
    return {
        "max_images": config.eval.max_images,
        "crop": list(config.data.crop),
        "baseline_steps": config.eval.baseline_steps,
        "raster": config.raster.to_dict(),
        "seed": config.seed,  # of the untrained row
    }
