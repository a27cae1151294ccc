"""GAN2Shape, what must hurt: if it does not, the generator is not being used.

Run: python main.py --mode=tables --config=configs/tables/gan2shape_controls.py
Rows: ours; no generator; an encoder that learns nothing; latents of other images; one
light for all pseudo samples.
Cost: 15 runs (five rows, three seeds) of 25 minutes on one CPU core.
Expect: not known, but for ours: SIDE (x10^-2) 1.03 (docs/gan2shape.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py); paper wants
a GPU and --config.projection.generator=FILE.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.gan2shape_table("gan2shape_controls")
