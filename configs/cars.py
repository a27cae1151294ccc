"""Synthetic cars, 64 px: the released code's car recipe.

Run: python main.py --config=configs/cars.py --config.data.path=DIR
DIR holds train/, val/ and test/.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    default.use_papers_start(config)  # tried on faces only; cars are not round
    config.name = "cars"
    config.data.path = "data/syncar"
    config.data.crop = (8, 14, 100, 100)
    config.model.use_confidence = False
    config.depth.border_depth = 1.08
    config.light.diffuse_min = 0.5
    config.loss.flip = 1.0
    config.loss.perceptual = 0.01
    config.loss.depth_smoothness = 0.1
    config.train.steps = 43750  # 100 epochs of 28,000 images
    return config
