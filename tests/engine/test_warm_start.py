"""A run that begins from the parameters of another."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_task

from unsup3d_jax.engine import checkpoint, packing, run, warm_start
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import Session, initial_state
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d.task import IDENTITY


def _config(source="", **keys):
    config = tiny_task.config(**keys)
    config.data.path, config.train.devices = "", 1
    config.train.init_from = str(source)
    return config


def _like(config):
    state = jax.eval_shape(lambda: initial_state(tiny_task.task(config), 0))
    return {"params": state.parts["params"]}


def _train(workdir, config, described=None, **changes):
    read = functools.partial(warm_start.read, config, _like(config), IDENTITY)
    plan = run.Plan(
        make_task=lambda: tiny_task.task(config, **changes),
        describe=lambda: (described or str)() or "noise",
        identity=IDENTITY,
        start=read if config.train.init_from else None,
    )
    with Interrupts() as interrupts:
        return run.train(Session(config, range, interrupts), workdir, plan)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run of four steps."""
    workdir = tmp_path_factory.mktemp("source")
    _train(workdir, _config(steps=4))
    return workdir


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory):
    """A run that began from it and was not interrupted: its workdir."""
    workdir = tmp_path_factory.mktemp("straight")
    _train(workdir, _config(source, steps=12))
    return workdir


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_only_the_parameters_are_taken(source, tmp_path, capfd):
    config = _config(source, steps=12, learning_rate=3e-3)
    # Ends before its first step.
    _, step = _train(tmp_path, config, kill_at=0)
    assert step == 0
    assert f"from step 4 of {source}" in capfd.readouterr().err
    theirs, _ = checkpoint.load_parts(source)
    fresh = initial_state(tiny_task.task(config), config.seed)
    ours, position = checkpoint.Checkpoints(tmp_path, keep=2).restore(fresh, 0)
    assert position == {} and int(ours["step"]) == 0
    _equal(ours["params"], theirs["params"])
    fresh = packing.to_host(fresh)
    _equal(jax.tree.leaves(ours["opt_state"]), jax.tree.leaves(fresh["opt_state"]))
    _equal(ours["key"], fresh["key"])
    assert not np.array_equal(ours["params"]["view"]["w"], fresh["params"]["view"]["w"])
    record = json.loads((tmp_path / "init_from.json").read_text())
    assert record == {
        "path": str(source),
        "step": 4,
        "checksums": packing.checksums({"params": theirs["params"]}),
    }


@pytest.mark.parametrize("cut", [1, pytest.param(6, marks=pytest.mark.once)])
def test_resuming_is_bit_equal_and_never_reads_it_again(
    source, straight, tmp_path, cut
):
    """Cut before the first checkpoint with a step, and after it."""
    shutil.copytree(source, tmp_path / "gone")
    config = _config(tmp_path / "gone", steps=12)
    _, step = _train(tmp_path / "run", config, kill_at=cut)
    assert step == cut
    shutil.rmtree(tmp_path / "gone")
    found, step = _train(tmp_path / "run", config)
    expected, _ = checkpoint.load_parts(straight)
    assert step == 12
    _equal(found["params"], expected["params"])
    fresh, _ = _train(tmp_path / "noise", _config(steps=12))
    assert not np.array_equal(
        fresh["params"]["view"]["w"], found["params"]["view"]["w"]
    )
    with pytest.raises(UserError, match=r"train\.init_from \(.*gone.* there, \"\" now"):
        _train(tmp_path / "run", _config(steps=12))


def test_one_checkpoint_folder_will_do(source, tmp_path):
    config = _config(source / "checkpoints" / "4")
    assert warm_start.read(config, _like(config), IDENTITY).step == 4


def test_what_is_wrong_with_it_is_said_before_data_are_loaded(source, tmp_path):
    def fail():
        raise AssertionError("data were loaded")

    for place, words in (
        (tmp_path / "nowhere", "no checkpoint at .*nowhere"),
        (tmp_path, "no checkpoint in "),
    ):
        with pytest.raises(UserError, match=f"^train.init_from: {words}"):
            _train(tmp_path / "run", _config(place), fail)
    config = _config(source)
    config.view.rotation_max_deg = 30.0
    with pytest.raises(
        UserError, match=r"init_from: .*view.rotation_max_deg \(60.0 th"
    ):
        _train(tmp_path / "run", config, fail)
    assert not (tmp_path / "run").exists()
    # How the source grew is no matter.
    config = _config(source)
    config.view.warmup_steps = 3
    like = _like(config)
    assert warm_start.read(config, like, IDENTITY).step == 4
    like["params"]["view"]["w"] = jax.ShapeDtypeStruct((7,), np.float32)
    with pytest.raises(UserError, match=r"view/w has shape \(3,\), expected \(7,\)"):
        warm_start.read(config, like, IDENTITY)
