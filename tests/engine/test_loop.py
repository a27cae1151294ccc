"""The loop: deterministic, resumable to the bit, and never saving a NaN."""

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_task
from PIL import Image

from unsup3d_jax.data.load import load_split
from unsup3d_jax.data.source import train_source
from unsup3d_jax.engine import loop, parallel, recorder
from unsup3d_jax.engine.checkpoint import Checkpoints, load_parts
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.log import CLOCK_FIELDS
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.workdir import claim_workdir
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d.task import IDENTITY


def _fit(workdir: Path, config=None, task=None, *, profile=None, **changes):
    config = config or tiny_task.config()
    with Interrupts() as interrupts:
        return loop.fit(
            Session(config, range, interrupts, profile),
            task or tiny_task.task(config, **changes),
            workdir,
            devices=parallel.local_devices(config)[:1],
        )


def _lines(workdir: Path, split: str | None = None) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if split in (None, line["split"])]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(state, lines) of the default run, not interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    state = _fit(workdir)
    return jax.device_get(state), _lines(workdir)


def _timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in x.items() if k not in CLOCK_FIELDS} for x in lines]


def _assert_same_state(a, b):
    data = [
        jax.tree.leaves((s.step, s.parts, jax.random.key_data(s.key))) for s in (a, b)
    ]
    for x, y in zip(*data, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.once
def test_one_seed_gives_one_run_bit_for_bit(tmp_path, straight):
    a, lines = straight
    _assert_same_state(a, _fit(tmp_path / "b"))
    assert _timeless(_lines(tmp_path / "b")) == _timeless(lines)
    config = tiny_task.config()
    config.seed = 1
    other = _fit(tmp_path / "c", config)
    found, expected = (tiny_task.params(x)["view"]["w"] for x in (other, a))
    assert (found != expected).all()


def test_the_log_has_every_line_once_with_its_fields(straight):
    lines = [line for line in straight[1] if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8, 10, 12]
    fields = {"step", "split", "total", "fit", "other", "images_per_second"}
    fields |= {"step_time", "eta", "learning_rate", "grad_norm", "depth_std"}
    for line in lines:
        assert fields <= line.keys()
    assert lines[-1]["eta"] == 0.0 and lines[-1]["images_per_second"] > 0
    assert lines[-1]["total"] < lines[0]["total"]  # it learns


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.once)]
)
def test_a_signal_saves_and_resuming_is_bit_equal(tmp_path, straight, number):
    first = _fit(tmp_path / "cut", kill_at=5, number=number)
    assert int(first.step) == 5  # it came while waiting for the next batch
    assert Checkpoints(tmp_path / "cut", keep=2).steps() == [4, 5]
    resumed = _fit(tmp_path / "cut")
    _assert_same_state(straight[0], resumed)
    assert _timeless(_lines(tmp_path / "cut")) == _timeless(straight[1])


def test_a_killed_run_leaves_no_line_twice(tmp_path, straight):
    class Killed(Exception):
        pass

    class Dying(tiny_task.Source):
        def __next__(self):
            if self.position == 7:
                raise Killed
            return super().__next__()

    with pytest.raises(Killed):
        _fit(tmp_path / "cut", make_source=lambda devices: Dying(devices, 8))
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "split": "train", "total": 1}\n{"step": 7, "sp')
    resumed = _fit(tmp_path / "cut")  # from 4, the last whole checkpoint
    _assert_same_state(straight[0], resumed)
    assert _timeless(_lines(tmp_path / "cut")) == _timeless(straight[1])


def test_resuming_is_bit_equal_through_the_real_pipeline(tmp_path):
    """Cut with the set in device memory, resumed with files read on the way."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(21):  # 8 does not divide it: batches cross epochs
        pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")

    config = tiny_task.config()
    config.data.path, config.data.min_images = str(folder), 1
    config.data.split, config.data.hash_split_percent = "hash", (100, 0, 0)
    config.data.image_size, config.data.workers = tiny_task.SIZE, 1
    config.data.cache_dir = str(tmp_path / "cache")

    def fit(workdir, *, resident, stop_at=None):
        config.data.device_memory_mib = 64 if resident else 0
        data = load_split(config, "train")

        def make_source(devices):
            source = train_source(
                data, config, fields=("image",), devices=devices, seed=config.seed
            )
            assert source.resident == resident

            class Counting:
                state, restore, reorder = source.state, source.restore, source.reorder

                def __next__(self):
                    if source.state()["step"] == stop_at:
                        signal.raise_signal(signal.SIGTERM)
                    return next(source)

            return Counting()

        return _fit(workdir, config, make_source=make_source)

    straight = fit(tmp_path / "a", resident=True)
    cut = fit(tmp_path / "b", resident=True, stop_at=6)
    assert int(cut.step) == 6
    resumed = fit(tmp_path / "b", resident=False)
    _assert_same_state(straight, resumed)


@pytest.mark.parametrize("bad_step", [pytest.param(1, marks=pytest.mark.once), 6])
def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, bad_step):
    def weights_at(step):
        return jnp.where(step == bad_step, jnp.nan, 1.0)

    with pytest.raises(recorder.Diverged, match=f"step {bad_step + 1}:.*learning_rate"):
        _fit(tmp_path, weights_at=weights_at)
    good = [s for s in (4, 8) if s <= bad_step]
    assert Checkpoints(tmp_path, keep=2).steps() == good
    assert all(line["step"] <= bad_step for line in _lines(tmp_path, "train"))
    last = _lines(tmp_path)[-1]
    assert last["event"] == "diverged" and f"step {bad_step + 1}" in last["reason"]
    if good:
        parts, _ = load_parts(tmp_path)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(parts))


def test_one_infinite_loss_between_lines_is_noticed(tmp_path):
    """It leaves finite parameters: only a flag of every step can tell."""

    def objective(params, constants, batch, weights, *, axis_name=None):
        total, outputs = tiny_task.objective(
            params, constants, batch, 1.0, axis_name=axis_name
        )
        return total + weights, outputs

    with pytest.raises(recorder.Diverged, match="step 8: loss"):
        _fit(
            tmp_path,
            objective=objective,
            weights_at=lambda s: jnp.where(s == 7, jnp.inf, 0.0),
        )


def test_evaluation_pictures_and_the_best_checkpoint(tmp_path):
    config = tiny_task.config()
    config.eval.every, config.log.picture_every, config.checkpoint.keep = 3, 6, 1
    losses = {3: 0.5, 6: 0.1, 9: 0.7, 12: 0.9}
    _fit(
        tmp_path,
        config,
        validate=lambda parts, step: {"total": losses[step]},
        picture=lambda parts, step: np.zeros((4, 4, 3), np.uint8),
    )
    assert [line["step"] for line in _lines(tmp_path, "val")] == [3, 6, 9, 12]
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == ["12.png", "6.png"]
    assert Checkpoints(tmp_path, keep=1).steps() == [6, 12]  # best and newest


def test_an_interrupted_evaluation_is_done_when_resumed(tmp_path):
    config = tiny_task.config()
    config.eval.every = 6

    def interrupted(parts, step):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")

    state = _fit(tmp_path, config, validate=interrupted)
    assert int(state.step) == 6 and not _lines(tmp_path, "val")
    _fit(tmp_path, config, validate=lambda parts, step: {"total": 1.0})
    assert [line["step"] for line in _lines(tmp_path, "val")] == [6, 12]


def test_a_second_ctrl_c_aborts(tmp_path):
    class Impatient(tiny_task.Source):
        def state(self):  # asked for after each step
            if self.position == 5:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().state()

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, make_source=lambda devices: Impatient(devices, 8))
    assert Checkpoints(tmp_path, keep=2).steps() == [4]


def test_only_the_first_step_compiles(tmp_path):
    events, seen = [], []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            events.append(name)

    class Watching(tiny_task.Source):
        def __next__(self):
            seen.append(len(events))
            return super().__next__()

    jax.monitoring.register_event_duration_secs_listener(listen)
    _fit(tmp_path, make_source=lambda devices: Watching(devices, 8))
    assert seen[1] > seen[0] and set(seen[1:]) == {seen[1]}


def test_evaluating_and_saving_compile_nothing_new(tmp_path):
    events, seen = [], {}

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            events.append(name)

    norm = jax.jit(
        lambda params: sum(jnp.abs(x).sum() for x in jax.tree.leaves(params))
    )

    def validate(parts, step):
        return {"total": float(norm(parts["params"]))}

    class Watching(tiny_task.Source):
        def __next__(self):
            seen[self.position] = len(events)
            return super().__next__()

    jax.monitoring.register_event_duration_secs_listener(listen)
    config = tiny_task.config()
    config.eval.every, config.checkpoint.every = 3, 2
    _fit(
        tmp_path,
        config,
        validate=validate,
        make_source=lambda devices: Watching(devices, 8),
    )
    assert seen[3] > seen[0] and seen[11] == seen[4]  # from the second round on


def test_a_profile_of_some_steps_is_written(tmp_path):
    _fit(tmp_path, profile=(3, 4))
    names = [p.name for p in (tmp_path / "profile").rglob("*") if p.is_file()]
    assert any("perfetto" in n for n in names) and any("xplane" in n for n in names)


@pytest.mark.parametrize(
    "steps", [(3, 4), pytest.param((13, 14), marks=pytest.mark.once)]
)
def test_a_profile_of_steps_that_do_not_come_is_said(tmp_path, capfd, steps):
    _fit(tmp_path, kill_at=4)
    _fit(tmp_path, profile=steps)
    assert "steps 5 to 12: no profile is written" in capfd.readouterr().err


def test_a_profile_that_fails_closes_and_hides_nothing(tmp_path, monkeypatch, capfd):
    def fails():
        raise RuntimeError("no session")

    trace = recorder.Trace(tmp_path, (1, 2))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", fails)
    trace.before(1)
    trace.close()
    assert "no session" in capfd.readouterr().err


def test_a_run_ends_with_a_summary(tmp_path, capfd):
    config = tiny_task.config()
    config.eval.every = 6
    _fit(tmp_path, config, validate=lambda parts, step: {"total": 1.0 / step})
    text = capfd.readouterr().err
    assert "steps 1 to 12: 0:0" in text and "of training" in text
    assert "best validation loss 0.0833 (step 12)" in text


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_collapse_is_said_once(tmp_path, capfd):
    def flat(params, constants, batch, weights, *, axis_name=None):
        total, outputs = tiny_task.objective(
            params, constants, batch, weights, axis_name=axis_name
        )
        factors = outputs.factors.replace(
            raw_depth=jnp.ones_like(outputs.factors.raw_depth)
        )
        return total, outputs.replace(factors=factors)

    _fit(tmp_path, objective=flat)
    text = capfd.readouterr().err
    assert text.count("flat depth") == 1
    log = (tmp_path / "metrics.jsonl").read_text()
    page = (tmp_path / "report.html").read_text()
    assert log.count("flat depth") == 1 and page.count("flat depth") == 2  # mark, list
    assert "images/s" in text and "eta 0:00:" in text


def test_tensorboard_gets_the_scalars(tmp_path):
    config = tiny_task.config()
    config.log.tensorboard = True
    _fit(tmp_path, config)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/grad_norm" in events.read_bytes()


@pytest.mark.parametrize(
    "key, value", [("batch_size", 7), ("devices", 5), ("batch_size", 0)]
)
def test_devices_and_batch_must_fit(key, value):
    config = tiny_task.config(**{key: value})
    if value == 7:
        config.train.devices = 2
    with pytest.raises(UserError, match=r"train\.(devices|batch_size)"):
        parallel.local_devices(config)


def test_another_config_is_refused_only_where_something_was_trained(tmp_path):
    config = tiny_task.config()
    claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)
    config.train.learning_rate = 1.0
    claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)  # no checkpoint yet
    _fit(tmp_path, config)
    config.train.learning_rate = 2.0
    with pytest.raises(UserError, match=r"train\.learning_rate \(1.0 there, 2.0 now"):
        claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)
    config.train.learning_rate = 1.0
    config.log.every, config.data.workers, config.eval.baselines = 5, 1, ("constant",)
    claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["log"]["every"] == 5 and record["seed"] == 0
    assert {"versions", "git_commit", "devices"} <= record.keys()
