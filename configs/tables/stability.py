"""Recipes against collapse, on the open faces: not a table of the paper.

Run: python main.py --mode=tables --config=configs/tables/stability.py
Rows: the paper's start; with one thing added at a time (initial bump, late or slow
depth, view warm-up, light prior, clipped gradients, Muon); several together. The
default of configs/default.py is the initial bump.
--config.tables.scale=tiny|small|paper sets size and schedule (recipes.py).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "stability"
    config.data.name = "open_faces"
    config.tables.name = "stability"
    return config
