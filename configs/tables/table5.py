"""Table 5: depth at keypoints, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table5.py
Rows: correlation with the true depth at the open faces' 68 keypoints.
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "table5"
    config.data.name = "open_faces"
    config.tables.name = "table5"
    return config
