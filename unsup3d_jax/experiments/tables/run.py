"""Trains and scores what is missing of a table, one seed after another or as one.

All that a table asks of the training loop, of workdirs and of the method's scores is
asked here.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from PIL import Image

from unsup3d_jax.engine import checkpoint, parallel, recorder, replicas
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.log import say
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import rotnet
from unsup3d_jax.experiments.paper_tables import Row
from unsup3d_jax.experiments.tables import figure
from unsup3d_jax.experiments.tables.rows import (
    base_config,
    change,
    row_config,
    table_of,
    table_recipe,
)
from unsup3d_jax.experiments.tables.summary import summarise
from unsup3d_jax.experiments.tables.text import markdown, write_table
from unsup3d_jax.files import write_atomically
from unsup3d_jax.unsup3d import evaluate, model, score, train

# Of sections that otherwise do not decide what a row is.
_NUMERIC = ("eval.baseline_steps", "eval.max_images", "tables.encoder")


def run_table(
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
        given: see `rows.base_config`.

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
    if count := base.tables.figure_images:
        sheet = figure.draw(_exhibits(rows, configs, workdir, data_of, count))
        if sheet is not None:
            Image.fromarray(sheet).save(workdir / "figure.png")
    return markdown(record)


def made_with(
    base: ConfigDict, workdir: Path, configs: Mapping[str, Sequence[ConfigDict]]
) -> dict:
    """What the trained rows of a workdir were trained with.

    Returns:
        "changes": keys that are neither the scale's nor the table's, and their values;
        "commits", "devices" and "versions" of each run's last start, each one once.
    """
    recipe = checkpoint.flatten(table_recipe(base).to_dict())
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
    change(result, {"seed": seed})
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
        weights=model.loss_weights(config, step),
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


def _exhibits(
    rows: Mapping[str, Row],
    configs: Mapping[str, Sequence[ConfigDict]],
    workdir: Path,
    data_of: _DataCache,
    count: int,
) -> Iterator[figure.Exhibit]:
    """The trained rows with the first seed's parameters, on `count` images."""
    for name, row in rows.items():
        config = configs[name][0]
        if row.kind not in ("trained", "supervised"):
            continue
        params = _first_params(workdir / "rows" / name)
        if params is None:
            continue
        dataset = data_of(config)(config.eval.split)
        yield figure.Exhibit(
            name=name,
            params=params,
            options=train.check_config(config),
            images=dataset.take(range(min(count, len(dataset))), ["image"])["image"],
            perturbed=config.data.perturb,
            with_albedo=row.kind == "trained",
        )


def _first_params(row_folder: Path) -> Any | None:
    """Parameters of a row's first seed; None if it diverged at once."""
    alone, together = row_folder / "seed0", row_folder / "together"
    if checkpoint.newest_step(alone) is not None:
        return checkpoint.load_params(alone)[0]
    if _stacked_seeds(together) and not (together / "diverged.json").is_file():
        return replicas.params_of(checkpoint.load_params(together)[0], 0)
    return None
