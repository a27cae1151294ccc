"""Table 2: baselines, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table2.py
Rows: supervised, constant depth, average true depth, ours.
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "table2"
    config.data.name = "open_faces"
    config.tables.name = "table2"
    return config
