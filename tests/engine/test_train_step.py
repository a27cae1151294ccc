"""One pmapped update: what it changes, donates, compiles, and on how many devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_task

from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.task import initial_state

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def _setup(config, devices, **changes):
    task = tiny_task.task(config, **changes)
    state = initial_state(task, config.seed)
    placed = parallel.replicate((state, task.constants, task.schedule), devices)
    step = parallel.parallel_step(task, devices)
    return step, task.make_source(devices), *placed


def count_compilations(calls):
    """Runs functions and returns how often XLA compiled during each."""
    events = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    for call in calls:
        before = len(events)
        call()
        counts.append(len(events) - before)
    return counts


def test_state_stays_float32_and_counts_steps():
    step, source, state, constants, schedule = _setup(
        tiny_task.config(), jax.local_devices()[:1]
    )
    for expected in (1, 2):
        state, metrics = step(state, next(source), constants, schedule)
        assert int(state.step) == expected
    dtypes = {x.dtype for x in jax.tree.leaves(tiny_task.params(state))}
    assert dtypes == {jnp.dtype("float32")}
    assert {"total", "fit", "grad_norm", "learning_rate", "finite"} <= set(metrics)
    assert all(v.shape == () for v in metrics.values())


def test_frozen_depth_does_not_move_while_the_others_do():
    config = tiny_task.config(depth_start=2, depth_full=3, weight_decay=0.1)
    step, source, state, constants, schedule = _setup(config, jax.local_devices()[:1])
    before = jax.device_get(tiny_task.params(state))
    for moves in (False, False, True):
        state, _ = step(state, next(source), constants, schedule)
        after = jax.device_get(tiny_task.params(state))
        assert (after["depth"]["w"] != before["depth"]["w"]).any() == moves
        assert (after["view"]["w"] != before["view"]["w"]).all()
    assert np.asarray(jax.tree.leaves(state.parts["opt_state"])[0]) == 3


def test_state_is_donated():
    step, source, state, constants, schedule = _setup(
        tiny_task.config(), jax.local_devices()[:1]
    )
    for _ in range(3):
        old = state
        state, _ = step(state, next(source), constants, schedule)
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
        assert not any(x.is_deleted() for x in jax.tree.leaves(constants))


def test_no_schedule_compiles_the_step_again():
    step, source, state, constants, schedule = _setup(
        tiny_task.config(warmup_steps=2, depth_start=1, depth_full=2),
        jax.local_devices()[:1],
    )
    batches = [next(source) for _ in range(5)]
    rates = schedule["rates"]
    schedules = [schedule] * 4 + [{"rates": rates.replace(peak=rates.peak * 2)}]

    def call(i):
        nonlocal state
        state, _ = step(state, batches[i], constants, schedules[i])

    counts = count_compilations([lambda i=i: call(i) for i in range(5)])
    assert counts[0] > 0 and counts[1:] == [0] * 4


def test_not_finite_is_reported():
    step, source, state, constants, schedule = _setup(
        tiny_task.config(),
        jax.local_devices()[:1],
        weights_at=lambda s: jnp.where(s == 1, jnp.nan, 1.0),
    )
    flags = []
    for _ in range(2):
        state, metrics = step(state, next(source), constants, schedule)
        flags.append(float(metrics["finite"]))
    assert flags == [1.0, 0.0]


# Runs in a process of its own, since the number of devices is fixed at start.
_MANY = """
import json
import jax, numpy as np
import tiny_task
from test_train_step import _setup, count_compilations

def run(count):
    config = tiny_task.config(batch_size=8)
    devices = jax.local_devices()[:count]
    step, source, state, constants, schedule = _setup(config, devices)
    lines, batches = [], [next(source) for _ in range(5)]

    def call(batch):
        nonlocal state
        old = state
        state, metrics = step(state, batch, constants, schedule)
        lines.append(metrics)
        assert all(x.is_deleted() for x in jax.tree.leaves(old)), "not donated"

    compiled = count_compilations([lambda b=b: call(b) for b in batches])
    assert compiled[1:] == [0] * 4, compiled
    lines = [{k: float(v) for k, v in line.items()} for line in lines]
    copies = [
        [np.asarray(s.data).tolist() for s in x.addressable_shards]
        for x in jax.tree.leaves(tiny_task.params(state))
    ]
    assert all(len(c) == count and all(d == c[0] for d in c) for c in copies)
    return {"lines": lines, "params": [c[0] for c in copies]}

print(json.dumps([run(1), run(8)]))
"""


def _run(script: str, *arguments: str) -> list:
    """What a script prints as JSON."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", HERE))),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.once
def test_eight_devices_take_the_step_of_one():
    """To float32 rounding: only the order of sums differs.

    Images mask different numbers of pixels, so a mean of per-device means
    would be off by percents.
    """
    one, eight = _run(_MANY)
    for a, b in zip(one["lines"], eight["lines"], strict=True):
        assert a.keys() == b.keys()
        for key in a:  # spreads of the viewpoint are differences of moments
            tolerance = 1e-3 if key.startswith("view_std") else 2e-5
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=1e-6), key
    for a, b in zip(one["params"], eight["params"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Four devices, of which one or all take a step of the real model.
_MODEL = """
import json, sys
import jax, numpy as np
from configs import quickstart
from unsup3d_jax.unsup3d.task import model_task
from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.task import initial_state
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d.options import options_from_config

config = quickstart.get_config()
config.train.batch_size, config.raster.supersample = 4, 1
config.model.encoder_width = config.model.bottleneck = 16
config.model.confidence_bottleneck = 16
config.loss.perceptual, config.loss.perceptual_layer = 1.0, "relu1_2"
config.loss.light_prior, config.loss.light_prior_steps = 0.1, 10
config.loss.depth_smoothness, config.train.optimizer = 0.01, sys.argv[1]
config.train.warmup_steps = config.train.depth_start = config.train.depth_full = 0
# Images of unlike brightness, so that no share is like another.
images = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
images *= np.linspace(0.2, 1.0, 4, dtype=np.float32)[:, None, None, None]
task = model_task(config, lambda split: None)
start = jax.device_get(jax.tree.map(np.array, initial_state(task, 0).parts))

def lines(count):
    devices = jax.local_devices()[:count]
    state = initial_state(task, 0).replace(parts=start)
    state, constants, schedule = parallel.replicate(
        (state, task.constants, task.schedule), devices
    )
    step = parallel.parallel_step(task, devices)
    batch = Batch(image=images.reshape(count, 4 // count, 32, 32, 3))
    found = []
    for _ in range(2):
        state, metrics = step(state, batch, constants, schedule)
        found.append({k: float(v) for k, v in metrics.items()})
    return found

print(json.dumps([lines(1), lines(4)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_four_devices_take_the_steps_of_one_with_the_real_model(optimizer):
    """Every term and every network's gradient, before and after an update.

    Where a sample lies on the edge of two triangles, a change of depth by 1e-7 on one
    device moves its gradient from the corners of one to those of the other as well.
    """
    lines, others = _run(_MODEL, optimizer)
    for step, (one, four) in enumerate(zip(lines, others, strict=True)):
        # After an update all norms have met such an edge.
        _assert_same_step(one, four, loose="grad_norm" if step else "grad_norm_depth")


def _assert_same_step(one: dict, four: dict, *, loose: str) -> None:
    assert one.keys() == four.keys() and one["finite"] == 1.0
    assert {"photometric_flip", "perceptual_flip", "smoothness"} <= one.keys()
    for name in ("depth", "albedo", "light", "view", "conf"):
        assert 0.0 < one[f"grad_norm_{name}"] < np.inf
    assert "light_prior" in one
    for key in one:
        tolerance = 5e-3 if key.startswith(loose) else 1e-4
        assert one[key] == pytest.approx(four[key], rel=tolerance, abs=1e-6), key
