"""The joint run whose networks ship, and serve `faces` for a photo that comes alone.

Run: python main.py --config=configs/gan2shape/faces_start.py
64 people of the training split share one set of networks. What is frontal, how far
heads turn and what they are lit by is learnt here; minutes of each photo are for what
is its own. `python -m unsup3d_jax.gan2shape.start WORKDIR` makes the file.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.gan2shape import faces


def get_config() -> ConfigDict:
    config = faces.get_config()
    config.name = "gan2shape_faces_start"
    config.data.count_train = 64
    config.eval.split = "train"
    config.eval.max_images = 64
    config.invert.steps = 400
    config.stages.mode = "joint"
    config.stages.group = 1
    config.stages.joint_steps = (0, 0, 0)
    config.stages.first_steps = (200, 300, 600)
    config.stages.later_steps = (100, 300, 600)
    config.stages.count = 2
    return config
