"""A small generator of the open faces, 32 px, for two CPU cores.

Run: python main.py --config=configs/gan2shape/gan_faces.py
No download. The generator that ships with the package was trained by this file.

What was found on the way:
- noise inputs and textured backgrounds eat a generator of this width;
- R1 at 0.3 and no path length, whose penalty costs a quarter of the time and keeps
  poses from spreading.
"""

from ml_collections import ConfigDict

from configs.gan2shape import gan_default


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
