"""Table 3: ablations, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table3.py
Rows: one part of the method removed at a time; and no symmetry.
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "table3"
    config.data.name = "open_faces"
    config.tables.name = "table3"
    return config
