"""The oracle: 16 true scenes, rendered again in place of a generator; 32 px, a CPU.

Run: python main.py --config=configs/gan2shape/oracle.py

Proves steps 1 and 3 with no GAN at all: what is left of the prior's error is theirs.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.gan2shape import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "gan2shape_oracle"
    config.data.image_size = 32
    config.data.count_test = 16
    config.data.pose = "natural"
    config.projection.kind = "oracle"
    config.prior.mask = "true"
    config.stages.flip_all = (False,)
    config.stages.prior_steps = 300
    config.stages.first_steps = (150, 0, 300)
    config.stages.later_steps = (50, 0, 200)
    config.stages.collect = 8
    config.stages.groups_at_a_time = 1  # one compilation serves all
    config.model.width = 16
    config.model.encoder_width = 16
    config.model.bottleneck = 128
    config.loss.perceptual_kind = "none"
    config.train.batch_size = 8
    config.train.learning_rate = 5e-4
    config.log.every = 50
    return config
