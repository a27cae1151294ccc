"""VGG16's layers against PyTorch's, its pooling against a sliding window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_vgg import random_vgg

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import vgg16

# One program each: op by op they would compile for long.
features = jax.jit(vgg16.features, static_argnames="layer")


def _torch_features(torch, vgg, image):
    """The same layers, written down independently; image a torch tensor."""
    f = torch.nn.functional
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    x = ((image - mean) / std).permute(0, 3, 1, 2)
    for number, weights in enumerate(vgg):
        if number in (2, 4, 7, 10):
            x = f.max_pool2d(x, 2)
        kernel = torch.tensor(weights["kernel"]).permute(3, 2, 0, 1)
        x = f.relu(f.conv2d(x, kernel, torch.tensor(weights["bias"]), padding=1))
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("layer", vgg16.LAYERS)
def test_features_have_the_documented_shape(layer):
    scale, channels = {
        "relu1_2": (1, 64), "relu2_2": (2, 128), "relu3_3": (4, 256),
        "relu4_3": (8, 512), "relu5_3": (16, 512),
    }[layer]  # fmt: skip
    image = jax.ShapeDtypeStruct((2, 32, 16, 3), jnp.float32)
    found = jax.eval_shape(features, random_vgg(layer), image, layer=layer)
    assert found.shape == (2, 32 // scale, 16 // scale, channels)


def test_features_and_gradient_agree_with_torch():
    torch = pytest.importorskip("torch")
    vgg = random_vgg()
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(2, 16, 16, 3)).astype(np.float32)
    weight = rng.normal(size=(2, 4, 4, 256)).astype(np.float32)
    leaf = torch.tensor(image, requires_grad=True)
    expected = _torch_features(torch, vgg, leaf)
    (expected * torch.tensor(weight)).sum().backward()
    found = features(vgg, image, layer="relu3_3")
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-5)

    def score(x):
        return jnp.sum(features(vgg, x, layer="relu3_3") * weight)

    # Rounding can fall on either side of a few kinks of ReLU and pooling.
    gradient = leaf.grad.numpy()
    tolerance = 5e-3 * np.abs(gradient).max()
    np.testing.assert_allclose(jax.grad(score)(image), gradient, atol=tolerance)


def test_taps_are_the_layers_by_themselves_and_follow_the_definition():
    vgg = random_vgg("relu5_3")
    image = np.random.default_rng(1).uniform(size=(1, 16, 16, 3)).astype(np.float32)
    taps = jax.jit(functools.partial(vgg16.taps, layers=tuple(vgg16.LAYERS)))
    found = taps(vgg, image)
    x = (image.astype(float) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = []
    for number, layer in enumerate(vgg):
        if number in (2, 4, 7, 10):
            x = np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).max(0)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("bvuihw,hwio->bvuo", windows, layer["kernel"], optimize=True)
        x = np.maximum(x + layer["bias"], 0.0)
        if number in (1, 3, 6, 9, 12):
            expected.append(x)
    for ours, theirs in zip(found, expected, strict=True):
        assert float(ours.min()) >= 0.0
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.max())
    alone = features(vgg, image, layer="relu4_3")
    np.testing.assert_array_equal(alone, found[3])


@pytest.mark.parametrize(
    "layer, size", [("relu1_2", 6), ("relu4_3", 12), ("relu5_3", 24)]
)
def test_sizes_that_do_not_divide_and_missing_convolutions_are_refused(layer, size):
    vgg = random_vgg("relu1_2") * 7
    with pytest.raises(ValueError, match="need .b, "):
        vgg16.features(vgg, jnp.zeros((1, size, size, 3)), layer=layer)
    with pytest.raises(ValueError, match="convolutions"):
        vgg16.features(vgg[:1], jnp.zeros((1, 16, 16, 3)), layer=layer)
    with pytest.raises(UserError, match="perceptual_layer"):
        vgg16.features(vgg, jnp.zeros((1, 16, 16, 3)), layer="relu4_1")


@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 5, 7, 3)])
def test_pooling_is_that_of_a_sliding_window(shape):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    weight = rng.normal(size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3]))

    def windows(x):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    # Behind a ReLU, as in VGG16, nearly all ties are zeros, which have no gradient.
    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.grad, argnums=1)
    def slope(pool, x):
        return jnp.sum(pool(jax.nn.relu(x)) * weight)

    max_pool = jax.jit(vgg16.max_pool)
    np.testing.assert_array_equal(max_pool(x), windows(x))
    np.testing.assert_array_equal(slope(vgg16.max_pool, x), slope(windows, x))
    tied = jax.jit(jax.grad(lambda x: max_pool(x).sum()))(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(tied, jnp.full_like(tied, 0.25))
    assert jnp.isnan(max_pool(x.at[0, 1, 1, 0].set(jnp.nan))[0, 0, 0, 0])
