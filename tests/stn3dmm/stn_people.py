"""A tiny configuration of the method, and people whose theta is known."""

import functools

import jax
import numpy as np

from configs.stn3dmm import default
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.open_face.model import LANDMARK_FLIP
from unsup3d_jax.stn3dmm import layers
from unsup3d_jax.stn3dmm.options import load_face

SIZE = 32


def config(**changes):
    """32 px, a grid of 6 x 6, four people in two views; keys as loss__symmetry=1."""
    c = default.get_config()
    c.data.image_size, c.data.views, c.data.flip = SIZE, 2, True
    c.face.grid, c.camera.fov_deg = 6, 10.0
    c.localiser.width = 0.03
    c.train.batch_size, c.train.steps, c.train.warmup_steps = 4, 4, 1
    c.train.learning_rate = 1e-3
    c.log.every, c.log.tensorboard, c.log.picture_every = 1, False, 0
    c.checkpoint.every, c.eval.every, c.eval.batch_size = 2, 0, 4
    c.eval.people, c.eval.baselines = 0, ("zero", "constant", "no_shape", "fit")
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@functools.cache
def thetas(count, views, columns=94):
    """(count, views, 6 + columns) float32, within sight; identity is the person's."""
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(count, views, 6 + columns)).astype(np.float32)
    theta[..., :3] *= [0.1, 0.4, 0.1]
    theta[..., 3:6] *= 0.05
    theta[..., 6:76] = theta[:, :1, 6:76]
    return theta


def dataset(c, split="train", count=6, views=None):
    """Noise for images; landmarks and theta that belong together."""
    face = load_face(c)
    views = views or (c.data.views if split == "train" else 1)
    theta = thetas(count, views)
    rng = np.random.default_rng(ds.SPLITS.index(split))
    points = landmarks(c, theta.reshape(-1, theta.shape[-1])).reshape(
        count, views, -1, 2
    )
    depth = np.ones((*points.shape[:-1], 1), np.float32)
    arrays = {
        "image": rng.integers(0, 256, (count, views, SIZE, SIZE, 3), np.uint8),
        "mask": np.ones((count, views, SIZE, SIZE), bool),
        "keypoints": np.concatenate([points, depth], axis=-1),
        "keypoints_visible": np.ones(points.shape[:-1], bool),
        "truth": theta,
        "latent": theta[..., face.columns],
    }
    return ds.Dataset(
        arrays,
        ds.Report("open_faces", split, "", count),
        digest=split,
        keypoint_flip=LANDMARK_FLIP,
        latent_mirror=layers.mirror_matrix(face.grid.coefficient_mirror),
    )


def landmarks(c, theta):
    """(n, 68, 2) pixels."""
    face = load_face(c)
    return np.asarray(_landmarks(face.grid, theta, face.camera))


@functools.partial(jax.jit, static_argnums=2)
def _landmarks(grid, theta, camera):
    def one(vector):
        return layers.project_landmarks(
            grid, layers.split(vector), camera, image_size=SIZE
        )

    return jax.vmap(one)(theta)


def splits(c):
    """As `task.lazy_splits`, of these people."""
    return functools.cache(functools.partial(dataset, c))
