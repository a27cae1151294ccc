"""Trains and scores what is missing of a table, one row and seed after another."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from unsup3d_jax.configuration import flatten
from unsup3d_jax.engine import recorder
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.workdir import is_harmless
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments.paper_tables import Row
from unsup3d_jax.experiments.tables import figure
from unsup3d_jax.experiments.tables.gan2shape_rows import Gan2ShapeRows
from unsup3d_jax.experiments.tables.kinds import Configs, Kind, Sessions
from unsup3d_jax.experiments.tables.rows import (
    base_config,
    row_config,
    table_of,
    table_recipe,
)
from unsup3d_jax.experiments.tables.summary import summarise
from unsup3d_jax.experiments.tables.text import markdown, write_table
from unsup3d_jax.experiments.tables.unsup3d_rows import Unsup3dRows
from unsup3d_jax.files import write_atomically

# Of sections that otherwise do not decide what a row is.
_NUMERIC = ("eval.baseline_steps", "eval.max_images", "tables.encoder")
_TRAINED = ("trained", "supervised")


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
    # The config's own method first.
    methods = {config.method: None} | {row.method: None for row in rows.values()}
    bases = {method: base_config(config, given, method) for method in methods}
    kinds, encoder = _kinds(bases, rows, workdir, Sessions(session))
    configs = {
        name: [
            row_config(bases[row.method], row, seed=seed, encoder=encoder)
            for seed in range(config.tables.seeds)
        ]
        for name, row in rows.items()
    }
    for method, kind in kinds.items():
        kind.check({k: v for k, v in configs.items() if rows[k].method == method})
    for kind in kinds.values():
        kind.begin()
    scores: dict[str, list[dict]] = {name: [] for name in rows}

    def write(complete: bool) -> dict:
        record = summarise(bases, table, rows, scores, complete=complete)
        record["made_with"] = made_with(bases[config.method], workdir, configs, kinds)
        write_table(workdir, record)
        return record

    for name, row in rows.items():
        kind = kinds[row.method]
        if row.kind not in _TRAINED:
            scores[name] = [_untrained_row(kind, row, configs[name][0], workdir)]
            write(False)
            continue
        for seed, row_cfg in enumerate(configs[name]):
            place = workdir / "rows" / name / f"seed{seed}"
            say(f"{config.tables.name}: {row.label}, seed {row_cfg.seed}")
            scores[name].append(_trained_row(kind, name, row_cfg, place))
            write(False)
    record = write(True)
    if count := config.tables.figure_images:
        sheet = figure.draw(_exhibits(rows, configs, workdir, kinds, count))
        if sheet is not None:
            Image.fromarray(sheet).save(workdir / "figure.png")
    return markdown(record)


def _kinds(
    bases: Mapping[str, ConfigDict],
    rows: Mapping[str, Row],
    workdir: Path,
    sessions: Sessions,
) -> tuple[dict[str, Kind], Path | None]:
    """How the rows of each method are run; and the self-supervised encoder's file."""
    kinds: dict[str, Kind] = {}
    encoder = None
    if (base := bases.get("unsup3d")) is not None:
        own = {k: row for k, row in rows.items() if row.method == "unsup3d"}
        kinds["unsup3d"] = found = Unsup3dRows(base, own, workdir, sessions)
        encoder = found.encoder
    if (base := bases.get("gan2shape")) is not None:
        kinds["gan2shape"] = Gan2ShapeRows(base, workdir, sessions)
    return kinds, encoder


def made_with(
    base: ConfigDict, workdir: Path, configs: Configs, kinds: Mapping[str, Kind]
) -> dict:
    """What the trained rows of a workdir were trained with.

    Args:
        base: of the table's own method.

    Returns:
        "changes": keys that are neither the scale's nor the table's, and their values;
        "commits", "devices" and "versions" of each run's last start, each one once.
    """
    recipe = flatten(table_recipe(base).to_dict())
    identity = kinds[base.method].identity
    changes = {
        key: value
        for key, value in flatten(base.to_dict()).items()
        if value != recipe[key]
        and (
            key in _NUMERIC
            or not (is_harmless(key, identity) or key.startswith("tables."))
        )
    }
    found: dict[str, list] = {"git_commit": [], "devices": [], "versions": []}
    for name, seeds in configs.items():
        for seed, config in enumerate(seeds):
            place = workdir / "rows" / name / f"seed{seed}"
            path = kinds[config.method].record_of(place)
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


def _trained_row(kind: Kind, name: str, config: ConfigDict, place: Path) -> dict:
    """Scores of one seed, trained if need be; {"diverged": message} if it failed."""
    failed = place / "diverged.json"
    if failed.is_file():
        return json.loads(failed.read_text())
    try:
        return kind.trained(name, config, place)
    except recorder.Diverged as error:
        result = {"diverged": str(error)}
        write_atomically(failed, json.dumps(result) + "\n")
        say(str(error))
        return result


def _untrained_row(kind: Kind, row: Row, config: ConfigDict, workdir: Path) -> dict:
    found = kind.untrained(row, config)
    if found is None:
        raise UserError(
            f"the data set {config.data.name!r} has no true depth, which "
            f"the row {row.label!r} needs."
        )
    path = workdir / "rows" / f"{row.kind}.json"
    write_atomically(path, json.dumps(found, indent=2) + "\n")
    return found


def _exhibits(
    rows: Mapping[str, Row],
    configs: Configs,
    workdir: Path,
    kinds: Mapping[str, Kind],
    count: int,
) -> Iterator[figure.Exhibit]:
    """The trained rows, by their first seed, on `count` images."""
    for name, row in rows.items():
        if row.kind not in _TRAINED:
            continue
        place = workdir / "rows" / name / "seed0"
        found = kinds[row.method].exhibit(name, configs[name][0], place, count)
        if found is not None:
            yield found
