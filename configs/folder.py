"""Any folder of photos of one category, 64 px, paper recipe.

Run: python main.py --config=configs/folder.py --config.data.path=DIR
DIR holds images, in any sub-folders; with train/, val/ and test/ it is split
by folder, else by a hash of each file's name.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "folder"
    return config
