"""VGG-Face and its two public files, imitated with few channels."""

import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import file_guard, vgg_face, vgg_face_files

WIDTH = 1 / 32
SHAPES = vgg_face.layer_shapes(WIDTH)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {
        name: {
            "kernel": rng.normal(0, (2 / np.prod(s[:3])) ** 0.5, s).astype(np.float32),
            "bias": rng.normal(0, 0.1, s[-1:]).astype(np.float32),
        }
        for name, s in SHAPES.items()
    }


def _cells(values):
    cells = np.empty((1, len(values)), object)
    cells[0, :] = values
    return cells


def write_new_mat(path, weights, **other):
    layers = [{"name": "data", "type": "relu"}]
    for name, layer in weights.items():
        pair = np.empty((1, 2), object)
        pair[0, 0], pair[0, 1] = layer["kernel"], layer["bias"][None]
        layers += [
            {"name": name, "type": "conv", "weights": pair, "stride": [1.0, 1.0]},
            {"name": f"relu_{name}", "type": "relu"},
        ]
    meta = {"normalization": {"averageImage": vgg_face.MEAN.reshape(1, 1, 3)}}
    scipy.io.savemat(path, {"layers": _cells(layers), "meta": meta, **other})
    return path


def write_old_mat(path, weights):
    layers = []
    for name, layer in weights.items():
        record = {"type": "conv", "name": name, "pad": 1.0}
        record |= {"filters": layer["kernel"], "biases": layer["bias"][:, None]}
        layers += [record, {"type": "relu", "name": f"relu_{name}"}]
    net = {"layers": _cells(layers), "classes": _cells(["a", "b"])}
    scipy.io.savemat(path, {"net": net}, do_compression=True)
    return path


def write_keras(path, weights, *, kernel="kernel:0", bias="bias:0", reverse=True):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_group("pool1")
        for name, layer in weights.items():
            array = layer["kernel"]
            if name == "conv1_1" and reverse:
                array = array[:, :, ::-1]
            if name.startswith("fc"):  # dense layers: (rows * columns * in, out)
                array = array.reshape(-1, array.shape[-1])
            inside = file.create_group(f"{name}/{name}")
            inside[kernel.format(name)] = array
            inside[bias.format(name)] = layer["bias"]
    return path


def _assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, layer in expected.items():
        for key, array in layer.items():
            np.testing.assert_array_equal(found[name][key], array, name)
            assert found[name][key].dtype == np.float32


def test_the_topology_is_that_of_the_paper():
    shapes = vgg_face.layer_shapes()
    assert len(shapes) == 15
    assert shapes["conv1_1"] == (3, 3, 3, 64) and shapes["conv5_3"] == (3, 3, 512, 512)
    assert shapes["fc6"] == (7, 7, 512, 4096) and shapes["fc7"] == (1, 1, 4096, 4096)
    count = sum(np.prod(s) + s[-1] for s in shapes.values())
    assert count == pytest.approx(134.26e6, rel=1e-4)


def test_features_follow_the_definition(weights):
    image = np.random.default_rng(1).uniform(size=(1, 224, 224, 3)).astype(np.float32)
    found = {
        mean: jax.jit(vgg_face.features, static_argnames="subtract_mean")(
            weights, image, subtract_mean=mean
        )
        for mean in (True, False)
    }
    for subtracted, ours in found.items():
        x = 255.0 * image.astype(np.float64)[0]
        x = x - [129.1863, 104.7624, 93.5940] if subtracted else x
        for name, layer in weights.items():
            kernel = layer["kernel"].astype(np.float64)
            if name.startswith("conv"):
                padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
                view = np.lib.stride_tricks.sliding_window_view(
                    padded, (3, 3), axis=(0, 1)
                )
                x = np.einsum("vuihw,hwio->vuo", view, kernel, optimize=True)
            else:
                x = np.einsum("vui,vuio->o", x, kernel)[None, None]
            x = np.maximum(x + layer["bias"], 0.0)
            if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
                x = np.stack([x[i::2, j::2] for i in (0, 1) for j in (0, 1)]).max(0)
        np.testing.assert_allclose(ours[0], x[0, 0], atol=1e-4 * x.max())
    assert np.abs(found[True] - found[False]).max() > 1.0


def test_other_sizes_are_refused(weights):
    with pytest.raises(ValueError, match="224"):
        vgg_face.features(weights, jnp.zeros((1, 112, 112, 3)))


def test_both_layouts_of_matconvnet_give_the_network(weights, tmp_path):
    for write in (write_new_mat, write_old_mat):
        more = weights | {
            "fc8": {"kernel": np.ones((1, 1, 128, 9)), "bias": np.ones(9)}
        }
        path = write(tmp_path / f"{write.__name__}.mat", more)
        _assert_equal(vgg_face_files.load_vgg_face(path, width=WIDTH), weights)


@pytest.mark.parametrize(
    "names", [{}, {"kernel": "{0}_W_1:0", "bias": "{0}_b_1:0"},
              {"kernel": "{0}_W", "bias": "{0}_b"}]
)  # fmt: skip
def test_keras_gives_the_same_network(weights, tmp_path, names):
    path = write_keras(tmp_path / "vgg.h5", weights, **names)
    _assert_equal(vgg_face_files.load_vgg_face(path, width=WIDTH), weights)


def test_a_wrong_order_of_channels_shows(weights, tmp_path):
    """The same network in both files agrees on an image; one for RGB in Keras's does
    not, as one for BGR in MatConvNet's would not."""
    image = np.random.default_rng(2).uniform(size=(1, 224, 224, 3)).astype(np.float32)
    image[..., 0] *= 0.3
    features = jax.jit(vgg_face.features)
    rgb, bgr, wrong = (
        np.asarray(features(vgg_face_files.load_vgg_face(path, width=WIDTH), image))
        for path in (
            write_new_mat(tmp_path / "a.mat", weights),
            write_keras(tmp_path / "b.h5", weights),
            write_keras(tmp_path / "c.h5", weights, reverse=False),
        )
    )
    np.testing.assert_allclose(rgb, bgr, rtol=1e-6)
    assert np.abs(rgb - wrong).max() > 0.05 * np.abs(rgb).max()


def _swapped(weights, name, **change):
    return weights | {name: weights[name] | change}


def _mat_bomb(path, _):
    body = zlib.compress(bytes(4 << 20), 1)
    tag = np.array([15, len(body)], "<u4").tobytes()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + tag + body)
    return path


def _other_variables(path, _):
    scipy.io.savemat(path, {"a": np.ones(3)})
    return path


def _text_file(path, _):
    path.write_text("no weights")
    return path


def _cut(path, weights):
    write_new_mat(path, weights)
    path.write_bytes(path.read_bytes()[:90_000])
    return path


def _wrong_kind(path, weights):
    """A byte of the kind of some numbers, at which SciPy's reader ends the process."""
    write_new_mat(path, weights)
    data = bytearray(path.read_bytes())
    place = data.index(weights["conv1_1"]["kernel"].tobytes("F"))
    data[place - 7] = 45
    path.write_bytes(data)
    return path


def _not_a_list(path, _):
    scipy.io.savemat(path, {"layers": np.ones((1, 30))})
    return path


BAD = {
    "missing layer": (
        lambda p, w: write_new_mat(p, {k: v for k, v in w.items() if k != "conv3_2"}),
        "conv3_2.*missing",
    ),
    "transposed": (
        lambda p, w: write_new_mat(
            p, _swapped(w, "fc6", kernel=w["fc6"]["kernel"].transpose(3, 2, 1, 0))
        ),
        "fc6/kernel' must have shape",
    ),
    "another width": (
        lambda p, w: write_new_mat(
            p, _swapped(w, "conv2_1", kernel=np.ones((3, 3, 2, 5), np.float32))
        ),
        "conv2_1/kernel' must have shape",
    ),
    "not finite": (
        lambda p, w: write_old_mat(
            p, _swapped(w, "conv1_2", bias=np.full(2, np.nan, np.float32))
        ),
        "conv1_2/bias' must hold finite",
    ),
    "bomb": (_mat_bomb, "expands to more than"),
    "other variables": (_other_variables, "need a list layers"),
    "text": (_text_file, "neither a .mat file"),
    "cut off": (_cut, "damaged"),
    "wrong kind": (_wrong_kind, "unknown kind"),
    "not a list": (_not_a_list, "need a list layers"),
    "keras, missing": (
        lambda p, w: write_keras(p, {k: v for k, v in w.items() if k != "fc7"}),
        "fc7/kernel:0' is missing",
    ),
    "keras, wrong size": (
        lambda p, w: write_keras(
            p, _swapped(w, "fc6", kernel=np.ones((7, 6, 16, 128), np.float32))
        ),
        "fc6/fc6/kernel:0' must have shape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_is_refused_by_name(weights, tmp_path, case, monkeypatch):
    write, message = BAD[case]
    monkeypatch.setattr(file_guard, "LIMIT", 3 << 20)
    path = write(tmp_path / "bad.file", weights)
    with pytest.raises(UserError, match=message) as caught:
        vgg_face_files.load_vgg_face(path, width=WIDTH)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text


def test_links_out_of_a_keras_file_are_not_followed(weights, tmp_path):
    h5py = pytest.importorskip("h5py")
    write_keras(tmp_path / "other.h5", weights)
    path = tmp_path / "links.h5"
    with h5py.File(path, "w") as file:
        for name in weights:
            file[name] = h5py.ExternalLink("other.h5", f"/{name}")
    with pytest.raises(UserError, match="conv1_1.*another place"):
        vgg_face_files.load_vgg_face(path, width=WIDTH)


def test_without_h5py_the_extra_is_named(weights, tmp_path, monkeypatch):
    path = write_keras(tmp_path / "vgg.h5", weights)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"unsup3d_jax\[h5\]"):
        vgg_face_files.load_vgg_face(path, width=WIDTH)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.mat: no such file"):
        vgg_face_files.load_vgg_face(tmp_path / "none.mat")
