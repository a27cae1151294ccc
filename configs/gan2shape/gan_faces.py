"""A small generator of the open faces, 32 px, for two CPU cores.

Run: python main.py --config=configs/gan2shape/gan_faces.py
No download. After 200,000 images, three quarters of an hour of one thread, it passes
the gate. The generator that ships is `gan_faces_wide`'s. A run that is stopped goes on
where it was, and --mode=eval holds what there is against the gate.

What was found on the way:
- with noise inputs and textured backgrounds a generator of this width learns to draw
  textures instead of faces;
- path lengths cost a quarter of the images a second, and are not needed here.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.gan2shape import gan_default


def get_config() -> ConfigDict:
    config = gan_default.get_config()
    config.name = "gan_faces"
    config.data.image_size = 32
    config.data.count_train = 10000
    config.data.count_val = 1000
    config.data.count_test = 1000
    config.gan.channels = (64, 48, 32, 16)
    config.gan.style = 64
    config.gan.noise = False
    config.gan.mixing = 0.0
    config.loss.r1 = 0.3
    config.loss.path = 0.0
    config.train.steps = 30000
    config.train.batch_size = 16
    config.log.every = 100
    config.log.picture_every = 1000
    config.checkpoint.every = 500
    config.eval.every = 2500
    return config
