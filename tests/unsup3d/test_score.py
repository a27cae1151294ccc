"""Trained baselines: how their config follows from the run's; the old table."""

import json
from typing import Any

import numpy as np
import pytest
import tiny_task

from configs import default
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.engine import log
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.scored import Scored
from unsup3d_jax.engine.task import Session
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import report
from unsup3d_jax.unsup3d import score


def _config():
    config = tiny_task.config(depth_start=4, depth_full=6)
    config.train.lr_scale.depth = 0.1
    config.eval.baselines = ("constant", "supervised")
    config.eval.baseline_steps = 5
    config.lock()
    return config


def _session(splits, config=None):
    return Session(config or _config(), splits, Interrupts())


def test_the_supervised_baseline_learns_depth_at_once():
    config = _config()
    result = score.baseline_config(config, "supervised")
    assert result.model.supervision == "depth"
    assert result.train.steps == 5 and result.eval.baselines == ()
    assert result.train.lr_scale.depth == 1.0 and result.train.depth_start == 0
    assert (result.depth.bump_height, result.depth.output_gain) == (0.0, 1.0)
    # and the run's own config is as it was
    assert config.train.steps == 12 and config.model.supervision == "none"


def test_the_oracle_is_the_method_with_the_truth():
    result = score.baseline_config(_config(), "oracle")
    assert result.model.oracle_view and result.model.oracle_light
    assert result.model.supervision == "none" and result.train.lr_scale.depth == 0.1
    # It learns as long as the method, and waits for no viewpoint.
    assert result.train.steps == 12
    assert result.train.depth_start == result.train.depth_full == 0


@pytest.mark.parametrize("fields, words", [(["image"], "depth and mask"), (None, "")])
def test_baselines_the_data_cannot_train_are_refused_early(fields, words):
    arrays = {
        "image": np.zeros((2, 8, 8, 3), np.uint8),
        "depth": np.ones((2, 8, 8), np.float32),
        "mask": np.ones((2, 8, 8), bool),
    }
    arrays = {k: v for k, v in arrays.items() if fields is None or k in fields}
    report = ds.Report(name="folder", split="train", root="", found=2)
    data = ds.Dataset(arrays=arrays, report=report, digest="x")
    if fields is None:
        score.check_data(_session(lambda split: data))
    else:
        with pytest.raises(UserError, match=f"'supervised' needs true {words}"):
            score.check_data(_session(lambda split: data))


def test_a_missing_split_is_found_before_training():
    asked = []

    def splits(split):
        asked.append(split)
        raise UserError(f"no split {split}")

    config = default.get_config()
    config.eval.baselines = ()
    with pytest.raises(UserError, match="val"):
        score.check_data(_session(splits, config))
    config.log.picture_every = config.eval.every = 0
    with pytest.raises(UserError, match="test"):
        score.check_data(_session(splits, config))
    assert asked == ["val", "test"]


@pytest.fixture
def recorded(tmp_path):
    """(config, what a finished run recorded, changes of it -> the table)."""
    config = _config()
    data = ds.Dataset(arrays={}, report=ds.Report("x", "test", "", 3), digest="abc")

    def row(name):
        return {"name": name, "images": 3, "ground_truth": True}

    report.write_scores(
        tmp_path,
        row("ours"),
        score.provenance(config, data, Scored(None, 12), "test"),
        baseline_rows=[row("constant"), row("supervised")],
    )
    path = tmp_path / "eval" / "test.json"
    record = json.loads(path.read_text())

    def table(now=config, step=12, split="test", splits=lambda split: data, **changes):
        path.write_text(json.dumps(record | changes))
        return score.recorded_table(_session(splits, now), tmp_path, step, split)

    return config, record, table


def test_a_recorded_table_counts_if_it_is_complete(recorded):
    _, record, table = recorded
    text = table()
    assert text.index("constant") < text.index("supervised") < text.index("ours")
    one = {"constant": record["baselines"]["constant"]}
    assert table(baselines=one) is None
    assert table(step=13) is None and table(split="val") is None


def test_another_evaluation_is_not_taken_for_the_runs_table(recorded):
    config, record, table = recorded
    scored = record["scored"]
    for key, value in (("data", "xyz"), ("max_images", 20), ("checkpoint", "/other")):
        assert table(scored=scored | {key: value}) is None
    assert table(scored={}) is None  # of an older version
    for section, name, value in (
        ("eval", "max_images", 20),
        ("eval", "baseline_steps", 6),
        ("data", "crop", (9,)),
    ):
        now = config.copy_and_resolve_references()
        with now.unlocked():
            now[section][name] = value
        assert table(now) is None
    assert table()


def test_steps_of_a_baseline_that_is_not_asked_for_do_not_matter(recorded):
    config, record, table = recorded
    now = config.copy_and_resolve_references()
    with now.unlocked():
        now.eval.baselines, now.eval.baseline_steps = ("constant",), 6
    assert table(now)
    unknown = {k: v for k, v in record["scored"].items() if k != "baseline_steps"}
    assert table(now, scored=unknown) and table(config, scored=unknown) is None


def _values(workdir):
    """{tag: [(step, value)]} of the TensorBoard of a run."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # made at run time, unknown to checkers
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # length 8, checksum 4, message, checksum 4 bytes
            size = int.from_bytes(data[:8], "little")
            event = messages.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):  # hides what is older from this step on
                found.setdefault("start", []).append((event.step, None))
            for value in event.summary.value:
                number = (event.step, value.simple_value)
                found.setdefault(value.tag, []).append(number)
    return found


def test_final_scores_are_logged_once(tmp_path):
    config = _config()
    config.unlock()
    config.log.tensorboard = True
    data = ds.Dataset(arrays={}, report=ds.Report("x", "test", "", 3), digest="abc")
    session = _session(lambda split: data, config)
    train = '{"step": 12, "split": "train", "total": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(f'{train}{{"step": 12, "spl')  # torn

    def lines(side, step=12):
        mean = {"side": side, "mad_deg": 20.0, "recon_l1": float("nan")}
        row = {key: {"mean": value, "std": 0.0, "n": 3} for key, value in mean.items()}
        report.write_scores(
            tmp_path,
            {"name": "ours", "images": 3, "ground_truth": True, **row},
            score.provenance(config, data, Scored(None, step), "test"),
        )
        score.log_scores(session, tmp_path, 12, "test")
        return [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]

    ours = {"step": 12, "split": "eval", "of": "test", "mad_deg": 20.0}
    first, second = ours | {"side_x100": 1.25}, ours | {"side_x100": 1.5}
    assert lines(0.0125) == [json.loads(train), first]
    assert lines(0.0125) == [json.loads(train), first]
    assert lines(0.03, step=9) == [json.loads(train), first]  # of another checkpoint
    assert _values(tmp_path) == {
        "eval/side_x100": [(12, 1.25)],
        "eval/mad_deg": [(12, 20.0)],
        "start": [(13, None)],
    }
    assert lines(float("nan")) == [json.loads(train), first, ours]  # nothing scored
    assert lines(0.015)[1:] == [first, ours, second]


def test_a_log_that_cannot_be_written_is_said(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "write_atomically", full)
    log.record_once(tmp_path, {"step": 3, "split": "eval"}, tensorboard=True)
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "metrics.jsonl lacks the scores: [Errno 28]" in err


def test_a_recorded_table_outlives_its_data(recorded):
    def gone(split):
        raise UserError("data.path: gone")

    assert recorded[2](splits=gone)
