"""Table 5: depth at keypoints, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table5.py
Rows: correlation with the true depth at the open faces' 68 keypoints.
Cost: six trainings (two rows, three seeds), about 1.5 hours on two CPU cores.
Expect: of 68, 46 supervised and ours, 37 the average depth, 0 a plane (docs/tables.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.table("table5")
