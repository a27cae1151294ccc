"""Stages resume bit for bit, and an image does not care in whose company it is."""

import copy
import dataclasses
import json

import gan_shape_samples as samples
import jax
import numpy as np
import pytest

from configs.gan2shape import default
from unsup3d_jax.engine import workdir
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import options, stages


class StopAt(Interrupts):
    """Asks to stop once so many iterations are done; read before each advance."""

    def __init__(self, after):
        super().__init__()
        self._more = after

    @property
    def requested(self):
        self._more -= 1
        return self._more < 0

    @requested.setter
    def requested(self, value):
        pass


def leaves(state):
    return jax.tree_util.tree_leaves_with_path(state.parts)


def assert_equal(a, b):
    for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def test_phases_follow_the_config():
    config = samples.config(stages__count=3, stages__flip_all=(True, False))
    found = options.phases(config)
    assert [(p.kind, p.stage, p.last - p.first) for p in found] == [
        ("prior", 0, 3),
        ("albedo", 1, 3),
        ("encoder", 1, 3),
        ("collect", 1, 2),
        ("shape", 1, 3),
        ("albedo", 2, 2),
        ("encoder", 2, 2),
        ("collect", 2, 2),
        ("shape", 2, 2),
        ("albedo", 3, 2),
        ("encoder", 3, 2),
        ("collect", 3, 2),
        ("shape", 3, 2),
    ]
    assert [p.flip for p in found if p.kind == "shape"] == [True, False, False]
    assert all(a.last == b.first for a, b in zip(found, found[1:], strict=False))


def test_a_joint_stage_is_a_config_of_its_own_and_takes_the_place_of_the_prior():
    config = samples.config(stages__joint_steps=(5, 0, 4), loss__spread=0.1)
    before = options.joint_stage(config)
    assert before is not None and options.joint_stage(before) is None
    assert [(p.kind, p.stage, p.last - p.first) for p in options.phases(before)] == [
        ("prior", 0, 3),
        ("albedo", 1, 5),
        ("collect", 1, 2),
        ("shape", 1, 4),
    ]
    assert options.phases(config)[0].kind == "albedo"
    static = [options.options_from_config(c) for c in (before, config)]
    # One image has no spread.
    assert [found.loss.spread for found in static] == [0.1, 0.0]
    assert [found.active for found in static] == [config.stages.joint_images, None]
    options.check_config(config)
    options.check_config(before)


def test_a_lesson_comes_once_after_the_prior_where_an_encoder_learns():
    config = samples.config(stages__lesson_steps=7)
    kinds = [(p.kind, p.last - p.first) for p in options.phases(config)]
    assert kinds[:3] == [("prior", 3), ("lesson", 7), ("albedo", 3)]
    assert sum(kind == "lesson" for kind, _ in kinds) == 1
    for changes in (
        {"projection__kind": "none"},
        {"broken__encoder": True},
        {"train__init_from": "runs/joint"},
    ):
        other = samples.config(stages__lesson_steps=7, **changes)
        assert all(p.kind != "lesson" for p in options.phases(other)), changes
    # With joint stages it is theirs.
    shared = samples.config(stages__lesson_steps=7, stages__joint_steps=(1, 1, 1))
    assert options.phases(shared)[0].kind == "albedo"
    before = options.joint_stage(shared)
    assert before is not None and options.phases(before)[1].kind == "lesson"


def test_joint_stages_may_be_some():
    keys = {"stages__joint_steps": (5, 0, 4), "stages__joint_count": 3}
    before = options.joint_stage(samples.config(**keys))
    assert before is not None and options.joint_stage(before) is None
    found = [(p.kind, p.stage, p.last - p.first) for p in options.phases(before)]
    one = [("albedo", 5), ("collect", 2), ("shape", 4)]
    wanted = [(kind, stage, n) for stage in (1, 2, 3) for kind, n in one]
    assert found == [("prior", 0, 3), *wanted]
    options.check_config(before)
    # Of one stage the config is what it was before there could be some.
    alone = samples.config(stages__joint_steps=(5, 0, 4), stages__later_steps=(7, 7, 7))
    first = options.joint_stage(alone)
    assert first is not None and first.stages.later_steps == (7, 7, 7)


def test_a_joint_stage_is_refused_where_all_stages_are_joint():
    config = samples.config(stages__joint_steps=(1, 1, 1), stages__mode="joint")
    with pytest.raises(UserError, match="stages.joint_steps"):
        options.check_config(config)


def test_networks_of_a_joint_run_take_the_place_of_a_joint_stage():
    keys = {"stages__joint_steps": (1, 1, 1), "loss__spread": 0.3}
    config = samples.config(train__init_from="runs/joint", **keys)
    assert options.joint_stage(config) is None
    assert options.check_config(config).loss.spread == 0.0
    assert options.phases(config)[0].kind == "albedo"


def test_a_workdir_older_than_a_key_is_gone_on_with():
    now = json.loads(json.dumps(samples.config().to_dict()))
    then = copy.deepcopy(now)
    for key in default.YOUNGER:
        section, name = key.split(".")
        del then[section][name]
    assert workdir.differing_keys(then, now, options.IDENTITY) == []
    now["stages"]["joint_steps"] = [1, 1, 1]
    (found,) = workdir.differing_keys(then, now, options.IDENTITY)
    assert found.startswith("stages.joint_steps")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and how often it came back to the host."""
    config = samples.config()
    plan, work = samples.plan(config), samples.work(config, [0])
    folder = tmp_path_factory.mktemp("whole")
    state, done = stages.run(work, plan, folder, StopAt(1000))
    assert done and int(state.step) == plan.last == 14
    return config, work, plan, state


# Returns to the host: 2, 3 prior; 4, 6 albedo; 8, 9 encoder; 10, 11 collect; 12, 14.
@pytest.mark.slow  # `whole` compiles every step
@pytest.mark.parametrize("after", [1, 3, 5, 7, 9])
def test_each_step_resumes_bit_for_bit(whole, tmp_path, after):
    _, work, plan, expected = whole
    state, done = stages.run(work, plan, tmp_path, StopAt(after))
    assert not done and 0 < int(state.step) < plan.last
    state, done = stages.run(work, plan, tmp_path, StopAt(1000))
    assert done
    assert_equal(state, expected)


@pytest.mark.slow
def test_other_images_are_refused(whole, tmp_path):
    _, work, plan, _ = whole
    stages.run(work, plan, tmp_path, StopAt(1))
    other = dataclasses.replace(work, images={"rows": [7]})
    with pytest.raises(UserError, match="other images"):
        stages.run(other, plan, tmp_path, StopAt(1))


def assert_alike(whole, alone, place):
    """The groups of `alone` are those from `place` on in `whole`, to rounding.

    Returns:
        Entries of optimizers' states that are not all zero.
    """
    several, moved = dict(leaves(whole)), 0
    for path, one in leaves(alone):
        name = jax.tree_util.keystr(path)
        axis, one = int("record" in name), np.asarray(one, np.float32)
        rows = range(place, place + one.shape[axis])
        mine = np.take(np.asarray(several[path], np.float32), rows, axis=axis)
        size = np.abs(one).max(initial=0.0)
        moved += "moments" in name and size > 0
        # The store is rounded to half precision.
        error = 1e-3 if "store" in name else 5e-4 * size
        np.testing.assert_allclose(mine, one, rtol=0, atol=error, err_msg=name)
    return moved


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_image_is_the_same_in_company(tmp_path):
    """What 50 iterations draw and differentiate of each of four images.

    By SGD, whose state sums up all gradients, at a rate that hardly moves a parameter:
    these runs amplify rounding. One iteration differs in company by 2e-5 of a leaf's
    largest entry, and 50 at this rate by 1.2e-4, where a difference is near the kink of
    L1. At a rate of 0.1 steps of albedo differ by 3e-4 after 5 iterations, 2e-2 after
    10 and a quarter after 50; in float64 by 2e-14 after one and 7e-9 after 50. Adam and
    Muon, which divide by the size of a gradient, make a whole step of one that is
    nothing but rounding.
    """
    config = samples.config(
        train__optimizer="sgd",
        train__learning_rate=1e-6,
        stages__prior_steps=10,
        stages__first_steps=(12, 12, 14),
    )
    plan = samples.plan(config)
    assert plan.last == 50
    company, _ = stages.run(
        samples.work(config, range(4)),
        samples.plan(config, side_by_side=0),
        tmp_path / "company",
        StopAt(1000),
    )
    for place in (0, 3):
        work = samples.work(config, [place])
        alone, _ = stages.run(work, plan, tmp_path / f"{place}", StopAt(1000))
        assert assert_alike(company, alone, place) > 50


@pytest.mark.slow
def test_the_record_holds_the_prior_and_every_stage(whole):
    _, _, plan, state = whole
    record = {k: np.asarray(v) for k, v in state.parts["record"].items()}
    assert record["depth"].shape == (plan.rows, 1, 1, samples.SIZE, samples.SIZE)
    assert (np.abs(record["canon_depth"] - 1.0) <= 0.105).all()
    assert (record["canon_depth"][0] != record["canon_depth"][1]).any()
    assert record["valid"].mean() > 0.5
