"""Which table, which rows, and the config that trains each of them."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import default
from configs.tables import recipes
from unsup3d_jax.engine import checkpoint
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments.paper_tables import TABLES, Row, Table
from unsup3d_jax.unsup3d import score

ALL_ROWS = ("all",)


def table_of(config: ConfigDict) -> tuple[Table, dict[str, Row]]:
    """The table a config names, and the rows it asks for.

    Raises:
        UserError: if section tables names something that does not exist.
    """
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
    result = table_recipe(config)
    defaults = checkpoint.flatten(default.get_config().to_dict())
    change(
        result,
        {
            key: value
            for key, value in checkpoint.flatten(config.to_dict()).items()
            if key in given or value != defaults[key]
        },
    )
    return result


def table_recipe(config: ConfigDict) -> ConfigDict:
    """The scale's recipe with what the table changes of it; nothing of the user's."""
    result = recipes.recipe(config.tables.scale)
    change(result, TABLES[config.tables.name].changes)
    return result


def row_config(
    base: ConfigDict, row: Row, *, seed: int, encoder: Path | None = None
) -> ConfigDict:
    """The config that trains one seed of a row.

    Args:
        base: of `base_config`; its seed is that of the first.
        encoder: weights of the self-supervised encoder, for rows that need it.
    """
    result = base.copy_and_resolve_references()
    # A row's workdir knows nothing of the table: another number of seeds, or an
    # encoder trained otherwise, must not make it another run.
    with result.unlocked():
        result.tables = default.get_config().tables
        result.rotnet = default.get_config().rotnet
    if row.kind == "supervised":
        result = score.baseline_config(result, "supervised")
    change(result, row.changes)
    steps = result.train.steps
    change(result, {key: round(share * steps) for key, share in row.shares.items()})
    if row.needs_encoder:
        change(result, {"loss.perceptual_weights": str(encoder)})
    change(result, {"seed": base.seed + seed})
    result.lock()
    return result


def change(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Sets keys of a config in place, locked or not: {"section.key": value}."""
    with config.unlocked():
        for key, value in changes.items():
            *sections, name = key.split(".")
            place = functools.reduce(lambda c, s: c[s], sections, config)
            # JSON-like lists back to the tuples that configs hold.
            place[name] = tuple(value) if isinstance(value, list) else value
