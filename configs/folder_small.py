"""Any folder of photos on a laptop: 64 px, the quickstart's narrow networks.

Run: python main.py --config=configs/folder_small.py --config.data.path=DIR
DIR as in configs/folder.py. About an hour on two CPU cores for 2,000 steps; a
few thousand photos are enough to see faces turn to the front. Softer than the
paper's recipe: no perceptual loss, a sixteenth of the weights.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import folder, quickstart


def get_config() -> ConfigDict:
    config = folder.get_config()
    quickstart.use_short_recipe(config)
    config.name = "folder_small"
    config.train.steps = 2000
    config.checkpoint.every = 400
    config.log.picture_every = 400
    return config
