"""Sets of images: those of a config, and those that join them for one stage."""

import gan_shape_samples as samples
import numpy as np
import pytest

from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import subjects
from unsup3d_jax.gan2shape.subjects import Subjects


def some(name, count, value):
    return Subjects(
        names=tuple(f"{name}-{i}" for i in range(count)),
        image=np.full((count, 4, 4, 3), value, np.float32),
        mask=np.full((count, 4, 4), value, np.float32),
        prior=np.full((count, 4, 4), 1.0 + value, np.float32),
        dataset=None,
        shared="of all",
        own={"w": np.full((count, 5), 10.0 * value, np.float32)},
    )


def test_images_that_join_stand_behind_the_others():
    both = subjects.together(some("test", 2, 0.25), some("train", 3, 0.5))
    assert both.names == ("test-0", "test-1", "train-0", "train-1", "train-2")
    values = [0.25, 0.25, 0.5, 0.5, 0.5]
    np.testing.assert_array_equal(both.image[:, 0, 0, 0], values)
    np.testing.assert_array_equal(both.mask[:, 0, 0], values)
    np.testing.assert_array_equal(both.prior[:, 0, 0], 1.0 + np.array(values))
    np.testing.assert_array_equal(both.own["w"][:, 0], 10.0 * np.array(values))
    assert both.dataset is None and both.shared == "of all"


def test_they_are_the_first_of_the_training_split(monkeypatch):
    config = samples.config(stages__joint_others=3)
    asked = []

    def of_config(config, photos):
        asked.append((config.eval.split, config.eval.max_images, photos))
        return some("train", there, 0.5)

    monkeypatch.setattr(subjects, "of_config", of_config)
    there = 3
    assert len(subjects.others(config)) == 3
    assert asked == [("train", 3, None)]
    there = 2
    with pytest.raises(UserError, match="joint_others=3: the training split has 2"):
        subjects.others(config)
