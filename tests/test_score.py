"""Trained baselines: how their config follows from the run's; the old table."""

import json

import numpy as np
import pytest
import tiny_task

from configs import default
from unsup3d_jax import score
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.errors import UserError


def _config():
    config = tiny_task.config(depth_start=4, depth_full=6)
    config.train.lr_scale.depth = 0.1
    config.eval.baselines = ("constant", "supervised")
    config.eval.baseline_steps = 5
    config.lock()
    return config


def test_the_supervised_baseline_learns_depth_at_once():
    config = _config()
    result = score.baseline_config(config, "supervised")
    assert result.model.supervision == "depth"
    assert result.train.steps == 5 and result.eval.baselines == ()
    assert result.train.lr_scale.depth == 1.0 and result.train.depth_start == 0
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
        score.check_data(_config(), lambda split: data)
    else:
        with pytest.raises(UserError, match=f"'supervised' needs true {words}"):
            score.check_data(_config(), lambda split: data)


def test_a_missing_split_is_found_before_training():
    asked = []

    def splits(split):
        asked.append(split)
        raise UserError(f"no split {split}")

    config = default.get_config()
    config.eval.baselines = ()
    with pytest.raises(UserError, match="val"):
        score.check_data(config, splits)
    config.log.picture_every = config.eval.every = 0
    with pytest.raises(UserError, match="test"):
        score.check_data(config, splits)
    assert asked == ["val", "test"]


def test_a_recorded_table_counts_if_it_is_complete(tmp_path):
    config = _config()
    (tmp_path / "eval").mkdir()
    path = tmp_path / "eval" / "test.json"

    def row(name):
        return {"name": name, "images": 3, "ground_truth": True}

    record = row("ours") | {
        "checkpoint_step": 12,
        "baselines": {"constant": row("constant")},
    }
    path.write_text(json.dumps(record))
    assert score.recorded_table(config, tmp_path, 12, "test") is None
    record["baselines"]["supervised"] = row("supervised")
    path.write_text(json.dumps(record))
    table = score.recorded_table(config, tmp_path, 12, "test")
    assert table.index("constant") < table.index("supervised") < table.index("ours")
    assert score.recorded_table(config, tmp_path, 13, "test") is None
    assert score.recorded_table(config, tmp_path, 12, "val") is None
