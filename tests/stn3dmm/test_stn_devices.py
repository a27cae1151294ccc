"""One device or eight: the same steps of the engine, to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent

# Eight devices, of which one or all take two steps.
_SCRIPT = """
import json, sys
import jax, numpy as np
import stn_people
from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.task import initial_state
from unsup3d_jax.stn3dmm import task

count = int(sys.argv[1])
# SGD: Adam makes a step of full length of a gradient that is nothing but rounding.
config = stn_people.config(
    train__batch_size=8, train__optimizer="sgd", train__learning_rate=0.1,
    loss__symmetry=0.1, loss__multi_view=0.1, loss__identity=1.0, loss__shape=0.0,
)
people = stn_people.dataset(config, count=8)
# Images that know less must count for less, wherever they are.
people.arrays["keypoints"][::3, 0, :40] = np.nan
made = task.stn_task(config, lambda split: people)
whole = next(made.make_source(jax.local_devices()[:1]))
batch = jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *x.shape[2:]), whole)
devices = jax.local_devices()[:count]
state, constants, schedule = parallel.replicate(
    (initial_state(made, 0), made.constants, made.schedule), devices
)
leaves = lambda state: [np.ravel(x).tolist() for x in jax.tree.leaves(
    jax.device_get(parallel.one_copy(state.parts)["params"]))]
before, lines = leaves(state), []
step = parallel.parallel_step(made, devices)
for _ in range(2):
    state, metrics = step(state, batch, constants, schedule)
    lines.append({k: float(v) for k, v in metrics.items()})
print(json.dumps({"lines": lines, "before": before, "params": leaves(state)}))
"""


def _run(count):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE))),
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(count)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one():
    one, eight = _run(1), _run(8)
    for a, b in zip(one["lines"], eight["lines"], strict=True):
        assert a.keys() == b.keys()
        assert {"total", "landmark", "identity", "symmetry", "multi_view"} <= a.keys()
        for key in a:  # spreads are differences of moments
            tolerance = 1e-3 if "_std" in key else 5e-5
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=1e-5), key
    for a, b, start in zip(one["params"], eight["params"], one["before"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.abs(np.subtract(a, start)).max() > 1e-5
    assert one["lines"][0]["total"] != one["lines"][1]["total"]
