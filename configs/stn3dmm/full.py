"""The paper's sizes with our losses: VGG-Face, images of 224 px, 112 x 112 texels.

Run: python main.py --config=configs/stn3dmm/full.py --config.localiser.weights=FILE
(one GPU). FILE holds VGG-Face, see `unsup3d_jax/nets/vgg_face_files.py`; without it
the network of 134 million parameters is trained from noise. 40,000 images are rendered
once and cached.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.stn3dmm import open_faces


def get_config() -> ConfigDict:
    config = open_faces.get_config()
    config.name = "stn3dmm_full"
    config.data.image_size = 224
    config.data.count_train = 20000  # people, two views of each
    config.data.count_val = 500
    config.data.count_test = 1000
    config.face.grid = 112
    config.localiser.kind = "vgg_face"
    config.localiser.width = 1.0
    config.train.steps = 20000
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 500
    return config
