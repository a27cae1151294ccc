"""What a run would need, said before it starts."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_task

from unsup3d_jax.engine import dry_run, warm_start
from unsup3d_jax.unsup3d.task import random_batch

ROOT = Path(__file__).resolve().parents[2]


def test_it_counts_compiles_times_and_reads_no_data(tmp_path):
    config = tiny_task.config(steps=36000, devices=1)
    config.data.path = str(tmp_path / "nowhere")

    def no_data(devices):
        raise AssertionError("not asked for")

    task = tiny_task.task(
        config,
        make_source=no_data,
        random_batch=functools.partial(random_batch, config),
    )
    text = dry_run.report(config, task)
    start = warm_start.Start({}, 7, Path("runs/other"))
    other = dry_run.report(config, task, start=start)
    assert "start      step 7 of runs/other" in other
    size = config.data.image_size
    assert f"batch      image  (8, {size}, {size}, 3) float32" in text
    assert "start      from noise" in text
    assert "all                24 parameters" in text  # 4 networks of 3 + 3
    # Parameters, two moments and Adam's counter, 4 bytes each.
    assert f"{(3 * 24 + 1) * 4 / 2**20:,.1f} MiB a device" in text
    assert all(
        f"network    {name}" in text for name in tiny_task.init(jax.random.key(0))
    )
    assert "compiled" in text and "memory" in text and "for all steps" in text


@pytest.mark.parametrize("supervision", ["none", "depth"])
def test_the_batch_of_noise_has_the_fields_of_a_real_one(supervision):
    config = tiny_task.config()
    config.model.supervision = supervision
    batch = random_batch(config, 2)
    assert batch.image.shape[:2] == (2, 4) and batch.image.dtype == np.float32
    assert float(batch.image.max()) <= 1.0
    assert (batch.depth is not None) == (supervision == "depth")


REPORT = """
import sys
import jax
from unsup3d_jax import cli

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
status = cli.main(["main.py", "--dry_run", *sys.argv[1:]])
hits, misses = (events.count(f"/jax/compilation_cache/cache_{x}")
                for x in ("hits", "misses"))
print("status", status, "hits", hits, "misses", misses)
"""
SMALL = (
    "--config=configs/quickstart.py",
    "--config.train.batch_size=2",
    "--config.train.optimizer=adam",
    "--config.raster.supersample=1",
    "--config.model.encoder_width=16",
    "--config.model.bottleneck=16",
    "--config.model.confidence_bottleneck=16",
)


ALL = ("depth", "albedo", "light", "view", "conf")


@pytest.mark.parametrize(
    "supervision, networks",
    [
        pytest.param("depth", ["depth"], marks=pytest.mark.once),
        pytest.param("none", ALL, marks=pytest.mark.slow),
    ],
)
def test_the_command_compiles_the_real_step_once_for_all_runs(
    tmp_path, supervision, networks
):
    """And reads no data: the second run finds the first one's programs on disk."""
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment.pop("JAX_ENABLE_COMPILATION_CACHE", None)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run():
        flags = [*SMALL, f"--config.data.cache_dir={tmp_path}"]
        flags += [f"--config.model.supervision={supervision}"]
        command = [sys.executable, "-c", REPORT, *flags]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    text = run()
    assert "status 0" in text and "misses 0" not in text, text
    assert re.findall(r"network    (\w+)", text) == list(networks)
    mebibytes = r"([\d,.]+) MiB"
    state, constants, beside, whole = (
        float(re.search(pattern, text)[1].replace(",", ""))
        for pattern in (
            f"state +{mebibytes}",
            f"constants +{mebibytes}",
            f"memory +{mebibytes}",
            f"{mebibytes} in all",
        )
    )
    assert beside > 0 and whole >= state + constants + beside - 0.2  # of rounding
    again = run()
    assert "status 0" in again and "misses 0" in again, again
    assert [path.name for path in tmp_path.iterdir()] == ["compiled"]
