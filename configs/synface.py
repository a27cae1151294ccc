"""The authors' Basel Face Model renderings on disk, 64 px, with true depth.

Run: python main.py --config=configs/synface.py --config.data.path=DIR
DIR holds train/, val/ and test/, each with image/ and depth/.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "synface"
    config.data.name = "synface"
    config.data.path = "data/synface"
    config.data.crop = (170,)
    config.eval.baselines = ("constant", "average", "untrained", "supervised")
    return config
