"""What a run would need, said before it starts."""

import jax
import numpy as np
import pytest
import tiny_task

from unsup3d_jax import dry_run, train


def test_it_counts_compiles_times_and_reads_no_data(tmp_path, monkeypatch):
    def task(config, splits):
        return tiny_task.task(config, make_source=None)  # no data are asked for

    monkeypatch.setattr(train, "model_task", task)
    config = tiny_task.config(steps=36000, devices=1)
    config.data.path = str(tmp_path / "nowhere")
    text = dry_run.report(config)
    size = config.data.image_size
    assert f"batch      image  (8, {size}, {size}, 3) float32" in text
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
    batch = dry_run.random_batch(config, 2)
    assert batch.image.shape[:2] == (2, 4) and batch.image.dtype == np.float32
    assert float(batch.image.max()) <= 1.0
    assert (batch.depth is not None) == (supervision == "depth")
