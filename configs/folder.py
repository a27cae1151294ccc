"""Any folder of photos of one category, 64 px, the paper's networks and schedule.

Run: python main.py --config=configs/folder.py --config.data.path=DIR
DIR holds images, in any sub-folders; with train/, val/ and test/ it is split
by folder, else by a hash of each file's name. The largest centred square of each
photo is used; photos cut to a box of their own set --config.data.crop.

For a GPU: 50,000 steps of 64 images are days on a few CPU cores, where
configs/folder_small.py is the one to take.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "folder"
    # As mode reconstruct: a squashed face is never what is wanted.
    config.data.crop = (0,)
    return config
