"""Stages resume bit for bit, and an image does not care in whose company it is."""

import dataclasses

import gan_shape_samples as samples
import jax
import numpy as np
import pytest

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


@pytest.mark.slow
def test_each_image_is_the_same_in_company(whole, tmp_path):
    config, _, _, alone = whole
    work = samples.work(config, [0, 1])
    plan = samples.plan(config, side_by_side=0)
    state, _ = stages.run(work, plan, tmp_path, StopAt(1000))
    pairs = zip(leaves(alone), leaves(state), strict=True)
    for (path, one), (_, several) in pairs:
        name = jax.tree_util.keystr(path)
        axis = 1 if "record" in name else 0
        mine = np.take(np.asarray(several), [0], axis=axis)
        if "moments" not in name:
            # The store is rounded to half precision.
            half = one.dtype == np.float16
            np.testing.assert_allclose(
                mine.astype(np.float32),
                one.astype(np.float32),
                atol=1e-3 if half else 1e-4,
                err_msg=name,
            )


@pytest.mark.slow
def test_the_record_holds_the_prior_and_every_stage(whole):
    _, _, plan, state = whole
    record = {k: np.asarray(v) for k, v in state.parts["record"].items()}
    assert record["depth"].shape == (plan.rows, 1, 1, samples.SIZE, samples.SIZE)
    assert (np.abs(record["canon_depth"] - 1.0) <= 0.105).all()
    assert (record["canon_depth"][0] != record["canon_depth"][1]).any()
    assert record["valid"].mean() > 0.5
