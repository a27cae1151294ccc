"""The open faces at 32 px, up to twice as wide as `gan_faces`, for minutes of a GPU.

Run: python main.py --config=configs/gan2shape/gan_faces_wide.py
40,000 faces are rendered once and cached. The rate stays what it is to the end; the
samples are those of the moving average, and a run may be stopped wherever they please.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.gan2shape import gan_faces


def get_config() -> ConfigDict:
    config = gan_faces.get_config()
    config.name = "gan_faces_wide"
    config.data.count_train = 40000
    config.gan.channels = (96, 96, 64, 32)
    config.gan.style = 128
    config.train.steps = 100000
    config.train.batch_size = 64
    config.log.every = 250
    config.log.picture_every = 4000
    config.checkpoint.every = 4000
    return config
