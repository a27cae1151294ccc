"""GAN2Shape, Table 1: beside unsup3d, with and without symmetry, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/gan2shape_table1.py
Rows: constant and average depth; unsup3d with and without symmetry; ours without and
with symmetry, and without the regulariser; the oracle.
Cost: 18 runs (six rows, three seeds) of 15 to 30 minutes on one CPU core.
Expect: SIDE (x10^-2) 1.03 ours, 1.57 unsup3d without symmetry, 0.89 the average depth
(docs/gan2shape.md); other rows have not been run.
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py); paper wants
a GPU and --config.projection.generator=FILE.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.gan2shape_table("gan2shape_table1")
