"""Every option of the generator's training, once, with its unit, source and range.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020
(StyleGAN2), and "Training Generative Adversarial Networks with Limited Data", NeurIPS
2020 (ADA). The defaults are those recipes at 64 px and half of the published widths;
`gan_faces.py` is what a laptop can train.

Sections data, train, log, checkpoint and eval have keys that all methods share:
`configs/shared.py`.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import shared

NETWORKS = ("generator", "discriminator")


def get_config() -> ConfigDict:
    """Returns the full configuration with the default value of every key."""
    c = ConfigDict()
    c.method = "stylegan2"
    c.name = "stylegan2"  # names the default workdir, runs/<name>
    c.seed = 0  # the only source of randomness of a run

    # --- data -----------------------------------------------------------------------
    c.data = data = shared.data()
    data.name = "open_faces"  # open_faces | folder | tfds
    data.pose = "natural"
    data.background = "plain"

    # --- networks -------------------------------------------------------------------
    c.gan = gan = ConfigDict()
    # Channels of the levels 4, 8, ..., data.image_size px; published: 512 up to 32 px,
    # then 256, 128, ...
    gan.channels = (256, 256, 256, 256, 128)
    gan.style = 512  # numbers of z and of w
    gan.mapping_layers = 8
    gan.mapping_rate = 0.01  # learning rate of the mapping, relative
    # A map of noise in each layer, drawn anew for each image. GAN2Shape keeps noise
    # fixed; a narrow generator learns to draw textures by it instead of faces.
    gan.noise = True
    gan.mixing = 0.9  # share of images whose w changes at some layer
    gan.half_life = 10000  # images, of the moving average of the generator

    # --- losses; a regularisation counts every so many steps, that much more ----------
    c.loss = loss = ConfigDict()
    loss.r1 = 10.0  # gamma: gamma / 2 times the squared gradient at real images
    loss.r1_every = 16  # steps
    loss.path = 2.0  # weight of the path lengths' deviation; 0: none
    loss.path_every = 4  # steps

    # --- augmentation, adapted to what the discriminator has learnt by heart ----------
    c.augment = augment = ConfigDict()
    # Mean sign of the logits of real images that is held; 0: no augmentation (ADA 0.6).
    augment.target = 0.0
    augment.every = 4  # steps between changes of the probability
    augment.images = 500000  # in which the probability could go from 0 to 1
    augment.most = 0.8  # the probability stays below, else samples are augmented too

    # --- training -------------------------------------------------------------------
    c.train = train = shared.train(NETWORKS)
    train.steps = 60000
    train.batch_size = 32
    train.learning_rate = 2e-3
    train.weight_decay = 0.0
    train.beta1 = 0.0
    train.beta2 = 0.99

    # --- log, checkpoint, evaluation ------------------------------------------------
    c.log = shared.log()
    log = c.log
    log.picture_count = 64  # samples
    c.checkpoint = shared.checkpoint()
    c.eval = ev = shared.evaluation()
    ev.samples = 4096  # of the gate's spreads and of linearity in w
    ev.people = 32  # held-out images that are inverted; 0: none
    return c


# As in `configs/shared.py`.
RANGES = {
    **shared.ranges(NETWORKS),
    "gan.channels": (1, 4096),
    "gan.style": (1, 4096),
    "gan.mapping_layers": (1, 32),
    "gan.mapping_rate": (1e-6, 1.0),
    "gan.mixing": (0.0, 1.0),
    "gan.half_life": shared.POSITIVE,
    "loss.r1": shared.WEIGHT,
    "loss.r1_every": shared.POSITIVE,
    "loss.path": shared.WEIGHT,
    "loss.path_every": shared.POSITIVE,
    "augment.target": (0.0, 1.0),
    "augment.every": shared.POSITIVE,
    "augment.images": shared.POSITIVE,
    "augment.most": (0.0, 1.0),
    "eval.samples": (1024, 2**20),
    "eval.people": (0, 2**16),
}
YOUNGER: dict = {}
