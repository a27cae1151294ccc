"""The open synthetic faces, 64 px, paper schedule: our benchmark.

Run: python main.py --config=configs/synfaces.py      (one GPU)
No download: the face model ships with the package; 42,000 images are rendered
once and cached.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "synfaces"
    config.data.name = "open_faces"
    config.data.count_train = 40000
    config.data.count_val = 1000
    config.data.count_test = 1000
    config.eval.baselines = ("constant", "average", "untrained", "supervised")
    return config
