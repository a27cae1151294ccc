"""Steps inside `jax.shard_map`, JAX's successor to pmap, with its default checks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# Two devices, so in a process of its own.
_SCRIPT = """
import functools, json, sys
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from rasterizer import backends
from unsup3d_jax.engine.task import advance, initial_state

def metrics_of(task, batch, run=True):
    '''Of one step on one device, and of the same split over two.'''
    state = initial_state(task, 0)
    mesh = Mesh(np.array(jax.local_devices()), ("devices",))
    split = jax.shard_map(
        functools.partial(advance, task=task, axis_name="devices"),
        mesh=mesh,
        in_specs=(P(), P("devices"), P(), P()),
        out_specs=P(),
    )
    arguments = state, batch, task.constants, task.schedule
    if not run:
        jax.make_jaxpr(split)(*arguments)  # the checks are made here
        return {"finite": 1.0}, {"finite": 1.0}
    steps = (functools.partial(advance, task=task), split)
    return [
        {k: float(v) for k, v in jax.jit(step)(*arguments)[1].items()}
        for step in steps
    ]

def images(size):
    image = np.random.default_rng(0).uniform(size=(4, size, size, 3))
    image *= np.linspace(0.2, 1.0, 4)[:, None, None, None]
    return image.astype(np.float32)

what = sys.argv[1]
if what == "tiny":
    import tiny_task
    from unsup3d_jax.formation.types import Batch
    config = tiny_task.config(batch_size=4)
    found = metrics_of(tiny_task.task(config), Batch(image=images(8)))
else:
    import bust
    from unsup3d_jax.formation.types import Batch
    if "xla" in what:
        backends.numba_installed = lambda: False
    config = bust.config_of(32)
    config.train.batch_size = 4
    run = what.startswith("run")
    found = metrics_of(bust.task_of(config), Batch(image=images(32)), run)
print(json.dumps(found))
"""


def _run(what: str) -> tuple[dict, dict]:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, what],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def _assert_alike(one: dict, two: dict, tolerance: float) -> None:
    assert one.keys() == two.keys() and one["finite"] == 1.0
    for key in one:
        rel = 1e-3 if key.startswith("view_std") else tolerance
        assert one[key] == pytest.approx(two[key], rel=rel, abs=1e-6), key


@pytest.mark.once
def test_a_step_split_over_two_devices_is_that_of_one():
    one, two = _run("tiny")
    assert one["grad_norm"] > 0
    _assert_alike(one, two, 2e-5)


@pytest.mark.once
@pytest.mark.parametrize("backend", ["xla", "numba"])
def test_the_models_step_passes_the_checks(backend):
    """Traced only, which is where they are made; rasterizer included."""
    _run(f"trace {backend}")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", "numba"])
def test_the_models_step_split_over_two_devices_is_that_of_one(backend):
    one, two = _run(f"run {backend}")
    _assert_alike(one, two, 1e-3)
