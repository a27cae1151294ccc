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

from unsup3d_jax.configuration import changed, flatten
from unsup3d_jax.data.load import Splits
from unsup3d_jax.engine import parallel, recorder, replicas
from unsup3d_jax.engine import run as engine_run
from unsup3d_jax.engine.checkpoint import load_parts
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.scored import Scored
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.task import Task as EngineTask
from unsup3d_jax.engine.workdir import (
    check_workdir,
    claim_workdir,
    is_harmless,
    newest_step,
)
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import report
from unsup3d_jax.evaluation.scores import limits_of
from unsup3d_jax.experiments import rotnet
from unsup3d_jax.experiments.paper_tables import Row
from unsup3d_jax.experiments.tables import figure
from unsup3d_jax.experiments.tables.rows import (
    base_config,
    row_config,
    table_of,
    table_recipe,
)
from unsup3d_jax.experiments.tables.summary import summarise
from unsup3d_jax.experiments.tables.text import markdown, write_table
from unsup3d_jax.files import write_atomically
from unsup3d_jax.unsup3d import evaluate, model, score, task
from unsup3d_jax.unsup3d.options import loss_weights

# Of sections that otherwise do not decide what a row is.
_NUMERIC = ("eval.baseline_steps", "eval.max_images", "tables.encoder")


def run_table(session: Session, workdir: Path, *, given: Collection[str] = ()) -> str:
    """Trains and scores what is missing, and writes the table.

    Seeds are trained one after the other, each as a run of its own; or, with
    `tables.together`, as one run of stacked parameters (`replicas`).

    Args:
        session: its config is of configs/tables/; its splits are not used, because
            rows may have data of their own.
        workdir: of the table.
        given: see `rows.base_config`.

    Returns:
        The table as Markdown, also in `table.md`.

    Raises:
        UserError: for anything the user can fix.
        Interrupted: after a signal, with everything so far saved.
    """
    config = session.config
    table, rows = table_of(config)
    base = base_config(config, given)
    sessions = _Sessions(session)
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
        task.check_config(configs[name][0])
        if base.tables.together:
            replicas.check_config(configs[name][0])
        # Also without tables.together: an earlier start may have left such a run.
        folder = workdir / "rows" / name / "together"
        stacked[name] = _Together(configs[name][0], base.tables.seeds, folder, sessions)
    if encoder is not None and not base.tables.encoder:
        _train_encoder(sessions(base), encoder)
    scores: dict[str, list[dict]] = {name: [] for name in rows}

    def write(complete: bool) -> dict:
        record = summarise(base, table, rows, scores, complete=complete)
        record["made_with"] = made_with(base, workdir, configs)
        write_table(workdir, record)
        return record

    for name, row in rows.items():
        if row.kind not in ("trained", "supervised"):
            scores[name] = [_untrained_row(sessions(configs[name][0]), row, workdir)]
            write(False)
            continue
        together = stacked[name] if base.tables.together else None
        for seed, row_cfg in enumerate(configs[name]):
            place = workdir / "rows" / name / f"seed{seed}"
            say(f"{base.tables.name}: {row.label}, seed {row_cfg.seed}")
            scores[name].append(_trained_row(sessions(row_cfg), place, together))
            write(False)
    record = write(True)
    if count := base.tables.figure_images:
        sheet = figure.draw(_exhibits(rows, configs, workdir, sessions, count))
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
    recipe = flatten(table_recipe(base).to_dict())
    changes = {
        key: value
        for key, value in flatten(base.to_dict()).items()
        if value != recipe[key]
        and (
            key in _NUMERIC
            or not (is_harmless(key, task.IDENTITY) or key.startswith("tables."))
        )
    }
    found: dict[str, list] = {"git_commit": [], "devices": [], "versions": []}
    for name, seeds in configs.items():
        for seed in range(len(seeds)):
            alone, together = (
                workdir / "rows" / name / part for part in (f"seed{seed}", "together")
            )
            path = alone / "config.json"
            if newest_step(alone) is None and _stacked_seeds(together):
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


class _Sessions:
    """config -> its session; rows on the same data share what is loaded."""

    def __init__(self, session: Session):
        self._session = session
        self._splits: dict[str, Splits] = {}

    def __call__(self, config: ConfigDict) -> Session:
        # Depth maps on disk are decoded with section depth.
        sections = {k: config[k].to_dict() for k in ("data", "depth")}
        key = json.dumps(sections, sort_keys=True)
        if key not in self._splits:
            self._splits[key] = task.lazy_splits(config)
        return Session(config, self._splits[key], self._session.interrupts)


def _encoder_path(
    base: ConfigDict, rows: Mapping[str, Row], workdir: Path
) -> Path | None:
    """Where the self-supervised encoder is, or will be; None if no row needs it."""
    if not any(row.needs_encoder for row in rows.values()):
        return None
    given = base.tables.encoder
    return (Path(given).expanduser() if given else workdir / "rotnet.npz").resolve()


def _train_encoder(session: Session, path: Path) -> None:
    """Trains the encoder on the table's images, unless that is done."""
    record, steps = path.with_suffix(".json"), session.config.rotnet.steps
    done = record.is_file() and path.is_file()
    if done and json.loads(record.read_text())["steps"] == steps:
        return
    if rotnet.pretrain(session, path)["steps"] < steps:
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
        self, first: ConfigDict, seeds: int, folder: Path, sessions: _Sessions
    ):
        self._folder, self._sessions = folder, sessions
        seeds = _stacked_seeds(folder) or seeds
        self._config = changed(first, {"tables.seeds": seeds})
        check_workdir(folder, self._config, task.IDENTITY)
        self._found: tuple[Any, int] | None = None
        self._failed = folder / "diverged.json"
        self._fits = True

    def params(self, seed: int) -> tuple[Any, int] | None:
        """Parameters of one seed, and the step reached; see `task.train`.

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
                self._found = self._trained()
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
        return replicas.of_seed(params, index), step

    def _trained(self) -> tuple[Any, int]:
        """Stacked parameters and the step reached, of this run or one before."""
        session = self._sessions(self._config)
        seeds = range(session.config.seed, session.config.seed + self._count)

        def stacked() -> EngineTask:
            configs = [changed(session.config, {"seed": seed}) for seed in seeds]
            tasks = [task.model_task(config, session.splits) for config in configs]
            return replicas.stacked_task(tasks, seeds)

        note = f", {self._count} seeds together"
        plan = task.plan(session, stacked, note)
        found, step = engine_run.train(session, self._folder, plan)
        return found["params"], step

    @property
    def _count(self) -> int:
        return self._config.tables.seeds


def _stacked_seeds(folder: Path) -> int | None:
    """How many seeds the common run of a folder trains; None if it has none."""
    if newest_step(folder) is None:
        return None
    try:
        content = json.loads((folder / "config.json").read_text())
        return int(content["config"]["tables"]["seeds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `check_workdir` says what is wrong


def _trained_row(session: Session, place: Path, together: _Together | None) -> dict:
    """Scores of one seed, trained if need be; {"diverged": message} if it failed."""
    config = session.config
    split, steps = config.eval.split, config.train.steps
    check_workdir(place, config, task.IDENTITY)
    failed = place / "diverged.json"
    if failed.is_file():
        return json.loads(failed.read_text())
    recorded = score.recorded_row(session, place, steps, split)
    if recorded is not None:
        return recorded
    try:
        found = together.params(config.seed) if together else None
        if found is not None:  # the place has no checkpoints of its own
            devices = parallel.local_devices(config)
            claim_workdir(place, config, devices, task.IDENTITY)
        params, step = found or task.train(session, place)
    except recorder.Diverged as error:
        result = {"diverged": str(error)}
        write_atomically(failed, json.dumps(result) + "\n")
        say(str(error))
        return result
    if step < steps:
        raise Interrupted
    data = session.splits(split)
    row = evaluate.evaluate(
        params,
        data,
        task.check_config(config),
        constants=model.load_constants(config),
        weights=loss_weights(config, step),
        limits=limits_of(config),
    )
    ours = Scored(params, step)
    report.write_scores(place, row, score.provenance(config, data, ours, split))
    return score.recorded_row(session, place, step, split) or row


def _untrained_row(session: Session, row: Row, workdir: Path) -> dict:
    config = session.config
    options = task.check_config(config)
    found = evaluate.baselines(
        session.splits(config.eval.split),
        options,
        names=(row.kind,),
        initial_params=(
            task.initial_params(config) if row.kind == "untrained" else None
        ),
        limits=limits_of(config),
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
    sessions: _Sessions,
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
        dataset = sessions(config).splits(config.eval.split)
        yield figure.Exhibit(
            name=name,
            params=params,
            options=task.check_config(config),
            images=dataset.take(range(min(count, len(dataset))), ["image"])["image"],
            perturbed=config.data.perturb,
            with_albedo=row.kind == "trained",
        )


def _first_params(row_folder: Path) -> Any | None:
    """Parameters of a row's first seed; None if it diverged at once."""
    alone, together = row_folder / "seed0", row_folder / "together"
    if newest_step(alone) is not None:
        return load_parts(alone)[0]["params"]
    if _stacked_seeds(together) and not (together / "diverged.json").is_file():
        return replicas.of_seed(load_parts(together)[0]["params"], 0)
    return None
