"""Open synthetic faces, 32 px, by the generator that ships; a CPU.

Run: python main.py --config=configs/gan2shape/faces.py
"""

from ml_collections import ConfigDict

from configs.gan2shape import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "gan2shape_faces"
    config.data.image_size = 32
    config.data.count_test = 16
    config.data.pose = "natural"
    config.data.background = "plain"  # as the generator knows them
    config.projection.layers = 8  # rendered faces
    config.invert.kind = "discriminator"
    config.prior.mask = "true"
    config.stages.flip_all = (False,)
    config.stages.groups_at_a_time = 16
    config.stages.prior_steps = 300
    config.stages.first_steps = (150, 400, 300)
    config.stages.later_steps = (50, 200, 200)
    config.stages.collect = 16
    config.model.width = 16
    config.model.encoder_width = 16
    config.model.bottleneck = 128
    config.loss.perceptual_kind = "none"
    config.train.batch_size = 8
    config.train.learning_rate = 5e-4
    return config
