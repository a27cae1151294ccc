"""One device or two: the same shapes, however many groups there are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

# Two devices, so in a process of its own.
_TOY = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
import gan_shape_samples as samples
from unsup3d_jax.gan2shape import stages, steps
from unsup3d_jax.gan2shape.steps import Common, Given, Group

def iterate(group, given, common, at, **static):
    # Adds what the group's key draws, what the step is, and what all share.
    drawn = jax.random.uniform(jax.random.fold_in(given.key[0], at.step), (3,))
    x = group.params["x"] + drawn + common.projection * (at.step - at.first)
    return dataclasses.replace(group, params={"x": x}), x.sum()

steps.iterate = iterate
config = samples.config()

def run(count, devices, side_by_side):
    rows = jnp.arange(count)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(rows)
    empty = jnp.zeros((count, 1, 1, 4, 4))
    given = Given(image=jnp.zeros((count, 1, 4, 4, 3)), prior=empty[:, 0],
                  mask=empty[:, 0] > 0, key=keys[:, None], own=())
    work = stages.Work(
        given=given, common=Common(None, None, jnp.asarray(10.0)), key=keys,
        params=None, images={})
    groups = Group(
        params={"x": jnp.arange(3.0 * count).reshape(count, 3)}, moments={},
        store_image=empty[..., None] * jnp.zeros(3), store_mask=empty > 0)
    plan = samples.plan(config, side_by_side=side_by_side, devices=devices)
    phase = plan.phases[1]
    done, losses = stages._iterated(
        groups, work, plan, phase, range(phase.first + 1, phase.first + 4))
    assert done.params["x"].devices() == {jax.local_devices()[0]}
    return np.asarray(done.params["x"]).tolist(), losses.tolist()

print(json.dumps([
    [run(count, devices, side) for devices in (1, 2)]
    for count, side in ((1, 1), (2, 1), (3, 1), (4, 0), (5, 2), (3, 0))
]))
"""

_SCRIPT = """
import json, sys
from pathlib import Path
import jax, numpy as np
import gan_shape_samples as samples
from test_gan_stages import StopAt, leaves
from unsup3d_jax.engine import parallel
from unsup3d_jax.gan2shape import stages

# Adam turns rounding into steps of full length; SGD lets it be seen as it is.
folder = Path(sys.argv[1])
config = samples.config(train__optimizer="sgd", train__learning_rate=1e-6)
work = samples.work(config, [0, 1, 2])
share_out, shared = parallel.share_out, []

def counted(tree, devices):
    placed = share_out(tree, devices)
    shared.append(sorted({d.id for d in jax.tree.leaves(placed)[0].devices()}))
    return placed

parallel.share_out = counted

def run(devices, name, after=1000):
    plan = samples.plan(config, devices=devices)
    state, done = stages.run(work, plan, folder / name, StopAt(after))
    return {jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves(state)}, done

one, _ = run(1, "one")
assert not shared
two, _ = run(2, "two")
_, done = run(2, "resumed", after=2)
assert not done
resumed, _ = run(1, "resumed")

def differing(other):
    assert other.keys() == one.keys()
    def apart(k):
        a, b = one[k].astype(np.float64), other[k].astype(np.float64)
        return np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-30)
    return {k: float(apart(k)) for k in one if apart(k) > 5e-4}

print(json.dumps({
    "leaves": len(one), "moved": sum(bool(x.any()) for x in one.values()),
    "shared": shared, "two": differing(two), "resumed": differing(resumed),
}))
"""


def _ran(script, *arguments):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE))),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.once
def test_groups_of_any_number_are_shared_out_in_order():
    for (one, losses), (two, others) in _ran(_TOY):
        assert one == two and losses == others
        assert len(set(losses)) == len(losses)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_devices_share_three_groups_and_a_run_changes_its_devices(tmp_path):
    found = _ran(_SCRIPT, str(tmp_path))
    assert found["leaves"] > 50 and found["moved"] > 50
    assert found["shared"] and all(ids == [0, 1] for ids in found["shared"])
    assert found["two"] == {} and found["resumed"] == {}
