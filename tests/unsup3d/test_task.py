"""The method as the engine's task: what its config may hold."""

import pytest
import tiny_task

from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d import task


@pytest.mark.parametrize(
    "key, value",
    [
        ("train.optimizer", "lamb"),
        ("train.schedule", "linear"),
        ("train.steps", 0),
        ("train.nan", "ignore"),
        ("train.rollbacks", -1),
        ("train.learning_rate", 0.0),
        ("train.constant_fraction", 1.5),
        ("log.every", 0),
        ("checkpoint.every", 0),
        ("eval.split", "dev"),
        ("eval.baselines", ("best",)),
        ("model.supervision", "normals"),
        ("seed", -1),
        ("log.picture_count", 0),
        ("log.picture_every", -1),
        ("eval.baseline_steps", -1),
        ("eval.max_images", -3),
        ("eval.every", -1),
        ("train.lr_scale.depth", -1.0),
        ("train.depth_start", -1),
        ("checkpoint.deadline", -1.0),
        ("model.encoder_width", 12),
        ("model.bottleneck", 0),
        ("data.image_size", 48),
    ],
)
def test_bad_values_name_their_key(key, value):
    config = tiny_task.config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"^{key} must be .*, got .*\.$"):
        task.check_config(config)
