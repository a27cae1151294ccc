"""CelebA faces, 64 px: Wu et al., CVPR 2020, Table 6 and the released code.

The initial depth is that of default.py, which says how to have the paper's.

Run: python main.py --config=configs/celeba.py --config.data.path=DIR
DIR holds what was fetched of CelebA, not unpacked: img_align_celeba.zip and
list_eval_partition.txt, say. docs/data.md has the other layouts, the authors' crops
among them. Where nothing is there, TensorFlow Datasets fetches it if that and
TensorFlow are installed; else one line says what to fetch from where.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "celeba"
    config.data.name = "celeba"
    config.data.path = "data/celeba"
    return config
