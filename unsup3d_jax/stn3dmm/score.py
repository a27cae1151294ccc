"""The last act of a run: its scores beside the baselines, written and printed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from unsup3d_jax.configuration import changed
from unsup3d_jax.engine import scored
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.log import record_once, say
from unsup3d_jax.engine.scored import Scored, Scoring
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.workdir import newest_step
from unsup3d_jax.evaluation import report
from unsup3d_jax.stn3dmm import people, several_views, task
from unsup3d_jax.stn3dmm.evaluate import (
    Judge,
    flat_images,
    judge_of,
    predict,
    row_of,
    score,
)
from unsup3d_jax.stn3dmm.fit import fit_landmarks
from unsup3d_jax.stn3dmm.layers import POSE_SIZE, Camera
from unsup3d_jax.stn3dmm.options import (
    SUPERVISED,
    Face,
    load_face,
    options_from_config,
)

DESCRIPTIONS = {
    "zero": "theta = 0: the mean face from the front, in the middle",
    "constant": "the mean theta of the training set, or of fits to its landmarks",
    "no_shape": "ours with its coefficients set to 0",
    "fit": "theta optimised on the true landmarks of each image, no network",
    SUPERVISED: "the localiser trained on true theta by the same loop",
}
_FIT_AT_ONCE = 100  # images
_FIT_NOISE_PX = 0.1  # of landmarks that are true
_CONSTANT_IMAGES = 1000  # of the training set


def supervised_config(config: ConfigDict) -> ConfigDict:
    """The config that trains the supervised row with the loop of the method."""
    return changed(
        config,
        {
            "eval.baselines": (),
            "eval.every": 0,  # its best checkpoint is of no interest
            "log.picture_every": 0,
            "train.init_from": "",
            "train.steps": config.eval.baseline_steps or config.train.steps,
            "camera.fov_deg": 10.0,  # in which theta is true
            "loss.landmark": 0.0,
            "loss.prior": 0.0,
            "loss.symmetry": 0.0,
            "loss.multi_view": 0.0,
            "loss.shape": 0.0,
            "loss.identity": 0.0,
            "loss.theta": 1e-3,
            "loss.vertices": 1.0,
            "loss.outside": 0.0,
            "loss.scale": 0.0,
            "broken.landmarks": False,
        },
    )


def check_data(session: Session) -> None:
    """Loads what the end of a run will want, before hours are spent.

    Raises:
        UserError: naming the split that is missing or empty.
    """
    config = session.config
    if config.log.picture_every or config.eval.every:
        session.splits("val")
    session.splits(config.eval.split)


def score_run(
    session: Session,
    workdir: Path,
    ours: Scored,
    split: str,
    *,
    train_baselines: bool,
) -> str:
    """Scores parameters and the configured baselines on one split.

    The supervised row lives in `<workdir>/baselines/supervised/`. It is trained, or
    resumed, there if `train_baselines`; otherwise it is left out if it is not finished,
    and a message says so.

    Returns:
        The table, whose last row is "ours"; `eval/<split>.json` holds the same.

    Raises:
        Interrupted: if a signal stopped the training of the baseline.
        UserError: if the data set is too small or lacks what is asked for.
    """
    config, ev = session.config, session.config.eval
    face = load_face(config)
    options, judge = options_from_config(config, face), judge_of(config, face)
    data = session.splits(split)
    images = flat_images(data, ev.max_images)
    theta = predict(ours.params, images["image"], options.localiser, ev.batch_size)
    row = row_of("ours", score(theta, images, judge, ev.batch_size))
    # With a model of another kind than theirs the truth of open faces says nothing.
    if ev.people > 0 and judge.true_grid is not None and "truth" in images:
        several = people.load_views(config, face, split)
        flat = flat_images(several)
        of_views = predict(ours.params, flat["image"], options.localiser, ev.batch_size)
        lead = several.arrays["image"].shape[:2]
        row["views"] = several_views.score_views(
            of_views.reshape(*lead, -1), several, judge
        )

    rows = []
    for name in ev.baselines:
        if name == SUPERVISED:
            rows += _supervised(session, workdir, images, train_baselines)
            continue
        other = _UNTRAINED[name](session, face, judge, images, theta)
        rows.append(row_of(name, score(other, images, judge, ev.batch_size)))
        rows[-1]["description"] = DESCRIPTIONS[name]
    path = report.write_scores(
        workdir,
        row,
        scored.provenance(config, data, ours, split, _conditions(config)),
        baseline_rows=rows,
    )
    say(f"scores of {row['images']} images of split {split}: {path}")
    return format_table([*rows, row])


# --- rows -----------------------------------------------------------------------------

_Theta = Float[np.ndarray, "n p"]


def _zero(
    session: Session, face: Face, judge: Judge, images: Mapping, ours: _Theta
) -> _Theta:
    return np.zeros_like(ours)


def _no_shape(
    session: Session, face: Face, judge: Judge, images: Mapping, ours: _Theta
) -> _Theta:
    return np.concatenate(
        [ours[:, :POSE_SIZE], np.zeros_like(ours[:, POSE_SIZE:])], axis=1
    )


def _fit(
    session: Session, face: Face, judge: Judge, images: Mapping, ours: _Theta
) -> _Theta:
    return fitted(judge, images["keypoints"][..., :2])


def _constant(
    session: Session, face: Face, judge: Judge, images: Mapping, ours: _Theta
) -> _Theta:
    training = flat_images(session.splits("train"), _CONSTANT_IMAGES)
    # Through another camera than theirs the true theta shows another place.
    exact = judge.camera == judge.true_camera and "latent" in training
    theta = (
        training["latent"] if exact else fitted(judge, training["keypoints"][..., :2])
    )
    return np.broadcast_to(theta.mean(0, keepdims=True), ours.shape).copy()


_UNTRAINED: dict[str, Callable[..., _Theta]] = {
    "zero": _zero,
    "constant": _constant,
    "no_shape": _no_shape,
    "fit": _fit,
}


def fitted(judge: Judge, points: Float[np.ndarray, "n l 2"]) -> _Theta:
    """Theta of landmarks alone, a few images at a time."""
    parts = []
    for first in range(0, len(points), _FIT_AT_ONCE):
        rows = np.minimum(np.arange(first, first + _FIT_AT_ONCE), len(points) - 1)
        found = fit_landmarks(
            judge.grid,
            jnp.asarray(points[rows]),
            judge.camera,
            image_size=judge.image_size,
            noise_px=_FIT_NOISE_PX,
        )
        parts.append(np.asarray(found.theta)[: len(points) - first])
    return np.concatenate(parts)


def _supervised(
    session: Session, workdir: Path, images: Mapping, train: bool
) -> list[dict[str, Any]]:
    config = supervised_config(session.config)
    workdir = workdir / "baselines" / SUPERVISED
    if (newest_step(workdir) or 0) < config.train.steps and not train:
        say(f"baseline '{SUPERVISED}' is left out: --mode=train has yet to train it.")
        return []
    say(f"baseline '{SUPERVISED}':")
    face, its_session = load_face(config), session.of(config)
    own = load_face(session.config).camera
    if face.camera != own:  # which gives the same picture another theta
        its_session = dataclasses.replace(its_session, splits=task.lazy_splits(config))
    params, step = task.train(its_session, workdir)
    if step < config.train.steps:
        raise Interrupted
    options, judge = options_from_config(config, face), judge_of(config, face)
    size = config.eval.batch_size
    theta = predict(params, images["image"], options.localiser, size)
    known = images
    if face.camera != own and "truth" in images:
        known = dict(images)
        known["truth"] = _through(images["truth"], own, face.camera)
    row = row_of(SUPERVISED, score(theta, known, judge, size))
    row["description"] = f"{DESCRIPTIONS[SUPERVISED]}, {step} steps"
    return [row]


def _through(truth: np.ndarray, old: Camera, new: Camera) -> np.ndarray:
    """True theta for the scale and offset of another camera of the same faces."""
    truth = truth.copy()
    truth[..., 3:5] += np.array(old.offset) - np.array(new.offset)
    truth[..., 5] += np.log(old.scale / new.scale)
    return truth


# --- table ----------------------------------------------------------------------------


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal, one line a row, in the order given."""

    def cell(row: Mapping[str, Any], key: str, scale: float, digits: int) -> str:
        value = row.get(key)
        value = value["mean"] if isinstance(value, Mapping) else value
        return "-" if value is None else f"{scale * value:.{digits}f}"

    columns = [
        (header, [cell(row, key, scale, digits) for row in rows])
        for header, key, scale, digits in _COLUMNS
    ]
    columns = [(h, cells) for h, cells in columns if any(c != "-" for c in cells)]
    names = ["method", *(row["name"] for row in rows)]
    images = ["images", *(str(row["images"]) for row in rows)]
    lines = zip(names, *([h, *cells] for h, cells in columns), images, strict=True)
    text = report.aligned([list(line) for line in lines])
    if views := rows[-1].get("views"):
        text += [
            "",
            f"{views['people']} people in {views['views']} views each: flattened faces "
            f"vary {views['variance']['mean']:.2f} as much as the images do; their "
            f"mean is nearer to the true one than {views['mean_wins']:.0%} of them.",
        ]
    return "\n".join(text)


# Header, key of a row, factor, digits.
_COLUMNS = (
    ("NME %", "nme", 100.0, 2),
    ("seen %", "nme_visible", 100.0, 2),
    ("vertices %", "vertex_nme", 100.0, 2),
    ("yaw deg", "yaw_deg", 1.0, 2),
    ("pitch", "pitch_deg", 1.0, 2),
    ("roll", "roll_deg", 1.0, 2),
    ("turn", "rotation_deg", 1.0, 2),
    ("shape mm", "shape_mm", 1.0, 2),
    ("of mean's", "shape_ratio", 1.0, 3),
    ("seen IoU", "visible_iou", 1.0, 3),
    ("texture L1", "texture_l1", 1.0, 4),
)


# --- what is on record ----------------------------------------------------------------


def recorded_table(
    session: Session, workdir: Path, step: int, split: str
) -> str | None:
    """The table that a finished run wrote, or None if it has yet to be scored."""
    row = _recorded_row(session, workdir, step, split)
    if row is None or not set(session.config.eval.baselines) <= set(row["baselines"]):
        return None
    try:
        return format_table([*row["baselines"].values(), row])
    except (ValueError, KeyError, TypeError):
        return None


def log_scores(session: Session, workdir: Path, step: int, split: str) -> None:
    """Writes the recorded scores of a finished run into its log, once."""
    row = _recorded_row(session, workdir, step, split)
    if row is None:
        return
    numbers = {key: row[key]["mean"] for _, key, _, _ in _COLUMNS
               if isinstance(row.get(key), dict)}  # fmt: skip
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
    """What else of a config may change the rows (`task.IDENTITY.meaning` cannot)."""
    ev = config.eval
    return {
        "max_images": ev.max_images,
        "crop": list(config.data.crop),
        "baseline_steps": ev.baseline_steps,
        "visibility": config.visibility.eval,
        "views": [ev.people, ev.views],
    }


SCORING = Scoring(check_data, score_run, recorded_table, log_scores)
