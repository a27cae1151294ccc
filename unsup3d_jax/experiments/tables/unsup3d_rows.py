"""The rows of unsup3d: each seed a run of its own, or all seeds of a row as one."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.configuration import changed
from unsup3d_jax.engine import parallel, recorder, replicas
from unsup3d_jax.engine import run as engine_run
from unsup3d_jax.engine.checkpoint import load_parts
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.scored import Scored
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.task import Task as EngineTask
from unsup3d_jax.engine.workdir import check_workdir, claim_workdir, newest_step
from unsup3d_jax.evaluation import report
from unsup3d_jax.evaluation.scores import limits_of
from unsup3d_jax.experiments import rotnet
from unsup3d_jax.experiments.paper_tables import Row
from unsup3d_jax.experiments.tables import figure
from unsup3d_jax.experiments.tables.kinds import Configs, Sessions
from unsup3d_jax.files import write_atomically
from unsup3d_jax.unsup3d import evaluate, model, score, task
from unsup3d_jax.unsup3d.options import ModelOptions, loss_weights


class Unsup3dRows:
    """See `kinds.Kind`.

    Args:
        base: of `rows.base_config`.
        rows: those of this method.
        workdir: of the table.
    """

    identity = task.IDENTITY

    def __init__(
        self,
        base: ConfigDict,
        rows: Mapping[str, Row],
        workdir: Path,
        sessions: Sessions,
    ):
        self._base, self._rows, self._workdir = base, rows, workdir
        self._sessions = sessions
        self.encoder = _encoder_path(base, rows, workdir)
        self._stacked: dict[str, _Together] = {}

    def check(self, configs: Configs) -> None:
        for name, seeds in configs.items():
            task.check_config(seeds[0])
            if self._base.tables.together:
                replicas.check_config(seeds[0])
            folder = self._workdir / "rows" / name
            # Also without tables.together: an earlier start may have left such a run.
            self._stacked[name] = _Together(
                seeds[0], len(seeds), folder / "together", self._sessions
            )
            for number, config in enumerate(seeds):
                check_workdir(folder / f"seed{number}", config, task.IDENTITY)

    def begin(self) -> None:
        if self.encoder is not None and not self._base.tables.encoder:
            _train_encoder(self._sessions(self._base), self.encoder)

    def untrained(self, row: Row, config: ConfigDict) -> dict | None:
        found = evaluate.baselines(
            self._sessions(config).splits(config.eval.split),
            task.check_config(config),
            names=(row.kind,),
            initial_params=(
                task.initial_params(config) if row.kind == "untrained" else None
            ),
            limits=limits_of(config),
        )
        return found[0] if found else None

    def trained(self, name: str, config: ConfigDict, place: Path) -> dict:
        session = self._sessions(config)
        split, steps = config.eval.split, config.train.steps
        recorded = score.recorded_row(session, place, steps, split)
        if recorded is not None:
            return recorded
        together = self._stacked[name] if self._base.tables.together else None
        found = together.params(config.seed) if together else None
        if found is not None:  # the place has no checkpoints of its own
            devices = parallel.local_devices(config)
            claim_workdir(place, config, devices, task.IDENTITY)
        params, step = found or task.train(session, place)
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

    def record_of(self, place: Path) -> Path:
        together = place.parent / "together"
        if newest_step(place) is None and _stacked_seeds(together):
            return together / "config.json"  # the seed's own says who scored it
        return place / "config.json"

    def exhibit(
        self, name: str, config: ConfigDict, place: Path, count: int
    ) -> figure.Exhibit | None:
        params = _first_params(place)
        if params is None:
            return None
        dataset = self._sessions(config).splits(config.eval.split)
        images = dataset.take(range(min(count, len(dataset))), ["image"])["image"]
        batch = jnp.asarray(images, jnp.float32) / 255.0
        shape, albedo = jax.device_get(
            shape_and_albedo(params, batch, task.check_config(config))
        )
        return figure.Exhibit(
            name=name,
            images=images,
            shape=shape,
            albedo=albedo if self._rows[name].kind == "trained" else None,
            perturbed=config.data.perturb,
        )


@functools.partial(jax.jit, static_argnames="options")
def shape_and_albedo(
    params: dict, images: Float[Array, "b h w 3"], options: ModelOptions
) -> tuple[Array, Array]:
    """Clay (see `figure.clay`), and the albedo."""
    factors = model.decompose(params, images, options)
    return figure.clay(factors.canon_depth, options.scene), factors.canon_albedo


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

    def __init__(self, first: ConfigDict, seeds: int, folder: Path, sessions: Sessions):
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


def _first_params(place: Path) -> Any | None:
    """Parameters of a row's first seed; None if it diverged at once."""
    together = place.parent / "together"
    if newest_step(place) is not None:
        return load_parts(place)[0]["params"]
    if _stacked_seeds(together) and not (together / "diverged.json").is_file():
        return replicas.of_seed(load_parts(together)[0]["params"], 0)
    return None
