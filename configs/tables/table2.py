"""Table 2: baselines, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table2.py
Rows: supervised, constant depth, average true depth, ours.
Cost: six trainings (two rows, three seeds), about 1.5 hours on two CPU cores.
Expect: SIDE (x10^-2) 0.45 supervised, 0.81 ours, 0.87 the average on the object, 1.81
a plane (docs/tables.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.table("table2")
