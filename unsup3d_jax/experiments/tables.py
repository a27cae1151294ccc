"""Mode `tables`: the rows of a paper's table, several seeds each, and the table.

    <workdir>/
      rows/<row>/seed<k>/   a workdir as training leaves it, with eval/<split>.json
      rows/<row>/together/  with tables.together: the training of all seeds as one;
                            their own workdirs then have scores only
      rows/<baseline>.json  rows without training
      rotnet.npz            the self-supervised encoder, where a row needs it
      table.json            everything below is made from it
      table.md              ours | paper | rank agreement
      figure.png            input, and each row's shape and albedo (Fig. 9)

A row and seed that is finished is not trained again; one that was interrupted
resumes. `table.json` is rewritten after each, so a table that is still being
filled can be read at any time.
"""

import functools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.engine import checkpoint, parallel, recorder, replicas
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.log import say
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import rotnet
from unsup3d_jax.experiments.paper_tables import TABLES, Row, Table
from unsup3d_jax.files import write_atomically
from unsup3d_jax.formation import geometry
from unsup3d_jax.show import pictures
from unsup3d_jax.unsup3d import evaluate, model, score, train, watch
from unsup3d_jax.unsup3d.options import ModelOptions, loss_weights

ALL_ROWS = ("all",)
# (key in a row, its name, factor, digits): the measures of Tables 2 to 4. MAD by
# the authors' formula is what compares with the paper's.
MEASURES = (
    ("side", "SIDE (x10^-2)", 100.0, 3),
    ("mad_authors_deg", "MAD (deg.), authors' formula", 1.0, 2),
    ("mad_deg", "MAD (deg.), unit normals", 1.0, 2),
)
MORE_MEASURES = ("mae", "depth_pearson", "coverage", "albedo")  # table.json only
# Below this correlation of predicted with true yaw, viewpoints are not learnt.
VIEW_LOST_PEARSON = 0.5
# Below this correlation of predicted with true depth, on average over images, shape
# is not learnt. On the open faces noise has 0, a bump 0.6, the average depth 0.89.
SHAPE_LOST_PEARSON = 0.5
COLLAPSES = {
    "hollow": (
        "depth is opposed to the truth (depth_pearson below "
        f"-{SHAPE_LOST_PEARSON}); where true depth is not known, in most images the "
        "centre is farther than what surrounds it, in the canonical frame"
    ),
    "flat": (
        f"depth varies by less than {watch.FLAT_DEPTH_SHARE:.0%} of its range inside "
        "an image"
    ),
    "shape_lost": (
        "neither of these, but depth follows the truth no better than noise does "
        f"(depth_pearson below {SHAPE_LOST_PEARSON}); False where true depth is not "
        "known"
    ),
    "view_collapsed": (
        f"all three angles spread by less than {watch.VIEW_SPREAD_DEG:g} degree over "
        "images"
    ),
    "view_lost": (
        f"the correlation of predicted with true yaw is below {VIEW_LOST_PEARSON}, as "
        "of a hollow face, which turns the other way; False where the true viewpoint "
        "is not known"
    ),
    "diverged": "loss or gradient were not finite",
}
# Of sections that otherwise do not decide what a row is.
_NUMERIC = ("eval.baseline_steps", "eval.max_images", "tables.encoder")
_CLAY_YAW_DEG = 25.0  # the figure turns shapes, so that flat ones show


# --- configurations -------------------------------------------------------------


def table_of(config: ConfigDict) -> tuple[Table, dict[str, Row]]:
    """The table a config names, and the rows it asks for.

    Raises:
        UserError: if section tables names something that does not exist.
    """
    from configs.tables import recipes

    options = config.tables
    if options.name not in TABLES:
        raise UserError(
            f"tables.name must be one of {', '.join(TABLES)}, got {options.name!r}; "
            "use a config of configs/tables/."
        )
    if options.scale not in recipes.SCALES:
        raise UserError(
            f"tables.scale must be one of {', '.join(recipes.SCALES)}, got "
            f"{options.scale!r}."
        )
    for name, least in (("seeds", 1), ("figure_images", 0)):
        if options[name] < least:
            raise UserError(
                f"tables.{name} must be at least {least}, got {options[name]}."
            )
    table = TABLES[options.name]
    if tuple(options.rows) in (ALL_ROWS, ()):
        return table, dict(table.rows)
    if unknown := [name for name in options.rows if name not in table.rows]:
        raise UserError(
            f"tables.rows: {unknown[0]!r} is no row of {options.name}; its rows are "
            f"{', '.join(table.rows)}."
        )
    return table, {k: v for k, v in table.rows.items() if k in options.rows}


def base_config(config: ConfigDict, given: Collection[str] = ()) -> ConfigDict:
    """The recipe that all rows of a table share, with all that the user changes.

    Args:
        config: of configs/tables/; what differs from its default is a change.
        given: keys set by name, as on the command line ("train.warmup_steps"),
            which are changes whatever their value.
    """
    from configs import default

    result = _table_recipe(config)
    defaults = checkpoint.flatten(default.get_config().to_dict())
    _change(
        result,
        {
            key: value
            for key, value in checkpoint.flatten(config.to_dict()).items()
            if key in given or value != defaults[key]
        },
    )
    return result


def _table_recipe(config: ConfigDict) -> ConfigDict:
    """The scale's recipe with what the table changes of it."""
    from configs.tables import recipes

    result = recipes.recipe(config.tables.scale)
    _change(result, TABLES[config.tables.name].changes)
    return result


def row_config(
    base: ConfigDict, row: Row, *, seed: int, encoder: Path | None = None
) -> ConfigDict:
    """The config that trains one seed of a row.

    Args:
        base: of `base_config`; its seed is that of the first.
        encoder: weights of the self-supervised encoder, for rows that need it.
    """
    from configs import default

    result = base.copy_and_resolve_references()
    # A row's workdir knows nothing of the table: another number of seeds, or an
    # encoder trained otherwise, must not make it another run.
    with result.unlocked():
        result.tables = default.get_config().tables
        result.rotnet = default.get_config().rotnet
    if row.kind == "supervised":
        result = score.baseline_config(result, "supervised")
    _change(result, row.changes)
    steps = result.train.steps
    _change(result, {key: round(share * steps) for key, share in row.shares.items()})
    if row.needs_encoder:
        _change(result, {"loss.perceptual_weights": str(encoder)})
    _change(result, {"seed": base.seed + seed})
    result.lock()
    return result


def _change(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    with config.unlocked():
        for key, value in changes.items():
            *sections, name = key.split(".")
            place = functools.reduce(lambda c, s: c[s], sections, config)
            # JSON-like lists back to the tuples that configs hold.
            place[name] = tuple(value) if isinstance(value, list) else value


# --- running ----------------------------------------------------------------------


def run(
    config: ConfigDict,
    workdir: Path,
    *,
    interrupts: Interrupts,
    given: Collection[str] = (),
) -> str:
    """Trains and scores what is missing, and writes the table.

    Seeds are trained one after the other, each as a run of its own; or, with
    `tables.together`, as one run of stacked parameters (`replicas`).

    Args:
        config: of configs/tables/, resolved.
        workdir: of the table.
        interrupts: entered already.
        given: see `base_config`.

    Returns:
        The table as Markdown, also in `table.md`.

    Raises:
        UserError: for anything the user can fix.
        Interrupted: after a signal, with everything so far saved.
    """
    table, rows = table_of(config)
    base = base_config(config, given)
    data_of = _DataCache()
    encoder = _encoder_path(base, rows, workdir)
    configs = {
        name: [
            row_config(base, row, seed=seed, encoder=encoder)
            for seed in range(config.tables.seeds)
        ]
        for name, row in rows.items()
    }
    stacked = {}
    for name in rows:  # what would be refused is refused before hours are spent
        train.check_config(configs[name][0])
        if base.tables.together:
            replicas.check_config(configs[name][0])
        # Also without tables.together: an earlier start may have left such a run.
        folder = workdir / "rows" / name / "together"
        stacked[name] = _Together(configs[name][0], base.tables.seeds, folder, data_of)
    if encoder is not None and not base.tables.encoder:
        _train_encoder(base, encoder, data_of, interrupts)
    scores: dict[str, list[dict]] = {name: [] for name in rows}

    def write(complete: bool) -> dict:
        record = summarise(base, table, rows, scores, complete=complete)
        record["made_with"] = made_with(base, workdir, configs)
        write_table(workdir, record)
        return record

    for name, row in rows.items():
        if row.kind not in ("trained", "supervised"):
            scores[name] = [_untrained_row(configs[name][0], row, workdir, data_of)]
            write(False)
            continue
        together = stacked[name] if base.tables.together else None
        for seed, row_cfg in enumerate(configs[name]):
            place = workdir / "rows" / name / f"seed{seed}"
            say(f"{base.tables.name}: {row.label}, seed {row_cfg.seed}")
            scores[name].append(
                _trained_row(row_cfg, place, data_of(row_cfg), interrupts, together)
            )
            write(False)
    record = write(True)
    if base.tables.figure_images:
        path = workdir / "figure.png"
        _save_figure(path, rows, configs, workdir, data_of, base.tables.figure_images)
    return markdown(record)


def made_with(
    base: ConfigDict, workdir: Path, configs: Mapping[str, Sequence[ConfigDict]]
) -> dict:
    """What the trained rows of a workdir were trained with.

    Returns:
        "changes": keys that are neither the scale's nor the table's, and their values;
        "commits", "devices" and "versions" of each run's last start, each one once.
    """
    recipe = checkpoint.flatten(_table_recipe(base).to_dict())
    changes = {
        key: value
        for key, value in checkpoint.flatten(base.to_dict()).items()
        if value != recipe[key]
        and (
            key in _NUMERIC
            or not (checkpoint.is_harmless(key) or key.startswith("tables."))
        )
    }
    found: dict[str, list] = {"git_commit": [], "devices": [], "versions": []}
    for name, seeds in configs.items():
        for seed in range(len(seeds)):
            alone, together = (
                workdir / "rows" / name / part for part in (f"seed{seed}", "together")
            )
            path = alone / "config.json"
            if checkpoint.newest_step(alone) is None and _stacked_seeds(together):
                path = together / "config.json"  # the seed's own says who scored it
            if not path.is_file():
                continue  # not trained yet, or not at all
            run = json.loads(path.read_text())
            for key, values in found.items():
                if run.get(key) not in values:
                    values.append(run.get(key))
    return {
        "changes": changes,
        "commits": found["git_commit"],
        "devices": found["devices"],
        "versions": found["versions"],
    }


class _DataCache:
    """config -> its splits; rows on the same data share what is loaded."""

    def __init__(self):
        self._splits: dict[str, train.Splits] = {}

    def __call__(self, config: ConfigDict) -> train.Splits:
        # Depth maps on disk are decoded with section depth.
        sections = {k: config[k].to_dict() for k in ("data", "depth")}
        key = json.dumps(sections, sort_keys=True)
        if key not in self._splits:
            self._splits[key] = train.lazy_splits(config)
        return self._splits[key]


def _encoder_path(
    base: ConfigDict, rows: Mapping[str, Row], workdir: Path
) -> Path | None:
    """Where the self-supervised encoder is, or will be; None if no row needs it."""
    if not any(row.needs_encoder for row in rows.values()):
        return None
    given = base.tables.encoder
    return (Path(given).expanduser() if given else workdir / "rotnet.npz").resolve()


def _train_encoder(
    base: ConfigDict,
    path: Path,
    data_of: _DataCache,
    interrupts: Interrupts,
) -> None:
    """Trains the encoder on the table's images, unless that is done."""
    record = path.with_suffix(".json")
    done = record.is_file() and path.is_file()
    if done and json.loads(record.read_text())["steps"] == base.rotnet.steps:
        return
    reached = rotnet.pretrain(base, path, data_of(base), interrupts=interrupts)
    if reached["steps"] < base.rotnet.steps:
        raise Interrupted


class _Together:
    """All seeds of a row, trained as one when the first of them is asked for.

    A run that has begun keeps its number of seeds (tables.seeds in its own
    config.json). Seeds that are added later are trained alone.

    Args:
        first: config of the first seed.
        seeds: how many.
        folder: the run's own workdir.

    Raises:
        UserError: if the folder holds a run of another config.
    """

    def __init__(
        self, first: ConfigDict, seeds: int, folder: Path, data_of: _DataCache
    ):
        self._folder, self._data_of = folder, data_of
        self._config = first.copy_and_resolve_references()
        with self._config.unlocked():
            self._config.tables.seeds = _stacked_seeds(folder) or seeds
        checkpoint.check_workdir(folder, self._config)
        self._found: tuple[Any, int] | None = None
        self._failed = folder / "diverged.json"
        self._fits = True

    def params(self, seed: int, interrupts: Interrupts) -> tuple[Any, int] | None:
        """Parameters of one seed, and the step reached; see `train.train`.

        None if the seed has to be trained alone: it is none of the stacked ones,
        the common run diverged (one seed cannot stop by itself), or memory has no
        room for it.
        """
        index, steps = seed - self._config.seed, self._config.train.steps
        if (
            index >= self._config.tables.seeds
            or self._failed.is_file()
            or not self._fits
        ):
            return None
        if self._found is None or self._found[1] < steps:
            try:
                self._found = self._trained(interrupts)
            except recorder.Diverged as error:
                write_atomically(
                    self._failed, json.dumps({"diverged": str(error)}) + "\n"
                )
                say(f"{error} Training the seeds one by one instead.")
                return None
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self._fits = False
                say("No memory for all seeds at once: training them one by one.")
                return None
        params, step = self._found
        return replicas.params_of(params, index), step

    def _trained(self, interrupts: Interrupts) -> tuple[Any, int]:
        """Stacked parameters and the step reached, of this run or one before."""
        config, folder = self._config, self._folder
        with checkpoint.lock_workdir(folder):
            if (checkpoint.newest_step(folder) or 0) >= config.train.steps:
                params, step = checkpoint.load_params(folder)
                if step >= config.train.steps:  # else the newest one is damaged
                    return params, step
            devices, splits = parallel.local_devices(config), self._data_of(config)
            seeds = range(config.seed, config.seed + config.tables.seeds)
            tasks = [train.model_task(_seeded(config, seed), splits) for seed in seeds]
            checkpoint.claim_workdir(folder, config, devices)
            say(f"training {len(tasks)} seeds together in {folder}")
            state = replicas.fit(
                config, tasks, folder, devices=devices, interrupts=interrupts
            )
        return parallel.one_copy(state.params), int(state.step)


def _stacked_seeds(folder: Path) -> int | None:
    """How many seeds the common run of a folder trains; None if it has none."""
    if checkpoint.newest_step(folder) is None:
        return None
    try:
        content = json.loads((folder / "config.json").read_text())
        return int(content["config"]["tables"]["seeds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `check_workdir` says what is wrong


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    result = config.copy_and_resolve_references()
    _change(result, {"seed": seed})
    return result


def _trained_row(
    config: ConfigDict,
    place: Path,
    splits: train.Splits,
    interrupts: Interrupts,
    together: _Together | None,
) -> dict:
    """Scores of one seed, trained if need be; {"diverged": message} if it failed."""
    split, steps = config.eval.split, config.train.steps
    checkpoint.check_workdir(place, config)
    failed = place / "diverged.json"
    if failed.is_file():
        return json.loads(failed.read_text())
    recorded = score.recorded_row(config, place, steps, split, splits)
    if recorded is not None:
        return recorded
    try:
        found = together.params(config.seed, interrupts) if together else None
        if found is not None:  # the place has no checkpoints of its own
            checkpoint.claim_workdir(place, config, parallel.local_devices(config))
        params, step = found or train.train(
            config, place, splits, interrupts=interrupts
        )
    except recorder.Diverged as error:
        result = {"diverged": str(error)}
        write_atomically(failed, json.dumps(result) + "\n")
        say(str(error))
        return result
    if step < steps:
        raise Interrupted
    data = splits(split)
    row = evaluate.evaluate(
        params,
        data,
        train.check_config(config),
        constants=model.load_constants(config),
        weights=loss_weights(config, step),
        batch_size=config.eval.batch_size,
        max_images=config.eval.max_images,
    )
    evaluate.write_scores(
        place,
        split,
        row,
        step=step,
        crop=config.data.crop,
        data_name=config.data.name,
        scored=score.scored_with(config, data),
    )
    return score.recorded_row(config, place, step, split, splits) or row


def _untrained_row(
    config: ConfigDict, row: Row, workdir: Path, data_of: _DataCache
) -> dict:
    options = train.check_config(config)
    found = evaluate.baselines(
        data_of(config)(config.eval.split),
        options,
        names=(row.kind,),
        initial_params=(
            train.initial_params(config) if row.kind == "untrained" else None
        ),
        batch_size=config.eval.batch_size,
        max_images=config.eval.max_images,
    )
    if not found:
        raise UserError(
            f"the data set {config.data.name!r} has no true depth, which "
            f"the row {row.label!r} needs."
        )
    path = workdir / "rows" / f"{row.kind}.json"
    write_atomically(path, json.dumps(found[0], indent=2) + "\n")
    return found[0]


# --- from scores to the table -----------------------------------------------------


def collapses(row: Mapping[str, Any], *, depth_range: float) -> dict[str, bool]:
    """Whether the training of one seed ended in a known failure.

    Args:
        row: of `evaluate.evaluate`, or {"diverged": ...}.
        depth_range: largest minus smallest depth, scene units.

    Returns:
        Each of `COLLAPSES`, which says what it means; a run can have failed in
        shape and in viewpoint. Empty for a row without factors.
    """
    if "diverged" in row:
        return dict.fromkeys(COLLAPSES, False) | {"diverged": True}
    if "shape" not in row:
        return {}
    shape = row["shape"]
    if None in shape.values():  # not finite
        return dict.fromkeys(COLLAPSES, False) | {"diverged": True}
    flat = shape["depth_std"] < watch.FLAT_DEPTH_SHARE * depth_range
    hollow, shape_lost = shape["hollow_share"] > 0.5, False
    agreement = row.get("depth_pearson", {}).get("mean")
    if agreement is not None:
        # The truth decides: the centre of noise is farther by chance, and a face
        # beside the middle of its frame is none the worse.
        hollow = agreement < -SHAPE_LOST_PEARSON
        shape_lost = not hollow and agreement < SHAPE_LOST_PEARSON
    view_lost = False
    if "view" in row:
        pearson = row["view"]["yaw"]["pearson"]
        view_lost = pearson is None or pearson < VIEW_LOST_PEARSON
    return {
        "hollow": hollow and not flat,
        "flat": flat,
        "shape_lost": shape_lost and not flat,
        "view_collapsed": all(
            shape[f"view_std_{axis}_deg"] < watch.VIEW_SPREAD_DEG for axis in "xyz"
        ),
        "view_lost": view_lost,
        "diverged": False,
    }


def over_seeds(rows: Sequence[Mapping[str, Any]], key: str) -> dict | None:
    """One measure over the seeds that have it.

    Returns:
        "mean" over seeds of the mean over images; "std_seeds" (n - 1; None for
        fewer than two); "std_images", the mean over seeds of the spread over
        images; "seeds", the means themselves. None if no seed has it.
    """
    # Not finite (null in the file), or over no image: no number.
    found = [r[key] for r in rows if key in r]
    found = [entry for entry in found if entry["n"] and entry["mean"] is not None]
    if not found:
        return None
    means = [entry["mean"] for entry in found]
    return {
        "mean": float(np.mean(means)),
        "std_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "std_images": float(np.mean([entry["std"] for entry in found])),
        "seeds": means,
    }


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank agreement: Kendall's tau-b; 1 for the same order, -1 for the opposite.

    None if there are fewer than two items, or one side is all ties.
    """
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in pairs]
    untied = [sum(s[k] != 0 for s in signs) for k in range(2)]
    if 0 in untied:
        return None
    return float(sum(s * t for s, t in signs) / math.sqrt(untied[0] * untied[1]))


def summarise(
    base: ConfigDict,
    table: Table,
    rows: Mapping[str, Row],
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    complete: bool,
) -> dict:
    """Everything `table.json` holds.

    Args:
        base: of `base_config`.
        table, rows: of `table_of`.
        scores: for each row, what each seed scored; may lack the last ones.
        complete: whether all rows and seeds are in.
    """
    depth_range = base.depth.max - base.depth.min
    lines = {}
    for name, row in rows.items():
        found = list(scores[name])
        line: dict[str, Any] = {"label": row.label, "kind": row.kind}
        line["seeds"] = len(found)
        for key in (*(m[0] for m in MEASURES), *MORE_MEASURES):
            if (summary := over_seeds(found, key)) is not None:
                line[key] = summary
        for key, part in (
            ("viewpoint", "error_deg"),
            ("light", "direction_deg"),
            ("auroc", "patch"),
            ("auroc", "asymmetric"),
        ):
            inner = [r[key] for r in found if key in r]
            if (summary := over_seeds(inner, part)) is not None:
                line[f"{key}_{part}"] = summary
        for key in ("pearson", "slope"):  # absent where the true view is not known
            if yaws := [r["view"]["yaw"].get(key) for r in found if "view" in r]:
                line[f"yaw_{key}"] = {"seeds": yaws}
        line |= _keypoint_line(found)
        # An untrained model has no viewpoint yet, and has not failed.
        line["collapses"] = None
        if row.kind == "trained":
            verdicts = [collapses(r, depth_range=depth_range) for r in found]
            line["collapses"] = _rates(verdicts)
        if row.published is not None:
            line["published"] = vars(row.published).copy()
        lines[name] = line
    first = next((r for found in scores.values() for r in found if "side" in r), {})
    record = {
        "table": base.tables.name,
        "title": table.title,
        "scale": base.tables.scale,
        "complete": complete,
        "data": base.data.name,
        "split": base.eval.split,
        "images": first.get("images"),
        "steps": base.train.steps,
        "image_size": base.data.image_size,
        "seeds": base.tables.seeds,
        "seeds_trained": "together" if base.tables.together else "one by one",
        "measure": "keypoints" if table.keypoints else "SIDE and MAD",
        "rules": evaluate.RULES
        | {"crop": evaluate.crop_rule(base.data.crop), "collapses": COLLAPSES},
        "rows": lines,
        "stability": _rates(
            [
                collapses(r, depth_range=depth_range)
                for name, found in scores.items()
                if rows[name].kind == "trained"
                for r in found
            ]
        ),
        "notes": list(table.notes),
    }
    record["rank_agreement"] = _rank_agreement(lines)
    record["claims"] = [
        verdict
        for claim in table.claims
        if (verdict := _verdict(lines, claim.better, claim.worse)) is not None
    ]
    if (recovered := _recovered(lines)) is not None:
        record["recovered"] = recovered
    return record


def _keypoint_line(found: Sequence[Mapping[str, Any]]) -> dict:
    entries = [r["keypoint_depth"] for r in found if "keypoint_depth" in r]
    entries = [e for e in entries if e["sum"] is not None]
    if not entries:
        return {}
    sums = [e["sum"] for e in entries]
    return {
        "keypoint_depth": {
            "mean": float(np.mean(sums)),
            "std_seeds": float(np.std(sums, ddof=1)) if len(sums) > 1 else None,
            "keypoints": entries[0]["keypoints"],
            "seeds": sums,
        }
    }


def _rates(verdicts: Sequence[Mapping[str, bool]]) -> dict | None:
    """How many seeds failed in each way; None if no seed can fail."""
    judged = [v for v in verdicts if v]
    if not judged:
        return None
    counts = {name: sum(bool(v[name]) for v in judged) for name in COLLAPSES}
    failed = sum(any(v.values()) for v in judged)
    return counts | {
        "seeds": len(judged),
        "failed": failed,
        "failed_share": failed / len(judged),
    }


def _rank_agreement(lines: Mapping[str, Mapping[str, Any]]) -> dict:
    result = {}
    for key, paper in (("side", "side"), ("mad_authors_deg", "mad")):
        both = [x for x in lines.values() if key in x and "published" in x]
        ours = [x[key]["mean"] for x in both]
        theirs = [x["published"][paper] for x in both]
        result[key] = {"kendall_tau": kendall_tau(ours, theirs), "rows": len(both)}
    return result


def _verdict(
    lines: Mapping[str, Mapping[str, Any]], better: str, worse: str
) -> dict | None:
    """Whether an order of the paper is seen here; None if a row is missing.

    `separated`: every seed of the better row lies below every seed of the worse;
    a trained row of a single seed is not known to.
    """
    if not all(name in lines and "side" in lines[name] for name in (better, worse)):
        return None
    a, b = lines[better], lines[worse]
    verdict: dict[str, Any] = {"better": better, "worse": worse}
    alone = any(
        x["kind"] in ("trained", "supervised") and len(x["side"]["seeds"]) < 2
        for x in (a, b)
    )
    for key in ("side", "mad_authors_deg"):
        verdict[key] = {
            "seen": a[key]["mean"] < b[key]["mean"],
            "separated": not alone and max(a[key]["seeds"]) < min(b[key]["seeds"]),
        }
    return verdict


def _recovered(lines: Mapping[str, Mapping[str, Any]]) -> dict | None:
    """(constant - ours) / (constant - supervised): 1 is as good as supervision."""
    ours = next((n for n in ("ours", "full") if n in lines), "")
    names = ("constant", ours, "supervised")
    if not all(name in lines and "side" in lines[name] for name in names):
        return None
    result: dict[str, Any] = {"paper": {"side": 0.83, "mad": 0.82}}
    for key in ("side", "mad_deg", "mad_authors_deg"):
        constant, mean, supervised = (lines[name][key]["mean"] for name in names)
        span = constant - supervised
        result[key] = (constant - mean) / span if span > 0 else None
    return result


# --- files --------------------------------------------------------------------------


def write_table(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes table.json, and table.md from it."""
    finite = _without_nan(record)
    text = json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(workdir / "table.json", text + "\n")
    write_atomically(workdir / "table.md", markdown(json.loads(text)) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def markdown(record: Mapping[str, Any]) -> str:
    """The table for people, from the content of table.json alone."""
    state = "" if record["complete"] else " (not complete yet)"
    lines = [
        f"# {record['title']}{state}",
        "",
        f"Scale `{record['scale']}`: {record['image_size']} px, {record['steps']} "
        f"steps, {record['seeds']} seed(s) a trained row; data `{record['data']}`, "
        f"split `{record['split']}`, {record['images'] or 0} images. Crop: "
        f"{record['rules']['crop']}. Mean ± spread over images ± spread over seeds.",
        "",
    ]
    if changes := record.get("made_with", {}).get("changes"):
        text = ", ".join(f"`{key}={value}`" for key, value in changes.items())
        lines += [f"Changed for this table: {text}.", ""]
    if record["scale"] == "tiny":
        lines += ["**A test of the machinery: these numbers mean nothing.**", ""]
    if record["measure"] == "keypoints":
        lines += _keypoint_table(record)
    else:
        lines += _error_table(record)
        lines += ["", *_agreement_lines(record), *_patch_lines(record)]
    if record["stability"] is not None:
        s = record["stability"]
        parts = ", ".join(f"{_words(name)} {s[name]}" for name in COLLAPSES)
        lines += [
            "",
            f"Stability: {s['failed']} of {s['seeds']} unsupervised trainings failed "
            f"({parts}).",
        ]
    lines += [f"\n{note}" for note in record["notes"]]
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _failures(rates: Mapping[str, Any]) -> str:
    """How many seeds of a row failed, and how."""
    text = f"{rates['failed']} of {rates['seeds']}"
    kinds = [f"{_words(name)} {rates[name]}" for name in COLLAPSES if rates[name]]
    return f"{text}: {', '.join(kinds)}" if kinds else text


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(summary: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if summary is None:
        return "–"
    text = f"{scale * summary['mean']:.{digits}f}"
    for key in ("std_images", "std_seeds"):
        if summary.get(key) is not None:
            text += f" ± {scale * summary[key]:.{digits}f}"
    return text


def _error_table(record: Mapping[str, Any]) -> list[str]:
    header = ["row", "SIDE ours", "SIDE paper", "MAD ours", "MAD paper"]
    header += ["MAD, unit normals", "coverage", "viewpoint (deg.)", "yaw r, slope"]
    header += ["failed seeds"]
    lines = [_cells(header), _cells(["---"] * len(header))]
    (side, _, side_scale, side_digits), (mad, *_), (unit, *_) = MEASURES
    for line in record["rows"].values():
        published = line.get("published")

        def paper(key: str, digits: int, published=published) -> str:
            if published is None:
                return "–"
            std = published[f"{key}_std"]
            text = f"{published[key]:.{digits}f}"
            return text if std is None else f"{text} ± {std:.{digits}f}"

        fails = line["collapses"]
        failed = "–" if fails is None else _failures(fails)
        cells = [
            line["label"],
            _spread(line.get(side), side_scale, side_digits),
            paper("side", 3),
            _spread(line.get(mad), 1.0, 2),
            paper("mad", 2),
            _spread(line.get(unit), 1.0, 2),
            _spread(line.get("coverage"), 1.0, 3),
            _spread(line.get("viewpoint_error_deg"), 1.0, 1),
            _yaw_cell(line),
            failed,
        ]
        lines.append(_cells(cells))
    lines += ["", "SIDE x10^-2; MAD in degrees by the authors' formula (see rules)."]
    return lines


def _yaw_cell(line: Mapping[str, Any]) -> str:
    """Correlation and slope of predicted against true yaw, means over seeds."""
    means = []
    for key in ("yaw_pearson", "yaw_slope"):
        seeds = line.get(key, {"seeds": []})["seeds"]
        known = [x for x in seeds if x is not None]  # None: the same yaw for all
        if not known:
            return "–"
        count = f" ({len(known)} of {len(seeds)})" if len(known) < len(seeds) else ""
        means.append(f"{np.mean(known):.2f}{count}")
    return ", ".join(means)


def _keypoint_table(record: Mapping[str, Any]) -> list[str]:
    lines = [_cells(["row", "depth correlation ± over seeds", "of", "coverage"])]
    lines.append(_cells(["---"] * 4))
    for line in record["rows"].values():
        found = line.get("keypoint_depth")
        cells = [line["label"], _spread(found, 1.0, 2)]
        cells.append("–" if found is None else str(found["keypoints"]))
        cells.append(_spread(line.get("coverage"), 1.0, 3))
        lines.append(_cells(cells))
    return lines


def _agreement_lines(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, name, *_ in MEASURES[:2]:
        found = record["rank_agreement"][key]
        if not found["rows"]:
            continue  # a table of which nothing was published
        tau = found["kendall_tau"]
        value = "undefined" if tau is None else f"{tau:.2f}"
        lines.append(
            f"Rank agreement with the paper, {name}: Kendall's tau {value} over "
            f"{found['rows']} rows.  "
        )
    labels = {name: line["label"] for name, line in record["rows"].items()}
    for claim in record["claims"]:
        words = []
        for key, name in (("side", "SIDE"), ("mad_authors_deg", "MAD")):
            verdict = claim[key]
            word = "seen" if verdict["seen"] else "**not seen**"
            if verdict["separated"]:
                word += " (all seeds apart)"
            words.append(f"{name} {word}")
        pair = f"{labels[claim['better']]} below {labels[claim['worse']]}"
        lines.append(f"- {pair}: {', '.join(words)}.")
    if "recovered" in record:
        found = record["recovered"]
        parts = [
            f"{name} {found[key]:.2f} (paper {found['paper'][paper]})"
            for key, name, paper in (
                ("side", "SIDE", "side"),
                ("mad_authors_deg", "MAD", "mad"),
            )
            if found[key] is not None
        ]
        lines.append(f"- Recovered share of supervision: {', '.join(parts)}.")
    return lines


def _patch_lines(record: Mapping[str, Any]) -> list[str]:
    """How well confidence finds the patches, in rows that have both."""
    return [
        f"- {line['label']}: sigma of the mirrored reconstruction finds the patches "
        f"with AUROC {_spread(line['auroc_patch'], 1.0, 2)}."
        for line in record["rows"].values()
        if "auroc_patch" in line
    ]


# --- the figure ---------------------------------------------------------------------


def _save_figure(
    path: Path,
    rows: Mapping[str, Row],
    configs: Mapping[str, Sequence[ConfigDict]],
    workdir: Path,
    data_of: _DataCache,
    count: int,
) -> None:
    """Input, and shape and albedo of each trained row's first seed, as Fig. 9."""
    from PIL import Image

    columns: dict[str, np.ndarray] = {}
    inputs: dict[bool, np.ndarray] = {}
    for name, row in rows.items():
        config = configs[name][0]
        if row.kind not in ("trained", "supervised"):
            continue
        params = _first_params(workdir / "rows" / name)
        if params is None:
            continue
        dataset = data_of(config)(config.eval.split)
        images = dataset.take(range(min(count, len(dataset))), ["image"])["image"]
        if config.data.perturb not in inputs:
            inputs[config.data.perturb] = images
            columns["perturbed" if config.data.perturb else "input"] = images
        options = train.check_config(config)
        batch = jnp.asarray(images, jnp.float32) / 255.0
        shape, albedo = jax.device_get(_shape_and_albedo(params, batch, options))
        columns[name.replace("_", " ")] = shape
        if row.kind == "trained":
            columns[f"{name} albedo".replace("_", " ")] = albedo
    if columns:
        Image.fromarray(figure(columns)).save(path)


def _first_params(row_folder: Path) -> Any | None:
    """Parameters of a row's first seed; None if it diverged at once."""
    alone, together = row_folder / "seed0", row_folder / "together"
    if checkpoint.newest_step(alone) is not None:
        return checkpoint.load_params(alone)[0]
    if _stacked_seeds(together) and not (together / "diverged.json").is_file():
        return replicas.params_of(checkpoint.load_params(together)[0], 0)
    return None


def figure(columns: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "H W 3"]:
    """Columns of equally large pictures, uint8 or in [0, 1], under their names."""
    scaled = {
        name: np.asarray(p, np.float32) / (255.0 if p.dtype == np.uint8 else 1.0)
        for name, p in columns.items()
    }
    return pictures.labelled_rows(scaled)


@functools.partial(jax.jit, static_argnames="options")
def _shape_and_albedo(
    params: dict, images: Float[Array, "b h w 3"], options: ModelOptions
) -> tuple[Array, Array]:
    """Clay under a light from the upper left, turned aside; and the albedo."""
    factors = model.decompose(params, images, options)
    depth = factors.canon_depth
    normal = jax.vmap(
        functools.partial(geometry.depth_to_normals, fov_deg=options.scene.fov_deg)
    )(depth)
    light = jnp.array([0.4, 0.4, 1.0])
    light = light / jnp.linalg.norm(light)
    clay = 0.15 + 0.75 * jnp.maximum(0.0, jnp.sum(normal * light, axis=-1))
    clay = jnp.repeat(clay[..., None], 3, axis=-1)
    turned, valid = pictures.turned_views(
        clay, depth, options.scene, yaws_deg=(_CLAY_YAW_DEG,)
    )
    return jnp.where(valid[0][..., None], turned[0], 0.0), factors.canon_albedo
