"""Open synthetic faces, 32 px, by the generator that ships; a CPU.

Run: python main.py --config=configs/gan2shape/faces.py
One set of networks serves all images first, and 64 people of the training split with
them, so that they agree on what is frontal; then groups of four go on by themselves.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.gan2shape import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "gan2shape_faces"
    config.data.image_size = 32
    config.data.count_train, config.data.count_test = 64, 16
    config.data.pose = "natural"
    config.data.background = "plain"  # as the generator knows them
    config.projection.layers = 2  # 8 passes a norm: no small step from one's latent
    config.invert.kind = "discriminator"
    config.prior.mask = "true"
    config.prior.near = 0.95  # as deep as these heads; 0.91 is half again too deep
    # As high as the mask it bends too much from brow to chin; higher than this it bends
    # so little that nothing keeps faces from leaning.
    config.prior.stretch = 1.3
    # Lights as these pictures have them. Of others the generator knows nothing, and
    # turns the head instead.
    config.sampling.light_x_min, config.sampling.light_x_max = -0.9, 0.9
    config.sampling.light_y_min, config.sampling.light_y_max = -0.65, 0.95
    config.sampling.diffuse_min, config.sampling.diffuse_max = -0.15, 0.2
    config.stages.flip_all = (False,)
    config.stages.count = 2
    config.stages.group = 4
    config.stages.groups_at_a_time = 4
    config.stages.prior_steps = 300
    config.stages.lesson_steps = 400
    config.stages.joint_steps = (150, 200, 400)
    config.stages.joint_others = 64
    config.stages.first_steps = (50, 50, 300)
    config.stages.later_steps = (25, 50, 300)
    config.stages.collect = 16
    # A depth map's mean is the middle of the range, by its construction: at 1 a head
    # that fills half of one would lie at 0.97, nearly on the axis at 1 that it turns
    # about, and tilt like a shield. True heads lie at 0.93 to 0.98.
    config.depth.min = 0.86
    config.model.width = 16
    config.model.encoder_width = 16
    config.model.bottleneck = 128
    config.loss.perceptual_kind = "none"
    config.loss.view = 1.0
    config.loss.spread = 0.3
    config.train.batch_size = 8
    config.train.optimizer = "muon"  # far fewer iterations than Adam
    config.train.learning_rate = 1e-3
    return config
