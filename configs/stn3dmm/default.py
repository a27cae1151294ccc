"""Every option of the 3DMM-STN, once, with its unit, its source and its range.

Bas, Huber, Smith, Awais, Kittler, "3D Morphable Models as Spatial Transformer
Networks", ICCV Workshops 2017. "Paper" names the article, "code" the authors' release
where the two differ. The defaults are not the paper's recipe but a smaller one of our
own, which trains without a pretrained network; `compat.py` goes back.

Sections data, train, log, checkpoint and eval have keys that all methods share:
`configs/shared.py`.
"""

from ml_collections import ConfigDict
from unsup3d_jax.configs import shared

NETWORKS = ("localiser",)


def get_config() -> ConfigDict:
    """Returns the full configuration with the default value of every key."""
    c = ConfigDict()
    c.method = "stn3dmm"
    c.name = "stn3dmm"  # names the default workdir, runs/<name>
    c.seed = 0  # the only source of randomness of a run

    # --- data: open_faces, or photos with landmarks (landmarks) -----------------
    c.data = data = shared.data()
    data.name = "open_faces"  # open_faces | landmarks
    data.image_size = 112  # pixels, square; vgg_face takes 224
    # Pictures of each person, open_faces only. An example of a batch is a person, so
    # that train.batch_size counts people, each with so many pictures.
    data.views = 1
    # landmarks only, the layout of data.path: pts (300-W: a file beside each photo) |
    # csv (a table, landmarks.csv) | aflw (AFLW as published: a database). What they
    # hold is said in `unsup3d_jax/data/landmark_files.py`.
    data.layout = "pts"
    # landmarks only: what each side of the cut has beyond the landmarks, as a share of
    # the larger side of their box.
    data.margin = 0.3

    # --- morphable model ----------------------------------------------------
    c.face = face = ConfigDict()
    # "open", which ships with the project, "open-pca40", 40 principal components of its
    # people, or a file: .npz of ours, .mat (Basel 2009),
    # .h5 (Basel 2017, 2019), or a folder of ICT-FaceKit meshes.
    face.model = "open"
    face.identity = 0  # first columns of identity that theta has; 0: all (code 5)
    face.expression = 0  # first columns of expression; 0: all (code 5)
    face.grid = 64  # vertices a side of the grid, and texels of the flattened face
    face.landmarks = "ibug68"  # ibug68 | aflw21: those of the data

    # --- camera -----------------------------------------------------------------
    c.camera = camera = ConfigDict()
    # Between the outermost pixel centres of a row; 0: scaled orthographic (paper). The
    # open faces are rendered with 10.
    camera.fov_deg = 0.0
    # Share of the image that the larger side of the mean face fills at theta = 0.
    camera.fill = 0.75

    # --- localiser ----------------------------------------------------------------
    c.localiser = localiser = ConfigDict()
    localiser.kind = "small"  # small: ours | vgg_face (paper)
    localiser.width = 1.0  # factor of the numbers of channels
    # axis_angle (paper) | six: two columns of the matrix, continuous everywhere
    # (Zhou et al., CVPR 2019).
    localiser.rotation_head = "axis_angle"
    # small: what the dense layer reads of the last maps, 4 x 4: mean_max | flat, all of
    # them, which needs images of 32, 64, 128, ... px.
    localiser.pool = "mean_max"
    # small: stride of the first convolution, 2 | 4, for images of 64 px or more.
    localiser.stem = 2
    # vgg_face: a file of the pretrained weights, .mat (MatConvNet) or .h5 (Keras), or
    # one of ours; "": noise.
    localiser.weights = ""
    localiser.subtract_mean = True  # vgg_face: of its training images (code: not)
    # The last layer gives t in 112ths of half an image and log s to base 0.99 (code).
    localiser.release_units = False

    # --- loss: weights; 0 leaves a term out ---------------------------------------
    c.loss = loss = ConfigDict()
    # Mean over the landmarks that are known of the squared distance, in image sides. 0:
    # no landmark is used at all, by loss.shape and loss.identity neither.
    loss.landmark = 1.0
    # Distances beyond which it grows linearly, image sides; 0: never (paper).
    loss.huber = 0.0
    loss.prior = 1e-6  # sum of the squares of alpha, in standard deviations
    # The image terms compare colours in [0, 1]; means over texels seen in both.
    loss.symmetry = 0.0  # flattened face against its mirror image; code 1e-4 of a sum
    # Between two views of a person, or an image and its mirror where there is one view.
    loss.multi_view = 0.0
    # Texels a side of the window over which what they compare has one contrast; 0: off.
    loss.contrast = 0
    loss.image_start = 0  # steps before the image terms count, as faces must be found
    # Landmarks again, at the pose that fits them best: what is left is shape, which
    # errors of pose would hide.
    loss.shape = 10.0
    # The same with the identity that another view of the person gives, which makes its
    # depth known. Needs data.views > 1.
    loss.identity = 0.0
    # Squared distance of theta from the truth, poses x 20: the supervised row.
    loss.theta = 0.0
    # Squared distance of the vertices from the true ones, half-image units, in the
    # model's frame: more of the supervised row.
    loss.vertices = 0.0
    # Against shrinking, and sliding out of the image: see `stn3dmm.losses`.
    loss.outside = 1.0
    loss.scale = 1.0
    loss.visible = 1.0

    # --- visibility -----------------------------------------------------------------
    c.visibility = visibility = ConfigDict()
    # What the image terms see: facing (paper: normals) | zbuffer (exact) | soft | none.
    visibility.train = "facing"
    visibility.eval = "zbuffer"  # of scores and pictures: facing | zbuffer

    # --- what is broken on purpose, to see that a number notices ----------------------
    c.broken = broken = ConfigDict()
    broken.landmarks = False  # each image has the landmarks of another one
    broken.mirror = False  # the landmarks of a mirrored image keep their names

    # --- departures of the authors' code from the paper -------------------------------
    c.compat = compat = ConfigDict()
    # Sums over the batch with the release's weights and units (pixels, colours in
    # [0, 255], implicit masks) instead of the terms above, where they have weights.
    compat.release_losses = False
    # The last layer's weights learn 4 times, its bias 8 times as fast as the rest, the
    # latter without weight decay.
    compat.release_rates = False

    # --- training -----------------------------------------------------------------
    c.train = train = shared.train(NETWORKS)
    train.steps = 20000
    train.learning_rate = 3e-4
    train.schedule = "cosine"
    train.constant_fraction = 0.1
    train.warmup_steps = 200
    train.weight_decay = 0.0
    train.clip_norm = 1.0

    # --- log, checkpoint, evaluation ------------------------------------------------
    c.log = shared.log()
    c.checkpoint = shared.checkpoint()
    c.eval = ev = shared.evaluation()
    # Rows of the final table beside "ours": any of zero (theta = 0), constant (the mean
    # theta of the training set), no_shape (ours, its coefficients set to 0), fit (theta
    # optimised on the true landmarks of each image), supervised (true theta regressed,
    # by the same loop).
    ev.baselines = ("zero", "constant", "no_shape", "fit")
    ev.baseline_steps = 0  # training steps of the supervised row; 0: train.steps
    # Several pictures of the same people, of which flattened faces are compared; 0
    # people: none.
    ev.people = 24
    ev.views = 16

    # --- mode reconstruct -----------------------------------------------------------
    c.export = export = ConfigDict()
    export.grid = 112  # as face.grid, of what is written; paper 112
    export.photo_size = 512  # pixels a side of the photo that is flattened
    export.texture_scale = 4  # texels of the mesh's texture a vertex, each way
    return c


# As in `configs/shared.py`.
RANGES = {
    **shared.ranges(NETWORKS),
    "data.views": (1, 64),
    "data.margin": (0.0, 3.0),
    "face.identity": shared.COUNT,
    "face.expression": shared.COUNT,
    "face.grid": (4, 512),
    "camera.fov_deg": (0.0, 60.0),
    "camera.fill": (0.05, 1.0),
    "localiser.width": (0.01, 8.0),
    "localiser.stem": (2, 4),
    "loss.landmark": shared.WEIGHT,
    "loss.huber": (0.0, 10.0),
    "loss.prior": shared.WEIGHT,
    "loss.symmetry": shared.WEIGHT,
    "loss.multi_view": shared.WEIGHT,
    "loss.contrast": (0, 255),
    "loss.image_start": shared.COUNT,
    "loss.shape": shared.WEIGHT,
    "loss.identity": shared.WEIGHT,
    "loss.theta": shared.WEIGHT,
    "loss.vertices": shared.WEIGHT,
    "loss.outside": shared.WEIGHT,
    "loss.scale": shared.WEIGHT,
    "loss.visible": shared.WEIGHT,
    "eval.baseline_steps": shared.COUNT,
    "eval.people": (0, 2**20),
    "eval.views": (2, 64),
    "export.grid": (4, 1024),
    "export.photo_size": (32, 4096),
    "export.texture_scale": (1, 32),
}
# Keys that some runs are older than, and the value that means what was done then.
YOUNGER: dict = {
    "data.background": "rendered",
    "localiser.release_units": False,
    "compat.release_rates": False,
}
