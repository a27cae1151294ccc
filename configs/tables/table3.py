"""Table 3: ablations, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table3.py
Rows: one part of the method removed at a time; and no symmetry.
Cost: 24 trainings (eight rows, three seeds), most with the perceptual loss: half a
day on two CPU cores; --config.tables.seeds=1 takes a third.
Expect: SIDE (x10^-2) 0.81 with all parts, 1.92 without light, 1.34 without albedo flip
(one seed each, docs/tables.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.table("table3")
