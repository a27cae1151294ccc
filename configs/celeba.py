"""CelebA faces, 64 px: Wu et al., CVPR 2020, Table 6 and the released code.

The initial depth is that of default.py, which says how to have the paper's.

Run: python main.py --config=configs/celeba.py --config.data.path=DIR
DIR holds train/, val/ and test/ with square face crops.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "celeba"
    config.data.path = "data/celeba_cropped"
    return config
