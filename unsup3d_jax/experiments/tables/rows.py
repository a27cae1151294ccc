"""Which table, which rows, and the config that trains each of them."""

from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configs.tables import recipes
from unsup3d_jax.configuration import changed, check_numbers, flatten, need
from unsup3d_jax.errors import UserError, refusing
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
    with refusing():
        check_numbers(config, default.RANGES)
        last = default.RANGES["seed"][1] + 1 - options.seeds
        need(config, "seed", config.seed <= last, f"at most {last} for so many seeds")
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
    defaults = flatten(default.get_config().to_dict())
    return changed(
        table_recipe(config),
        {
            key: value
            for key, value in flatten(config.to_dict()).items()
            if key in given or value != defaults[key]
        },
    )


def table_recipe(config: ConfigDict) -> ConfigDict:
    """The scale's recipe with what the table changes of it; nothing of the user's."""
    recipe = recipes.recipe(config.tables.scale)
    return changed(recipe, TABLES[config.tables.name].changes)


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
    result = changed(result, row.changes)
    steps = result.train.steps
    changes = {key: round(share * steps) for key, share in row.shares.items()}
    if row.needs_encoder:
        changes["loss.perceptual_weights"] = str(encoder)
    result = changed(result, changes | {"seed": base.seed + seed})
    result.lock()
    return result
