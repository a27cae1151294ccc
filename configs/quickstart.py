"""Ten minutes on a laptop: open synthetic faces at 32 px, narrow networks.

Run: python main.py --config=configs/quickstart.py      (2 CPU cores, no download)
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.name = "quickstart"
    config.data.name = "open_faces"
    config.data.image_size = 32
    config.data.count_train = 4500
    config.data.count_val = 500
    config.data.count_test = 500
    config.model.width = 16
    config.model.encoder_width = 16
    config.depth.bump_height = 0.8
    config.depth.output_gain = 0.15
    config.loss.flip = 1.0
    config.loss.perceptual = 0.0
    config.train.steps = 3000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.weight_decay = 0.0
    config.train.clip_norm = 1.0
    config.train.lr_scale.view = 2.0
    config.train.lr_scale.depth = 0.1
    config.train.depth_start = 400
    config.train.depth_full = 1000
    config.eval.every = 0
    config.eval.baselines = ("constant", "average", "untrained", "supervised")
    config.eval.baseline_steps = 800
    config.checkpoint.every = 500
    config.log.picture_every = 1000
    return config
