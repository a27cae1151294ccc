"""VGG16 with random weights of the right size."""

import numpy as np

from unsup3d_jax.nets import vgg16


def random_vgg(layer="relu3_3", seed=0):
    """He-initialised convolutions up to a layer."""
    rng = np.random.default_rng(seed)
    return [
        {
            "kernel": rng.normal(0, (2 / (9 * s[2])) ** 0.5, s).astype(np.float32),
            "bias": rng.normal(0, 0.1, s[-1:]).astype(np.float32),
        }
        for s in vgg16.kernel_shapes(layer)
    ]
