"""Table 4: asymmetric patches on the images, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/table4.py
Rows: with and without patches, with and without confidence.
Cost: twelve trainings (four rows, three seeds), about three hours on two CPU cores.
Expect: with patches SIDE (x10^-2) 0.98 with confidence, 1.10 without (one seed each,
docs/tables.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.table("table4")
