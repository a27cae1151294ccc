"""The model that ships (`--weights=faces`): the quickstart, in networks of 1.5 MB.

Run: python main.py --config=configs/faces.py      (2 CPU cores, no download)

Narrower where most parameters lie, the bottlenecks and the encoders; one depth sample a
pixel, which does as well at 32 px and costs less; 1,000 steps, not 1,600. The rest is
the quickstart. It ends at SIDE 0.897 and MAD 15.5 (the quickstart: 0.813 and 14.4).
`python -m unsup3d_jax.unsup3d.shipped WORKDIR unsup3d_jax/unsup3d/weights/faces.npz`
makes the file.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "faces"
    config.model.bottleneck = 32
    config.model.confidence_bottleneck = 32
    config.model.encoder_width = 16
    config.raster.supersample = 1
    config.train.steps = 1000
    config.eval.baselines = ("constant", "average", "untrained")
    return config
