"""Which table, which rows, and the config that trains each of them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from unsup3d_jax.configs import default
from unsup3d_jax.configs.gan2shape import default as gan2shape_default
from unsup3d_jax.configs.tables import recipes
from unsup3d_jax.configuration import Range, changed, check_numbers, flatten, need
from unsup3d_jax.errors import UserError, refusing
from unsup3d_jax.experiments import gan2shape_tables, paper_tables
from unsup3d_jax.experiments.paper_tables import Row, Table
from unsup3d_jax.gan2shape import options
from unsup3d_jax.unsup3d import score

ALL_ROWS = ("all",)
TABLES = paper_tables.TABLES | gan2shape_tables.TABLES
# Sections whose keys mean the same to all methods: what a user changes of them holds
# for the rows of another method, too.
COMMON = ("data.", "log.", "checkpoint.", "eval.")
# What a row's workdir is not to know of: another number of seeds, or an encoder
# trained otherwise, must not make it another run.
OF_THE_TABLE = ("tables", "rotnet")


@dataclasses.dataclass(frozen=True)
class _Method:
    """What tables know of the configs of a method.

    Attributes:
        defaults: -> every key with its default.
        ranges: see `configuration.check_numbers`.
        recipes: method of a table -> (scale -> config of this method's rows in it).
    """

    defaults: Callable[[], ConfigDict]
    ranges: Mapping[str, Range]
    recipes: Mapping[str, Callable[[str], ConfigDict]]


_METHODS = {
    "unsup3d": _Method(
        default.get_config,
        default.RANGES,
        {"unsup3d": recipes.recipe, "gan2shape": recipes.beside_gan2shape},
    ),
    "gan2shape": _Method(
        gan2shape_default.get_config,
        gan2shape_default.RANGES,
        {"gan2shape": recipes.gan2shape_recipe},
    ),
}


def table_of(config: ConfigDict) -> tuple[Table, dict[str, Row]]:
    """The table a config names, and the rows it asks for.

    Raises:
        UserError: if section tables names something that does not exist.
    """
    chosen, ranges = config.tables, _METHODS[config.method].ranges
    known = [name for name, x in TABLES.items() if x.method == config.method]
    if chosen.name not in known:
        raise UserError(
            f"tables.name must be one of {', '.join(known)}, got {chosen.name!r}; "
            "use a config of configs/tables/."
        )
    if chosen.scale not in recipes.SCALES:
        raise UserError(
            f"tables.scale must be one of {', '.join(recipes.SCALES)}, got "
            f"{chosen.scale!r}."
        )
    with refusing():
        check_numbers(config, ranges)
        last = int(ranges["seed"][1]) + 1 - chosen.seeds
        need(config, "seed", config.seed <= last, f"at most {last} for so many seeds")
    table = TABLES[chosen.name]
    if tuple(chosen.rows) in (ALL_ROWS, ()):
        return table, dict(table.rows)
    if unknown := [name for name in chosen.rows if name not in table.rows]:
        raise UserError(
            f"tables.rows: {unknown[0]!r} is no row of {chosen.name}; its rows are "
            f"{', '.join(table.rows)}."
        )
    return table, {k: v for k, v in table.rows.items() if k in chosen.rows}


def base_config(
    config: ConfigDict, given: Collection[str] = (), method: str = ""
) -> ConfigDict:
    """The recipe that all rows of a method share, with all that the user changes.

    Args:
        config: of configs/tables/; what differs from its default is a change.
        given: keys set by name, as on the command line ("train.warmup_steps"),
            which are changes whatever their value.
        method: of the rows; "": the config's own. Of the changes, another method gets
            the seed and those of sections `COMMON`.
    """
    method = method or config.method
    defaults = flatten(_METHODS[config.method].defaults().to_dict())
    changes = {
        key: value
        for key, value in flatten(config.to_dict()).items()
        if key in given or value != defaults[key]
    }
    base = table_recipe(config, method)
    if method != config.method:
        known = flatten(base.to_dict())
        changes = {
            key: value
            for key, value in changes.items()
            if key in known and (key == "seed" or key.startswith(COMMON))
        }
    return changed(base, changes)


def table_recipe(config: ConfigDict, method: str = "") -> ConfigDict:
    """The scale's recipe with what the table changes of it; nothing of the user's."""
    table, method = TABLES[config.tables.name], method or config.method
    recipe = _METHODS[method].recipes[table.method](config.tables.scale)
    return changed(recipe, table.changes if method == table.method else {})


def schedule(config: ConfigDict) -> str:
    """How long a row of a base config is trained, for people."""
    if config.method != "gan2shape":
        return f"{config.train.steps} steps"
    group = config.stages.group if config.stages.mode == "instance" else 0
    own = f"{options.phases(config)[-1].last} iterations"
    own += f" of each group of {group}" if group else " of all images"
    joint = options.joint_stage(config)
    if joint is None:
        return own
    return f"{options.phases(joint)[-1].last} iterations of all images, then {own}"


def row_config(
    base: ConfigDict, row: Row, *, seed: int, encoder: Path | None = None
) -> ConfigDict:
    """The config that trains one seed of a row.

    Args:
        base: of `base_config`, of the row's method; its seed is that of the first.
        encoder: weights of the self-supervised encoder, for rows that need it.
    """
    result = base.copy_and_resolve_references()
    defaults = _METHODS[row.method].defaults()
    with result.unlocked():
        for section in OF_THE_TABLE:
            if section in result:
                result[section] = defaults[section]
    if row.kind == "supervised":
        result = score.baseline_config(result, "supervised")
    result = changed(result, row.changes)
    changes = {
        key: round(share * result.train.steps) for key, share in row.shares.items()
    }
    if row.needs_encoder:
        changes["loss.perceptual_weights"] = str(encoder)
    result = changed(result, changes | {"seed": base.seed + seed})
    result.lock()
    return result
