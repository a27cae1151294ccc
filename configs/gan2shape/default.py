"""Every option of GAN2Shape, once, with its unit, its source and its range.

Pan, Dai, Liu, Loy, Luo, "Do 2D GANs Know 3D Shape? Unsupervised 3D Shape Reconstruction
from 2D Image GANs", ICLR 2021. "Paper" names the article, "code" the authors' release,
which is what made the numbers where the two differ. The defaults are the release's for
CelebA, instance by instance, at 64 px.

Sections data, log, checkpoint, eval and tables have keys that methods share:
`configs/shared.py`.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import shared

NETWORKS = ("depth", "albedo", "view", "light", "encoder")
# Of `shared.train`: the others mean nothing where the stages say how many steps there
# are, and the rate is constant.
_TRAIN = (
    "init_from",
    "batch_size",
    "devices",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "beta1",
    "beta2",
    "clip_norm",
    "lr_scale",
)


def get_config() -> ConfigDict:
    """Returns the full configuration with the default value of every key."""
    c = ConfigDict()
    c.method = "gan2shape"
    c.name = "gan2shape"  # names the default workdir, runs/<name>
    c.seed = 0  # the only source of randomness of a run

    c.data = data = shared.data()
    data.name = "open_faces"
    data.flip = False  # an image is as it is: its shape is wanted

    # --- what stands for the generator --------------------------------------------
    c.projection = projection = ConfigDict()
    # generator: what the GAN makes of a pseudo sample | oracle: the true scene, drawn
    # again at its view and light, for diagnosis; open_faces only | none: the pseudo
    # sample itself, the control that must learn nothing.
    projection.kind = "generator"
    # The GAN: a .pt of the rosinality layout, or a .safetensors of ours; "": that which
    # ships.
    projection.generator = ""
    # Dense layers of the mapping network that the offset passes through, less one
    # (code: F1_d): 2 for photos, 8 for rendered faces.
    projection.layers = 2
    # Without what the encoder says of the image itself (code: relative_enc).
    projection.relative = True
    # Table 1, "w/o regularize": False adds the offset in W as it is.
    projection.regularised = True
    projection.crop = 0  # pixels, centred, of the generator's image; 0: all of it

    # Latents that are known: a folder with a .pt beside each name, as the release and
    # rosinality's projector write them; "": they are searched. Mode train only.
    projection.latents = ""

    # --- latents of images that have none ------------------------------------------
    c.invert = invert = ConfigDict()
    # What pictures are compared by, beside their pixels: auto: LPIPS where its weights
    # are installed | lpips | discriminator: its features, much cheaper.
    invert.kind = "auto"
    invert.samples = 4096  # the nearest of them is where the search starts
    invert.steps = 1000
    invert.learning_rate = 0.1  # largest
    invert.feature = 1.0  # weight of that comparison; of the pixels' 1
    invert.mean = 0.02  # weight of the pull to the mean latent

    # --- stages -------------------------------------------------------------------
    c.stages = stages = ConfigDict()
    stages.count = 4
    # instance: a set of networks for each group of images | joint: one for all, and
    # another image in every iteration.
    stages.mode = "instance"
    # Images of a group share networks, whose gradients are averaged (code: 1 for
    # CelebA, 4 for cats and rendered faces). Instance mode only.
    stages.group = 1
    # Joint mode or stage: images in each iteration (code: one a process, 8 processes).
    stages.joint_images = 8
    # Groups that are worked on at a time, shared out among `train.devices`.
    stages.groups_at_a_time = 8
    # Of these so many side by side on each device, as one program; 1: one after the
    # other, which is what a CPU is fast at. 0: 1 on a CPU, elsewhere all.
    stages.side_by_side = 0
    # Steps 1, 2, 3 of stages before all others, in which one set of networks serves
    # all images; each group begins with what they have found. Instance mode only, and
    # left out where train.init_from names such networks; (0, 0, 0): none.
    stages.joint_steps = (0, 0, 0)
    # How many such stages, of as many steps each.
    stages.joint_count = 1
    # Images of the training split that take part in these stages, and in no other: of
    # many people V learns where frontal is, of few it learns each one's first pose.
    stages.joint_others = 0
    stages.prior_steps = 1000  # step 0
    # Ours, before the first step 2: the encoder reads steps between latents off the
    # generator's own pictures. 0: as the release.
    stages.lesson_steps = 0
    stages.first_steps = (600, 600, 400)  # steps 1, 2, 3 of the first stage
    stages.later_steps = (200, 500, 300)  # of the others
    stages.collect = 100  # batches of projected samples that are kept of each image
    # Whether step 1 and step 3 reconstruct from mirrored depth and albedo as well, by
    # stage; the last one counts for all that follow. False: no symmetry.
    stages.flip_albedo = (False,)
    stages.flip_all = (True, False)

    # --- prior --------------------------------------------------------------------
    c.prior = prior = ConfigDict()
    # ellipsoid, or of Table 2: asymmetric | shift6 | shift4 | weak | flat.
    prior.shape = "ellipsoid"
    prior.near, prior.far = 0.91, 1.02  # scene units; churches 1.0 (code)
    prior.radius = 0.4  # scene units, of the sphere that the cap is cut from
    # Height of the ellipsoid over the mask's (1: the release's). Heads are longer than
    # they are round: cut off at crown and neck, an ellipsoid bends too much.
    prior.stretch = 1.0
    # What changes in the mask's box: none | synface | face | car.
    prior.category = "none"
    # true: of the data set | folder: a PNG beside each name in prior.mask_path |
    # ellipse: a fixed one in the middle.
    prior.mask = "ellipse"
    prior.mask_path = ""
    # Rows are stretched about the middle of the image (code), not about the mask's.
    prior.compat = True

    # --- views and lights of pseudo samples ---------------------------------------
    c.sampling = sampling = ConfigDict()
    # Of V's and L's raw outputs. "": those of the open faces, which ship; or a .json
    # that `python -m unsup3d_jax.gan2shape.statistics` made of an unsup3d run.
    sampling.statistics = ""
    sampling.view_scale = 1.2  # of yaw: faces and cats 1.2, else 1 (code)
    # Of the light's direction (x, y, 1), uniform (code; rendered faces -0.9 to 0.9,
    # -0.3 to 0.8).
    sampling.light_x_min, sampling.light_x_max = -1.0, 1.0
    sampling.light_y_min, sampling.light_y_max = -0.2, 0.8
    # What diffuse light has more than the image's, and what ambient light has of that
    # (code; rendered faces -0.1 to 0.7, -0.4).
    sampling.diffuse_min, sampling.diffuse_max = -0.1, 0.6
    sampling.ambient_share = -0.6
    # Only the object counts in pseudo samples, and so in steps 2 and 3: the mask that
    # the prior is made of, in the canonical view (code: use_mask; cars and churches
    # True, faces and cats False).
    sampling.object_only = False

    # --- scene: as unsup3d's ------------------------------------------------------
    c.view = view = ConfigDict()
    view.fov_deg = 10.0
    view.rotation_max_deg = 60.0  # raw 1
    view.translation_xy_max = 0.1  # scene units, raw 1
    view.translation_z_max = 0.0  # unused (code)
    view.rotation_centre_depth = 1.0
    c.depth = depth = ConfigDict()
    depth.min, depth.max = 0.9, 1.1  # scene units
    depth.border_columns = 2
    depth.border_depth = 1.04
    depth.border_weight = 1.02  # code; see `formation.heads.clamp_border`
    c.raster = raster = ConfigDict()
    raster.supersample = 2  # samples per pixel and axis

    # --- networks -----------------------------------------------------------------
    c.model = model = ConfigDict()
    model.width = 64  # nf of depth and albedo; code: 4096 / size, at least 16
    model.encoder_width = 64  # nf of view and light; code: as width
    model.bottleneck = 256
    model.offset_width = 32  # nf of the offset encoder

    # --- losses: weights ----------------------------------------------------------
    c.loss = loss = ConfigDict()
    # lpips: needs its weights | auto: lpips where its weights are installed | none.
    loss.perceptual_kind = "auto"
    loss.perceptual_weights = ""  # as in `configs/default.py`
    loss.perceptual = 0.5
    loss.smoothness = 0.01  # second differences of depth and of diffuse shading
    loss.features = 1.0  # step 2: the discriminator's
    loss.offset = 0.01  # step 2: mean square of the offset
    # Steps 2 and 3: V and L must read off a pseudo sample the rotation (radians) and
    # the light that it was drawn with, L1. 0: as the release, which has no such term.
    loss.view = 0.0
    # Step 3 of joint mode, or of the joint stage: the angles that V reads off all
    # images must have the mean and the spread that the statistics of sampling say. 0:
    # as the release.
    loss.spread = 0.0

    # --- what is broken on purpose, to see that a number notices --------------------
    c.broken = broken = ConfigDict()
    broken.latents = False  # each image has the latent of another one
    broken.encoder = False  # the offset encoder stays as it began

    # --- training -----------------------------------------------------------------
    known = shared.train(NETWORKS)
    c.train = train = ConfigDict({key: known[key] for key in _TRAIN})
    train.batch_size = 16  # samples of an image in each iteration of steps 2 and 3
    train.init_from = ""  # workdir of a joint run; open_faces: the networks that ship

    # --- mode reconstruct ---------------------------------------------------------
    c.export = export = ConfigDict()
    # As in `configs/default.py`: mesh and videos of background, too.
    export.whole_surface = False
    export.most_yaw_deg = 70.0  # of rotations; cars and churches 45 (code)

    c.log = shared.log()
    c.checkpoint = shared.checkpoint()
    c.checkpoint.every = 500  # iterations, and whenever a step ends
    c.eval = shared.evaluation()
    c.tables = shared.tables()
    return c


_SHARED = shared.ranges(NETWORKS)
# As in `configs/shared.py`.
RANGES = {
    **{
        key: limits
        for key, limits in _SHARED.items()
        if not key.startswith("train.") or key.split(".")[1] in _TRAIN
    },
    "projection.layers": (0, 8),
    "projection.crop": (0, 4096),
    "invert.samples": (1, 2**20),
    "invert.steps": shared.COUNT,
    "invert.learning_rate": (0.0, 10.0),
    "invert.feature": shared.WEIGHT,
    "invert.mean": shared.WEIGHT,
    "export.most_yaw_deg": (0.0, 89.0),
    "stages.count": (1, 64),
    "stages.group": (1, 4096),
    "stages.joint_images": (1, 4096),
    "stages.groups_at_a_time": (1, 4096),
    "stages.side_by_side": (0, 4096),
    "stages.joint_steps": shared.COUNT,
    "stages.joint_count": (1, 64),
    "stages.joint_others": (0, 2**20),
    "stages.prior_steps": shared.COUNT,
    "stages.lesson_steps": shared.COUNT,
    "stages.first_steps": shared.COUNT,
    "stages.later_steps": shared.COUNT,
    "stages.collect": (1, 4096),
    "prior.near": (0.5, 1.5),
    "prior.far": (0.5, 1.5),
    "prior.radius": (0.01, 10.0),
    "prior.stretch": (0.1, 10.0),
    "sampling.view_scale": (0.0, 4.0),
    "sampling.light_x_min": (-4.0, 4.0),
    "sampling.light_x_max": (-4.0, 4.0),
    "sampling.light_y_min": (-4.0, 4.0),
    "sampling.light_y_max": (-4.0, 4.0),
    "sampling.diffuse_min": (-1.0, 1.0),
    "sampling.diffuse_max": (-1.0, 1.0),
    "sampling.ambient_share": (-2.0, 2.0),
    "view.fov_deg": (0.1, 120.0),
    "view.rotation_max_deg": (1.0, 90.0),
    "view.translation_xy_max": (0.0, 1.0),
    "view.translation_z_max": (0.0, 1.0),
    "view.rotation_centre_depth": (0.1, 10.0),
    "depth.min": (0.1, 10.0),
    "depth.max": (0.1, 10.0),
    "depth.border_columns": (0, 128),
    "depth.border_depth": (0.1, 10.0),
    "depth.border_weight": (0.0, 2.0),
    "raster.supersample": (1, 8),
    "model.width": (4, 1024),
    "model.encoder_width": (1, 1024),
    "model.bottleneck": (1, 4096),
    "model.offset_width": (1, 1024),
    "loss.perceptual": shared.WEIGHT,
    "loss.smoothness": shared.WEIGHT,
    "loss.features": shared.WEIGHT,
    "loss.offset": shared.WEIGHT,
    "loss.view": shared.WEIGHT,
    "loss.spread": shared.WEIGHT,
    **shared.TABLES_RANGES,
}
# As a run's JSON has them.
YOUNGER = {
    "loss.view": 0.0,
    "loss.spread": 0.0,
    "stages.joint_steps": [0, 0, 0],
    "stages.joint_others": 0,
    "stages.joint_count": 1,
    "stages.lesson_steps": 0,
    "sampling.object_only": False,
    "train.devices": 0,
    "prior.stretch": 1.0,
}
