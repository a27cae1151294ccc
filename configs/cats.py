"""Cat faces, 64 px: the released code's cat recipe.

The initial depth is that of default.py, which says how to have the paper's.

Run: python main.py --config=configs/cats.py --config.data.path=DIR
DIR holds train/, val/ and test/.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "cats"
    config.data.path = "data/cat_combined"
    config.data.crop = (170,)
    config.view.translation_z_max = 0.1
    # lambda_f is 1 for 10 of 200 epochs; 11,200 images make 175 steps each.
    config.loss.flip_start = 1750
    config.train.steps = 35000
    return config
