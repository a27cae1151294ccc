"""The last act of a run: its generator before the gate, written and printed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.engine import scored
from unsup3d_jax.engine.log import record_once, say
from unsup3d_jax.engine.scored import Scored, Scoring
from unsup3d_jax.engine.task import Session
from unsup3d_jax.evaluation import report
from unsup3d_jax.stylegan2 import gate, held_out, ruler, shipped
from unsup3d_jax.stylegan2.options import gan_options

RULES = {
    "frechet": (
        "in features of a convolutional net with random weights that never change, "
        "each divided by its spread over training images; samples: against as many "
        "held-out images; real: as many training images against these"
    ),
    "spread": "standard deviation of readings of samples over that of held-out images",
    "linear_r2": "of readings by a straight line in w; a quarter of samples, unseen",
    "ruler_r2": (
        "of readings against the truth, held-out images; the ruler is a ridge "
        "regression from 16 x 16 pixels, faces before a plain background"
    ),
    "nearest": (
        "median root mean square difference to the nearest training image or its "
        "mirror image, pixels in [-1, 1]; copies: share of samples nearer than all but "
        "one in a hundred held-out images are"
    ),
    "people": (
        "held-out people, mean over them of the root mean square error on the face, "
        "pixels in [-1, 1]: of the latent that is found for it (W, 400 steps), of the "
        "nearest of its 4,096 samples, of the nearest training image, of the mean "
        "sample"
    ),
    "passes": (
        f"spread and linear_r2 of {' and '.join(gate.GATED)} of at least {gate.GATE}"
    ),
}


def check_data(session: Session) -> None:
    """Loads what the end of a run will want, before hours are spent.

    Raises:
        UserError: naming the split that is missing or empty.
    """
    if session.config.eval.every:
        session.splits("val")
    session.splits(session.config.eval.split)


def score_run(
    session: Session,
    workdir: Path,
    ours: Scored,
    split: str,
    *,
    train_baselines: bool,
) -> str:
    """Holds a generator against the gate.

    Returns:
        The table; `eval/<split>.json` holds the same.

    Raises:
        UserError: if the data set is too small, or the file cannot be written.
    """
    config = session.config
    judge = gate.judge_of(config, session.splits, split)
    found = gate.whole(
        ours.params, judge, gan_options(config), count=config.eval.samples
    )
    if people := _people(config, session.splits(split)):
        gan = shipped.gan_of(ours.params, config)
        found["people"] = held_out.found_again(gan, *people, judge.training)
    about = scored.provenance(
        config, session.splits(split), ours, split, _conditions(config)
    )
    path = report.write_scores(workdir, {"rules": RULES, **found}, about)
    say(f"the gate, by {len(judge.held_out)} images of split {split}: {path}")
    return format_table(found)


def _people(
    config: ConfigDict, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and masks of eval.people held-out people; None: of nobody."""
    count = min(config.eval.people, len(dataset))
    if count == 0:
        return None
    # Of photos nobody knows the mask, and all of them counts.
    known = config.data.name == "open_faces"
    found = dataset.take(range(count), ("image", "mask") if known else ("image",))
    masks = found.get("mask", np.ones(found["image"].shape[:3], bool))
    return found["image"], masks


def format_table(found: Mapping[str, Any]) -> str:
    """The gate's figures for a terminal."""
    lines = []
    if "spread" in found:
        head = ["", "spread / data", "R2 in w", "R2 of the ruler"]
        kinds = ("spread", "linear_r2", "ruler_r2")
        rows = [[name, *(f"{found[k][name]:.2f}" for k in kinds)]
                for name in ruler.NAMES]  # fmt: skip
        lines += [*report.aligned([head, *rows]), ""]
    near, apart = found["nearest"], found["frechet"]
    lines += [
        f"Frechet distance {apart['samples']:.2f}, of real images {apart['real']:.2f}",
        f"nearest training image {near['samples']:.3f}, of held-out images "
        f"{near['held_out']:.3f}; copies {near['copies']:.1%}",
    ]
    if "people" in found:
        lines.append(held_out.table(found["people"]))
    if found["passes"] is not None:
        rule = f"{gate.GATE} of yaw and light x"
        lines.append(f"gate ({rule}): {'passed' if found['passes'] else 'not passed'}")
    return "\n".join(lines)


def recorded_table(
    session: Session, workdir: Path, step: int, split: str
) -> str | None:
    """The table that a finished run wrote, or None if it has yet to be scored."""
    row = _recorded_row(session, workdir, step, split)
    if row is None:
        return None
    try:
        return format_table(row)
    except (ValueError, KeyError, TypeError):
        return None


def log_scores(session: Session, workdir: Path, step: int, split: str) -> None:
    """Writes the recorded scores of a finished run into its log, once."""
    row = _recorded_row(session, workdir, step, split)
    if row is None:
        return
    numbers = {"frechet": row["frechet"]["samples"]}
    for kind in ("spread", "linear_r2"):
        numbers |= {f"{kind}_{name}": v for name, v in row.get(kind, {}).items()}
    record_once(
        workdir,
        {"step": step, "split": "eval", "of": split, **numbers},
        tensorboard=session.config.log.tensorboard,
    )


def _recorded_row(
    session: Session, workdir: Path, step: int, split: str
) -> dict | None:
    return scored.recorded_row(
        session, workdir, step, split, _conditions(session.config)
    )


def _conditions(config: ConfigDict) -> dict[str, Any]:
    """What else of a config may change the figures."""
    return {"samples": config.eval.samples, "people": config.eval.people}


SCORING = Scoring(check_data, score_run, recorded_table, log_scores)
