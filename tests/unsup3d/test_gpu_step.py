"""A training step on a GPU is the CPU's, to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_vgg

from configs import default
from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.task import initial_state
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d.task import model_task

pytestmark = pytest.mark.gpu


def _gpu() -> jax.Device:
    try:
        return jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("no CUDA device")


def _step_on(device: jax.Device, dtype: str = "float32"):
    """Terms and gradient norms of the first step, and parameters after it."""
    config = default.get_config()
    config.data.image_size = 64
    config.model.width = 16
    config.model.compute_dtype = dtype
    config.train.batch_size = 4
    constants = {"vgg": jax.tree.map(jnp.asarray, random_vgg.random_vgg("relu3_3"))}
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        task = model_task(config, lambda split: None, constants)
        # From the CPU: the two generators agree, but networks' initial draws go
        # through functions that round otherwise.
        with jax.default_device(jax.devices("cpu")[0]):
            state = initial_state(task, 0)
        images = np.random.default_rng(0).uniform(size=(1, 4, 64, 64, 3))
        batch = Batch(image=jnp.asarray(images.astype(np.float32)))
        placed = parallel.replicate((state, constants, task.schedule), [device])
        step = parallel.parallel_step(task, [device])
        after, metrics = step(placed[0], jax.device_put(batch, device), *placed[1:])
    return jax.device_get((after.parts["params"], metrics))


@pytest.fixture(scope="module")
def on_cpu():
    _gpu()  # before what takes half a minute
    return _step_on(jax.devices("cpu")[0])


def test_terms_and_gradients_are_the_cpus(on_cpu):
    _, expected = on_cpu
    _, found = _step_on(_gpu())
    assert found["finite"]
    for name, value in expected.items():
        # A face that wins a pixel on one machine and not on the other would show.
        np.testing.assert_allclose(
            found[name], value, rtol=2e-3, atol=1e-4, err_msg=name
        )


def test_bfloat16_convolutions_move_the_loss_little(on_cpu):
    _, expected = on_cpu
    _, found = _step_on(_gpu(), "bfloat16")
    assert found["finite"]
    np.testing.assert_allclose(found["total"], expected["total"], rtol=0.03)


def test_a_step_repeats_itself_to_rounding():
    """Gradients of sampling and of convolutions are sums in no fixed order."""
    device = _gpu()
    (first, _), (second, _) = _step_on(device), _step_on(device)
    # Adam's first update is the sign of the gradient: compare where it is not 0.
    moved = jax.tree.map(lambda a, b: float((abs(a - b) > 1e-6).mean()), first, second)
    assert max(jax.tree.leaves(moved)) < 0.01, moved


def test_a_step_is_the_same_in_every_run_where_xla_is_asked_for_it():
    _gpu()
    digests = {_digest_with("--xla_gpu_deterministic_ops=true") for _ in range(2)}
    assert len(digests) == 1


def _digest_with(flag: str) -> str:
    """Of the parameters after a step, in a process of its own."""
    program = (
        "import hashlib, jax, numpy as np, test_gpu_step as t\n"
        "params, _ = t._step_on(jax.devices('cuda')[0])\n"
        "whole = b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))\n"
        "print('digest', hashlib.sha256(whole).hexdigest())"
    )
    here = Path(__file__).resolve().parent
    places = [str(here), str(here.parent), str(here.parents[1]), *sys.path]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("digest")[-1].strip()
