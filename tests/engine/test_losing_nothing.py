"""Kills, full disks, damage, and a second process: no step is lost or doubled."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import lives
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_task

from unsup3d_jax import cli
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import load as data_load
from unsup3d_jax.data import source as data_source
from unsup3d_jax.engine import log, recorder
from unsup3d_jax.engine.checkpoint import Checkpoints, load_parts
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.packing import Damaged
from unsup3d_jax.engine.task import Session
from unsup3d_jax.engine.workdir import lock_workdir, newest_step
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d import task, watch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Outcome of the run of `lives`, not interrupted."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    process = lives.start(lives.live, workdir)
    process.join(120)
    assert (workdir / "finished").exists(), Path(f"{workdir}.err").read_text()
    return lives.outcome(workdir)


# --- kill -9 ----------------------------------------------------------------------


def _kill_once(workdir: Path, how: str, dice: random.Random) -> bool:
    """Starts a life and kills it; False if it had finished before."""
    alive = workdir / "alive"
    alive.unlink(missing_ok=True)
    process = lives.start(lives.live, workdir)
    lives.wait_until(alive.exists, process)
    checkpoints = workdir / "checkpoints"

    def saving() -> bool:
        return checkpoints.exists() and any(
            "tmp" in name for name in os.listdir(checkpoints)
        )

    if how == "save":
        lives.wait_until(saving, process)
        time.sleep(dice.uniform(0, 0.01))
    elif how == "evaluation":
        lives.wait_until((workdir / "evaluating").exists, process)
        time.sleep(dice.uniform(0, 0.05))
    else:  # from before the first line to after the last
        time.sleep(dice.uniform(0, 2.0))
    return lives.kill(process)


def _kill_many(folder: Path, count: int, straight: dict) -> None:
    dice, kills, runs = random.Random(0), 0, 0
    while kills < count:
        workdir, runs = folder / f"run{runs}", runs + 1
        workdir.mkdir()
        while not (workdir / "finished").exists():
            how = ("save", "evaluation", "any")[kills % 3]
            if kills >= count:
                process = lives.start(lives.live, workdir)
                process.join(120)
                assert process.exitcode == 0, Path(f"{workdir}.err").read_text()
                break
            kills += _kill_once(workdir, how, dice)
        assert lives.outcome(workdir) == straight


def test_killed_at_four_moments(tmp_path, straight):
    steps = [line["step"] for line in straight["lines"] if line["split"] == "train"]
    assert steps == [1, *range(2, lives.STEPS + 1, 2)]
    _kill_many(tmp_path, 4, straight)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_fifty_times(tmp_path, straight):
    _kill_many(tmp_path, 50, straight)


# --- signals ------------------------------------------------------------------------


def _terminate(target, workdir: Path, marker: str) -> tuple[int | None, str]:
    workdir.mkdir()
    process = lives.start(target, workdir)
    assert lives.wait_until((workdir / marker).exists, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    return process.exitcode, Path(f"{workdir}.err").read_text()


def test_sigterm_while_compiling_ends_with_0(tmp_path):
    status, text = _terminate(lives.compile_for_ever, tmp_path / "run", "compiling")
    assert status == 0 and "everything is saved" in text


def test_a_deadline_that_loses_steps_ends_with_1(tmp_path):
    status, text = _terminate(lives.wait_for_data_for_ever, tmp_path / "run", "waiting")
    assert status == 1 and "checkpoint before them is kept" in text
    assert newest_step(tmp_path / "run") == 5


def test_a_question_that_fails_does_not_end_the_deadline(tmp_path):
    status, text = _terminate(lives.wait_in_vain, tmp_path / "run", "waiting")
    assert status == 1 and "newest steps are not saved" in text


def test_sigterm_while_data_are_prepared_ends_with_0(tmp_path, monkeypatch, capsys):
    def load(config, split):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")

    monkeypatch.setattr(data_load, "load_split", load)
    flags = [f"--config={ROOT / 'configs' / 'folder.py'}", f"--workdir={tmp_path}"]
    assert cli.main(["main.py", *flags]) == 0
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize("read", ["restore", "load_parts"])
def test_sigterm_while_a_checkpoint_is_read_damages_none(tmp_path, monkeypatch, read):
    """Neither resuming nor scoring may take a signal for a broken file."""
    config = tiny_task.config()
    lives.fit(tmp_path, config, tiny_task.task(config))
    reader = ocp.CheckpointManager if read == "restore" else ocp.Checkpointer
    monkeypatch.setattr(reader, "restore", _terminated(reader.restore))
    with pytest.raises(Interrupted):
        if read == "restore":
            lives.fit(tmp_path, config, tiny_task.task(config))
        else:
            with Interrupts():
                load_parts(tmp_path)
    assert newest_step(tmp_path) == 12 and not (tmp_path / "damaged").exists()


def _terminated(function):
    def wrapped(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return function(*args, **kwargs)

    return wrapped


def test_sigterm_while_an_image_is_read_is_no_broken_image():
    """Without reading threads the signal strikes in the middle of a file."""

    def read(item):
        return {"image": np.zeros((8, 8, 3), np.uint8)}, (8, 8)

    data = lives.numbered(4, _terminated(read), workers=0)
    with pytest.raises(Interrupted), Interrupts():
        data.take([0, 1])


# --- the disk -----------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint_and_loses_nothing(tmp_path, straight):
    answer = tmp_path / "answer.json"
    process = lives.start(lives.fill_the_disk, tmp_path / "disk", answer)
    process.join(120)
    assert answer.exists(), (tmp_path / "disk.err").read_text()
    found = json.loads(answer.read_text())
    if "skip" in found:
        pytest.skip(f"no mount namespace: {found['skip']}")
    assert "No space left" in found["error"] and found["steps"] == [5]
    assert "Traceback" not in (tmp_path / "disk.err").read_text()
    assert found["outcome"] == straight


def test_a_log_that_cannot_be_written_is_said_and_the_step_saved(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    class Filling(tiny_task.Source):
        def __next__(self):
            if self.position == 7:
                (tmp_path / "metrics.jsonl").unlink()
                os.symlink("/dev/full", tmp_path / "metrics.jsonl")
            return super().__next__()

    config = tiny_task.config(steps=40)
    made = tiny_task.task(config, make_source=lambda devices: Filling(devices, 8))
    config.checkpoint.every = 100
    with pytest.raises(UserError, match="No space left.*Step 9 is saved, without the"):
        lives.fit(tmp_path, config, made)  # line 8 fails while step 9 is computed
    assert newest_step(tmp_path) == 9


def test_a_disk_that_is_full_when_a_run_resumes_is_said(tmp_path, monkeypatch):
    """Each start rewrites the log, before there is anything to save."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    config = tiny_task.config(steps=4)
    lives.fit(tmp_path, config, tiny_task.task(config))
    os.symlink("/dev/full", tmp_path / "metrics.jsonl.part")
    closed = []
    for owner in (Checkpoints, log.RunLog):
        monkeypatch.setattr(owner, "close", lambda self: closed.append(type(self)))
    with pytest.raises(UserError, match="cannot write in .*No space left"):
        lives.fit(tmp_path, config, tiny_task.task(config))
    assert set(closed) == {Checkpoints, log.RunLog}


@pytest.mark.parametrize("what", ["checkpoints", "lock"])
def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, what):
    # Not by permissions, which do not bind the superuser of a container.
    if what == "lock":
        (tmp_path / "lock").mkdir()
    else:
        (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="cannot write in"):
        lives.fit(tmp_path, tiny_task.config())


# Noticed in the same way as a truncated file.
DAMAGES = ("flipped", "missing")


def _damage(folder: Path, how: str) -> None:
    files = sorted(p for p in (folder / "state").rglob("*") if p.is_file())
    if how == "missing":
        for path in files:
            path.unlink()
        return
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how",
    ["truncated", *(pytest.param(h, marks=pytest.mark.once) for h in DAMAGES)],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, how, capfd):
    config = tiny_task.config()
    state = lives.fit(tmp_path / "a", config, tiny_task.task(config))
    lines = (tmp_path / "a" / "metrics.jsonl").read_text()
    _damage(tmp_path / "a" / "checkpoints" / "12", how)
    _, step = load_parts(tmp_path / "a")
    assert step == 8 and "is damaged" in capfd.readouterr().err
    again = lives.fit(tmp_path / "a", config, tiny_task.task(config))
    text = capfd.readouterr().err
    assert "checkpoint 12 is damaged" in text and "checkpoint 8" in text
    assert "Traceback" not in text
    assert (tmp_path / "a" / "damaged" / "12").is_dir()
    assert Checkpoints(tmp_path / "a", keep=2).steps() == [8, 12]
    for x, y in zip(
        jax.tree.leaves(state.parts), jax.tree.leaves(again.parts), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    steps = [json.loads(x)["step"] for x in lines.splitlines()]
    text = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert [json.loads(x)["step"] for x in text.splitlines()] == steps


def test_changed_numbers_are_noticed_where_the_file_is_sound(tmp_path):
    config = tiny_task.config(steps=4)
    lives.fit(tmp_path, config, tiny_task.task(config))
    path = tmp_path / "checkpoints" / "4" / "checksums" / "metadata"
    sums = json.loads(path.read_text())
    path.write_text(json.dumps(sums | {"params": sums["params"] ^ 1}))
    with pytest.raises(UserError, match="no checkpoint .* can be read"):
        lives.fit(tmp_path, config, tiny_task.task(config))


def test_a_changed_data_position_is_noticed(tmp_path):
    config = tiny_task.config()
    lives.fit(tmp_path, config, tiny_task.task(config))
    folder = tmp_path / "checkpoints" / "12"
    position = (folder / "data" / "metadata").read_text()
    (folder / "data" / "metadata").write_text(position.replace("12", "13"))
    assert lives.outcome(tmp_path, 8)["position"]["position"] == 8
    with pytest.raises(Damaged, match="'data'"):
        lives.outcome(tmp_path, 12)
    sums = json.loads((folder / "checksums" / "metadata").read_text())
    del sums["data"]  # as former versions wrote it
    (folder / "checksums" / "metadata").write_text(json.dumps(sums))
    assert lives.outcome(tmp_path, 12)["position"]["position"] == 13


# --- other processes, other data, other clocks --------------------------------------


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    workdir = tmp_path / "run"
    process = lives.start(lives.live, workdir)
    lives.wait_until((workdir / "metrics.jsonl").exists, process)
    with pytest.raises(UserError, match=f"in use by process {process.pid} on"):
        lives.fit(workdir)
    lives.kill(process)
    with lock_workdir(workdir):
        pass


def test_a_used_workdir_is_refused_before_data_are_loaded(tmp_path):
    config = tiny_task.config()

    def splits(name):
        raise AssertionError("not reached")

    with lock_workdir(tmp_path), Interrupts() as interrupts:
        with pytest.raises(UserError, match="in use"):
            task.train(Session(config, splits, interrupts), tmp_path)


def test_a_workdir_that_another_takes_while_data_are_loaded_is_refused(
    tmp_path, monkeypatch
):
    """Two runs may start in one new workdir at once; one of them gets it."""
    config = tiny_task.config()
    monkeypatch.setattr(task, "model_task", lambda *_: tiny_task.task(config))
    with contextlib.ExitStack() as other, Interrupts() as interrupts:

        def splits(name):
            other.enter_context(lock_workdir(tmp_path / "run"))
            return range(64)

        with pytest.raises(UserError, match="in use"):
            task.train(Session(config, splits, interrupts), tmp_path / "run")
    assert newest_step(tmp_path / "run") is None


def test_a_dead_data_worker_stops_the_run_and_saves_the_step(tmp_path):
    class Dying(tiny_task.Source):
        def __next__(self):
            if self.position == 6:
                raise UserError("photo.png has become unreadable.")
            return super().__next__()

    config = tiny_task.config()
    made = tiny_task.task(config, make_source=lambda devices: Dying(devices, 8))
    with pytest.raises(UserError, match="unreadable. Step 6 is saved"):
        lives.fit(tmp_path, config, made)
    assert newest_step(tmp_path) == 6


@pytest.mark.parametrize("error", [MemoryError("no memory"), SystemExit(3)])
def test_a_reading_thread_that_dies_does_not_hang_the_run(error):
    def read(item):
        if item.name == "5":
            raise error
        return {"image": np.zeros((8, 8, 3), np.uint8)}, (8, 8)

    data = lives.numbered(9, read, workers=2)
    source = data_source.TrainSource(
        data,
        fields=["image"],
        batch_size=3,
        devices=jax.local_devices()[:1],
        seed=0,
        flip=False,
        resident=False,
    )
    with pytest.raises((UserError, SystemExit)):
        for _ in range(4):
            next(source)


def test_changed_data_are_refused_when_resuming(tmp_path):
    """A fingerprint of names and sizes travels in every checkpoint."""
    config = tiny_task.config(steps=4)

    def made(digest, steps):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
        data = ds.Dataset({"image": images}, ds.Report("x", "train", "", 16), digest)
        config.train.steps = steps
        return tiny_task.task(
            config,
            make_source=lambda devices: data_source.train_source(
                data, config, fields=("image",), devices=devices, seed=0
            ),
        )

    lives.fit(tmp_path, config, made("before", 4))
    with pytest.raises(UserError, match="data changed, digest was before and is after"):
        lives.fit(tmp_path, config, made("after", 8))
    assert newest_step(tmp_path) == 4


def test_another_order_is_another_permutation_and_comes_back():
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    images = np.broadcast_to(images, (12, 8, 8, 3)).copy()
    data = ds.Dataset({"image": images}, ds.Report("x", "train", "", 12), "digest")
    config = tiny_task.config(batch_size=4)
    config.data.flip = False

    def make():
        devices = jax.local_devices()[:1]
        return data_source.train_source(
            data, config, fields=("image",), devices=devices, seed=0
        )

    def epoch(source):
        numbers = [np.rint(255 * next(source).image[0, :, 0, 0, 0]) for _ in range(3)]
        return np.concatenate(numbers).astype(int).tolist()

    source = make()
    first = epoch(source)
    source.reorder(1)
    second, position = epoch(source), source.state()
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert position["step"] == 6 and position["reordered"] == 1
    third, other = epoch(source), make()
    other.restore(position)
    assert epoch(other) == third
    old = {k: v for k, v in make().state().items() if k != "reordered"}
    other.restore(old)  # as checkpoints of former versions have it
    assert epoch(other) == first


@pytest.mark.once
def test_a_clock_that_runs_backwards_changes_nothing(tmp_path, monkeypatch):
    config = tiny_task.config()
    config.log.tensorboard = True
    state = lives.fit(tmp_path / "a", config, tiny_task.task(config))
    now = time.time()
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(ticks))
    config.train.steps = 7
    lives.fit(tmp_path / "b", config, tiny_task.task(config))
    config.train.steps = 12
    other = lives.fit(tmp_path / "b", config, tiny_task.task(config))
    for x, y in zip(
        jax.tree.leaves(state.parts), jax.tree.leaves(other.parts), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    text = (tmp_path / "b" / "metrics.jsonl").read_text()
    lines = [x for x in map(json.loads, text.splitlines()) if x["split"] == "train"]
    assert len(lines) == 8 and all(line["eta"] >= 0 for line in lines)
    assert len(list((tmp_path / "b" / "tensorboard").iterdir())) == 2


# --- NaN and collapse ---------------------------------------------------------------


def _lines(workdir: Path) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_nan_step_is_skipped_logged_and_changes_nothing(tmp_path, capfd):
    config = tiny_task.config(nan="skip", weight_decay=0.1)

    def weights_at(step):
        return jnp.where((step == 5) | (step == 7), jnp.nan, 1.0)

    def run(steps):
        config.train.steps = steps
        made = tiny_task.task(config, weights_at=weights_at)
        state = lives.fit(tmp_path / f"{steps}", config, made)
        return jax.device_get(tiny_task.params(state))

    before, after, on = run(5), run(6), run(12)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(on))
    assert (on["view"]["w"] != after["view"]["w"]).any()
    events = [x for x in _lines(tmp_path / "12") if x.get("event") == "skip"]
    assert [(e["step"], e["total"]) for e in events] == [(6, "nan"), (8, "nan")]
    assert "step 6: loss nan, gradient norm nan: skipped" in capfd.readouterr().err


@pytest.mark.once
def test_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    config = tiny_task.config(nan="skip", skips_in_a_row=3)
    made = tiny_task.task(
        config, weights_at=lambda step: jnp.where(step >= 5, jnp.nan, 1.0)
    )
    with pytest.raises(recorder.Diverged, match="step 8: .*after 2 more"):
        lives.fit(tmp_path, config, made)
    # The count goes on where a killed run left it.
    with pytest.raises(recorder.Diverged, match="step 8: .*after 2 more"):
        lives.fit(tmp_path, config, made)


@pytest.mark.parametrize(
    "policy", ["stop", pytest.param("skip", marks=pytest.mark.once)]
)
def test_an_exploding_gradient_counts_as_not_finite(tmp_path, policy):
    config = tiny_task.config(nan=policy, grad_norm_max=1e3)
    made = tiny_task.task(
        config, weights_at=lambda step: jnp.where(step == 5, 1e6, 1.0)
    )
    if policy == "stop":
        with pytest.raises(recorder.Diverged, match="step 6:.*grad_norm_max"):
            lives.fit(tmp_path, config, made)
    else:
        lives.fit(tmp_path, config, made)
        events = [x for x in _lines(tmp_path) if x.get("event") == "skip"]
        assert [e["step"] for e in events] == [6]


class _Poisoned(tiny_task.Source):
    """From step 13 on, images of the first order make the depth flat."""

    def __next__(self):
        poisoned = self._reordered == 0 and self.position >= 13
        batch = super().__next__()
        return dataclasses.replace(
            batch, image=batch.image * (0.0 if poisoned else 1.0)
        )


def _collapsing(config):
    return tiny_task.task(
        config, make_source=lambda devices: _Poisoned(devices, config.train.batch_size)
    )


@pytest.mark.once
def test_a_collapsed_run_goes_back_and_takes_another_order(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(
        watch,
        "warnings",
        lambda line, *_, **__: ["flat depth: it is."] * (line["depth_std"] < 1e-4),
    )
    config = tiny_task.config(steps=40, rollbacks=1)
    state = lives.fit(tmp_path / "a", config, _collapsing(config))
    assert "Going back to checkpoint 12" in capfd.readouterr().err
    lines = _lines(tmp_path / "a")
    (event,) = [x for x in lines if x["split"] == "event"]
    assert event["step"] == 12 and event["event"] == "rollback"
    assert event["reason"] == "step 18: flat depth: it is."
    steps = [x["step"] for x in lines if x["split"] == "train"]
    assert steps == [1, *range(2, 41, 2)]  # none twice, none missing
    assert all(x["depth_std"] > 1e-4 for x in lines if x["split"] == "train")

    # Interrupted after it had gone back, it comes to the same end.
    class Cut(_Poisoned):
        def __next__(self):
            if self._reordered and self.position == 17:
                signal.raise_signal(signal.SIGTERM)
            return super().__next__()

    made = tiny_task.task(config, make_source=lambda devices: Cut(devices, 8))
    cut = lives.fit(tmp_path / "b", config, made)
    assert int(cut.step) == 17
    again = lives.fit(tmp_path / "b", config, _collapsing(config))
    for x, y in zip(
        jax.tree.leaves(state.parts), jax.tree.leaves(again.parts), strict=True
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.once
def test_a_diverged_run_goes_back_at_most_k_times(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(watch, "warnings", lambda *_, **__: [])
    config = tiny_task.config(rollbacks=2)
    made = tiny_task.task(
        config, weights_at=lambda step: jnp.where(step == 9, jnp.nan, 1.0)
    )
    with pytest.raises(recorder.Diverged, match="step 10"):
        lives.fit(tmp_path, config, made)
    assert capfd.readouterr().err.count("Going back to checkpoint 8") == 2
    events = [x for x in _lines(tmp_path) if x["split"] == "event"]
    assert [e["event"] for e in events] == ["rollback", "rollback", "diverged"]
    assert [e["step"] for e in events[:2]] == [8, 8] and events[2]["step"] >= 10
    assert "step 10: loss nan" in events[2]["reason"]
    assert "<strong>Diverged</strong>" in (tmp_path / "report.html").read_text()


@pytest.mark.once
def test_a_return_that_takes_back_another_is_counted_with_it(
    tmp_path, capfd, monkeypatch
):
    """The second one leads to a checkpoint before that of the first."""
    orders = []

    class Noting(tiny_task.Source):
        def reorder(self, number):
            orders.append(number)
            super().reorder(number)

    def warnings(line, *_, **__):
        late = 12 if orders else 14
        ill = line["step"] in (8, 12) or line["step"] > late
        return ["flat depth: it is."] * ill

    monkeypatch.setattr(watch, "warnings", warnings)
    config = tiny_task.config(steps=40, rollbacks=2)
    config.checkpoint.keep = 5
    made = tiny_task.task(config, make_source=lambda devices: Noting(devices, 8))
    lives.fit(tmp_path, config, made)
    places = [x["step"] for x in _lines(tmp_path) if x.get("event") == "rollback"]
    assert len(places) == 2 and places[1] < places[0]
    assert orders == [1, 2]
    assert capfd.readouterr().err.count("Going back to") == 2
    steps = [x["step"] for x in _lines(tmp_path) if x["split"] == "train"]
    assert steps == [1, *range(2, 41, 2)]


def test_parameters_that_are_not_finite_are_the_end_and_not_a_trace(tmp_path):
    """The loss and the gradient of the step that made them were finite."""

    config = tiny_task.config(learning_rate=1e38, weight_decay=1e30)
    made = tiny_task.task(config, weights_at=lambda step: 0.0)
    with pytest.raises(recorder.Diverged, match="step 2, its parameters or moments"):
        config.checkpoint.every = 2
        lives.fit(tmp_path, config, made)
