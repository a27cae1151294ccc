"""The recipe of the authors' release, on the open faces.

Run: python main.py --config=configs/stn3dmm/compat.py --config.localiser.weights=FILE
(one GPU). Sums over the batch with the release's weights, 5 + 5 coefficients, an image
and its mirror image as two views, stochastic gradient descent in its units of theta and
with larger rates of the last layer. What is not taken over: its two bugs in the
gradients of the image terms, and its normals of three triangles
(`stn3dmm.compat.facing`).
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs.stn3dmm import full


def get_config() -> ConfigDict:
    config = full.get_config()
    config.name = "stn3dmm_compat"
    config.data.views = 1
    config.face.identity = config.face.expression = 5
    config.camera.fov_deg = 0.0
    config.localiser.subtract_mean = False
    config.localiser.release_units = True
    config.compat.release_losses = config.compat.release_rates = True
    config.loss.landmark = 0.8998
    config.loss.prior = 0.1
    config.loss.multi_view = config.loss.symmetry = 1e-4
    config.loss.shape = config.loss.identity = 0.0
    config.loss.outside = config.loss.scale = config.loss.visible = 0.0
    config.train.optimizer = "sgd"
    config.train.beta1 = 0.9
    config.train.learning_rate = 1e-10  # of sums over pixels and images
    config.train.schedule = "constant"
    config.train.warmup_steps = 0
    config.train.weight_decay = 5e-4
    config.train.clip_norm = 0.0
    config.train.batch_size = 32
    return config
