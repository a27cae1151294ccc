"""Recipes against collapse, on the open faces: not a table of the paper.

Run: python main.py --mode=tables --config=configs/tables/stability.py
Rows: the paper's start; with one thing added at a time (initial bump, late or slow
depth, view warm-up, light prior, clipped gradients, Muon); several together. The
default of configs/default.py is the initial bump.
Cost: 30 trainings (ten rows, three seeds), about three hours on one fast CPU core.
Expect: one of three seeds of the paper's start without a viewpoint; none with the bump
(docs/stability.md).
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.tables import recipes


def get_config() -> ConfigDict:
    return recipes.table("stability")
