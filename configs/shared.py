"""The sections of a config that are the same for all methods; each key once.

The defaults are those of the first method's paper (Wu et al., CVPR 2020, Tables 6-9 and
the released code), named here as in `default.py`; each config changes a few lines.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

# The least and the greatest value of a number, both included.
COUNT = (0, 2**31 - 1)
POSITIVE = (1, 2**31 - 1)
BATCH = (1, 2**20)
RATE = (1e-12, 10.0)
WEIGHT = (0.0, 1e6)


def data() -> ConfigDict:
    """Section data: which images there are, and how they are stored."""
    data = ConfigDict()
    data.name = "folder"  # folder | celeba | open_faces | synface | tfds
    # folder, synface: root that holds the images; tfds: the data_dir; celeba: what was
    # fetched, as it is (docs/data.md).
    data.path = ""
    # tfds only: a set of TensorFlow Datasets with a feature "image", prepared
    # as array records, such as celeb_a.
    data.tfds_name = ""
    data.image_size = 64  # pixels, square: 32, 64, 128 or 256
    # Pixels cut from each image before resizing: () keeps everything,
    # (s,) cuts a centred s x s square, (0,) the largest one that fits,
    # (y0, x0, h, w) a box (code, crop). celeba: () is what its layout calls for.
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
    # rendered, or plain: grey wherever there is no face, by the true mask. A narrow
    # generator spends what it has on the textures of the rendered ones.
    data.background = "rendered"
    data.seed = 0  # of the rendered identities; not the run's seed
    return data


def train(networks: Sequence[str]) -> ConfigDict:
    """Section train: steps, batches, optimizer.

    Args:
        networks: names of the parts of the parameters that have rates of their own.
    """
    train = ConfigDict()
    # Where the parameters come from: a workdir, one checkpoints/<step> folder of it, or
    # what --mode=import made; "": noise. The optimizer and all schedules begin anew
    # (Table 5, "w/ CelebA pre-training"). Baselines and rotnet begin from noise.
    train.init_from = ""
    train.steps = 50000  # Table 6: about 50k
    train.batch_size = 64  # over all devices; Table 6
    # adam | muon: momentum of each convolution kernel made orthogonal, Adam for
    # the rest | sgd: momentum `beta1`. The paper's is Adam; in the short runs measured
    # here Muon ends better after fewer steps (docs/stability.md), each of which takes
    # longer.
    train.optimizer = "adam"
    train.learning_rate = 1e-4  # Adam; Table 6
    train.schedule = "constant"  # constant | cosine
    train.warmup_steps = 0  # linear from 0
    train.constant_fraction = 0.6  # cosine: share of steps before it falls
    train.weight_decay = 5e-4  # L2 in the gradient, not decoupled (code)
    train.beta1 = 0.9  # of Adam; of sgd the momentum
    train.beta2 = 0.999  # of Adam
    train.clip_norm = 0.0  # global gradient norm; 0: no clipping (code)
    # Learning rate factor of each network.
    train.lr_scale = ConfigDict(dict.fromkeys(networks, 1.0))
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
    return train


def log() -> ConfigDict:
    """Section log."""
    log = ConfigDict()
    log.every = 100  # steps between lines of metrics.jsonl
    log.picture_every = 2000  # steps between picture panels; 0: never
    log.picture_count = 8  # fixed validation images in a panel
    log.tensorboard = True
    return log


def checkpoint() -> ConfigDict:
    """Section checkpoint."""
    checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps
    checkpoint.keep = 2  # newest checkpoints kept, and the best one
    # Seconds between SIGTERM or Ctrl-C and the end of the process, at most.
    checkpoint.deadline = 30.0
    return checkpoint


def evaluation() -> ConfigDict:
    """Section eval."""
    ev = ConfigDict()
    ev.every = 5000  # steps between evaluations of the val split; 0: never
    ev.split = "test"  # of mode eval and of the end of training
    ev.batch_size = 64
    ev.max_images = 0  # 0: all
    return ev


def tables() -> ConfigDict:
    """Section tables, of methods that have some."""
    tables = ConfigDict()
    tables.name = ""  # of the table, as its file in configs/tables/ sets it
    tables.rows = ("all",)  # or names of rows, unsup3d_jax/experiments/*_tables.py
    # What every row starts from: tiny | small | paper, see
    # configs/tables/recipes.py. What the table changes comes on top, then keys of
    # the config that differ from their defaults or are set on the command line, and
    # then what makes each row.
    tables.scale = "small"
    tables.seeds = 3  # of each trained row: seed, seed + 1, ...
    tables.figure_images = 4  # rows of the figure; 0: no figure
    return tables


# Of its keys that hold a number.
TABLES_RANGES = {"tables.seeds": (1, 1000), "tables.figure_images": (0, 1000)}


def ranges(networks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Of every key above that holds a number, and of `seed`."""
    return {
        # JAX takes the lower 32 bits of a seed: 2^32 would be 0 again, without a word.
        "seed": (0, 2**32 - 1),
        "data.image_size": (8, 256),
        "data.crop": (0, 10**6),
        "data.hash_split_percent": (0, 100),
        "data.min_images": COUNT,
        "data.max_images": COUNT,
        "data.workers": (0, 1024),
        "data.device_memory_mib": COUNT,
        "data.count_train": (1, 2**24),
        "data.count_val": (1, 2**24),
        "data.count_test": (1, 2**24),
        "data.asymmetry": (0.0, 2.0),
        "data.seed": (0, 2**20 - 1),
        "train.steps": POSITIVE,
        "train.batch_size": BATCH,
        "train.learning_rate": RATE,
        "train.warmup_steps": COUNT,
        "train.constant_fraction": (0.0, 1.0),
        "train.weight_decay": (0.0, 1e3),
        "train.beta1": (0.0, 0.999999),
        "train.beta2": (0.0, 0.999999),
        "train.clip_norm": (0.0, 1e30),
        "train.grad_norm_max": (0.0, 1e30),
        "train.skips_in_a_row": POSITIVE,
        "train.rollbacks": COUNT,
        "train.devices": (0, 2**16),
        "log.every": POSITIVE,
        "log.picture_every": COUNT,
        "log.picture_count": (1, 1024),
        "checkpoint.every": POSITIVE,
        "checkpoint.keep": POSITIVE,
        "checkpoint.deadline": (0.001, 1e6),
        "eval.every": COUNT,
        "eval.batch_size": BATCH,
        "eval.max_images": COUNT,
        **{f"train.lr_scale.{name}": (0.0, 1e3) for name in networks},
    }
