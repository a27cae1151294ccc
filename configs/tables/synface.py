"""Tables 2 and 3 on the authors' Basel Face Model renderings, for those who own them.

Run: python main.py --mode=tables --config=configs/tables/synface.py \
    --config.tables.scale=paper --config.data.path=DIR
DIR holds train/, val/ and test/, each with image/ and depth/.
Cost: 27 trainings (nine rows, three seeds) of 50,000 steps: for GPUs.
Expect: not known, never run by us; the paper's numbers stand beside ours.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    config = recipes.table("synface")
    config.name = "table_synface"
    config.data.name = "synface"
    config.data.path = "data/synface"
    config.data.crop = (170,)
    return config
