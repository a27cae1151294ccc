"""The rows of GAN2Shape: each seed a run of its own, of the same images."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.log import say
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import baselines
from unsup3d_jax.evaluation.scores import limits_of
from unsup3d_jax.experiments.paper_tables import Row
from unsup3d_jax.experiments.tables import figure
from unsup3d_jax.experiments.tables.kinds import Configs, Sessions
from unsup3d_jax.files import finite, write_atomically
from unsup3d_jax.flags import Arguments
from unsup3d_jax.gan2shape import options, run, view_control


class Gan2ShapeRows:
    """See `kinds.Kind`.

    Args:
        base: of `rows.base_config`.
        workdir: of the table.
    """

    identity = options.IDENTITY

    def __init__(self, base: ConfigDict, workdir: Path, sessions: Sessions):
        self._base, self._workdir, self._sessions = base, workdir, sessions

    def check(self, configs: Configs) -> None:
        for name, seeds in configs.items():
            options.check_config(seeds[0])
            needs = seeds[0].projection.kind == "generator"
            unnamed = needs and not seeds[0].projection.generator
            if self._base.tables.scale == "paper" and unnamed:
                raise UserError(
                    "tables.scale=paper: the generator that ships draws 32 px; name "
                    "another one by --config.projection.generator=FILE."
                )
            for number, config in enumerate(seeds):
                folder = self._workdir / "rows" / name / f"seed{number}"
                run.check_folders(config, folder)

    def begin(self) -> None:
        pass

    def untrained(self, row: Row, config: ConfigDict) -> dict | None:
        dataset = self._sessions(config).splits(config.eval.split)
        if "depth" not in dataset.take([0]):
            return None
        scene = options.options_from_config(config).scene
        return baselines.baseline_row(row.kind, dataset, scene, limits_of(config))

    def trained(self, name: str, config: ConfigDict, place: Path) -> dict:
        session = self._sessions(config)
        row = run.recorded_row(session, place)
        if row is None:
            run.train(Arguments("train", config, place), session.interrupts)
            row = run.recorded_row(session, place)
        if row is None:
            raise Interrupted
        seconds = run.seconds_of(config, place, row["images"])
        if seconds is not None:
            row = row | {"minutes_an_image": seconds / 60.0 / row["images"]}
        if config.projection.kind == "generator":
            row = row | {"view_control": _view_control(config, place, row)}
        return row

    def record_of(self, place: Path) -> Path:
        return place / "config.json"

    def exhibit(
        self, name: str, config: ConfigDict, place: Path, count: int
    ) -> figure.Exhibit | None:
        session = self._sessions(config)
        row = run.recorded_row(session, place)
        if row is None:
            return None  # diverged
        found = run.read_record(config, place, row["images"])
        count = min(count, row["images"])
        dataset = session.splits(config.eval.split)
        scene = options.options_from_config(config).scene
        depth = jnp.asarray(found["canon_depth"][-1, :count])
        return figure.Exhibit(
            name=name,
            images=dataset.take(range(count), ["image"])["image"],
            shape=jax.device_get(figure.clay(depth, scene)),
            albedo=found["canon_albedo"][-1, :count],
            perturbed=config.data.perturb,
        )


def _view_control(
    config: ConfigDict, place: Path, row: Mapping
) -> dict[str, float | None]:
    """Of a finished run, measured once; see `gan2shape.view_control`."""
    path = place / "eval" / "view_control.json"
    of = {key: row[key] for key in ("checkpoint_step", "images")}
    try:
        known = json.loads(path.read_text())
        if known["of"] == of:
            return known["found"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    say("how far the generator turns, and whether the person stays:")
    measured = view_control.of_run(Arguments("train", config, place))
    found = finite(dataclasses.asdict(measured))
    write_atomically(path, json.dumps({"of": of, "found": found}, indent=2) + "\n")
    return found
