"""Tables 2 and 3 on the authors' Basel Face Model renderings, for those who own them.

Run: python main.py --mode=tables --config=configs/tables/synface.py \
    --config.tables.scale=paper --config.data.path=DIR
DIR holds train/, val/ and test/, each with image/ and depth/.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "table_synface"
    config.data.name = "synface"
    config.data.path = "data/synface"
    config.data.crop = (170,)
    config.tables.name = "synface"
    return config
