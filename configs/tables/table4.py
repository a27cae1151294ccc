"""Table 4: asymmetric patches on the images, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table4.py
Rows: with and without patches, with and without confidence.
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "table4"
    config.data.name = "open_faces"
    config.tables.name = "table4"
    return config
