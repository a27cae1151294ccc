"""GAN2Shape, Table 2: other priors, on the open faces.

Run: python main.py --mode=tables --config=configs/tables/gan2shape_table2.py
Rows: ours; the ellipsoid asymmetric, shifted by a sixth and a quarter of its width,
half as high; flat; and under a fixed mask.
Cost: 21 runs (seven rows, three seeds) of 25 minutes on one CPU core.
Expect: not known, but for ours: SIDE (x10^-2) 1.03 (docs/gan2shape.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py); paper wants
a GPU and --config.projection.generator=FILE.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.gan2shape_table("gan2shape_table2")
