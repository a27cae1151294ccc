"""A generator of the open faces at 64 px, half of the published width, for a GPU.

Run: python main.py --config=configs/gan2shape/gan_faces_64.py
40,000 images are rendered once and cached. The widths and the length are a plan, not
yet a measured recipe: 60,000 steps are 1.9 million images.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.gan2shape import gan_default


def get_config() -> ConfigDict:
    config = gan_default.get_config()
    config.name = "gan_faces_64"
    config.data.image_size = 64
    config.gan.noise = False
    config.loss.r1 = 0.3
    config.log.picture_every = 5000
    config.eval.every = 5000
    return config
