"""Photos of your own with landmarks in files: 300-W, AFLW, or a table.

Run: python main.py --config=configs/stn3dmm/photos.py --config.data.path=DIR
(one GPU). What DIR holds is said in `unsup3d_jax/data/landmark_files.py`. For AFLW:
--config.data.layout=aflw --config.face.landmarks=aflw21. Begin from what the open
faces teach with --config.train.init_from=runs/stn3dmm_open_faces; then
--config.loss.landmark=0 asks for no landmark at all, and symmetry, the mirror image as
a second view, and the prior do the rest.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.stn3dmm import open_faces


def get_config() -> ConfigDict:
    config = open_faces.get_config()
    config.name = "stn3dmm_photos"
    config.data.name = "landmarks"
    config.data.path = "data/faces"
    config.data.views = 1
    config.loss.shape, config.loss.identity = 10.0, 0.0
    config.loss.huber = 0.05  # some landmarks are wrong
    config.loss.prior = 1e-5
    # Ten times as much, from the first step, took the shape away from landmarks.
    config.loss.symmetry = 0.01
    config.loss.multi_view = 0.01
    config.loss.contrast = 9
    config.loss.image_start = 1000
    config.visibility.train = "soft"
    config.train.steps = 20000
    config.train.batch_size = 64
    config.train.learning_rate = 5e-4
    config.eval.people = 0
    config.eval.baselines = ("zero", "constant", "no_shape", "fit")
    return config
