"""StyleGAN2s of others, as PyTorch itself wrote and computed them, and our own files.

`data/tiny_stylegan2.npz` holds what an independent PyTorch model of the public layout
computes in float64 from the arrays of `tiny_stylegan2.pt`, all of which are random,
biases and noise strengths too. Inputs are of numpy's legacy generator, whose stream
does not change.
"""

import dataclasses
import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch_zip

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import stylegan2, stylegan2_files, torch_files, weight_files

DATA = Path(__file__).with_name("data")
FILE = DATA / "tiny_stylegan2.pt"


def _normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _same(found, wanted):
    """Within 1e-4 of the largest number."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def _equal(found, wanted):
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def wanted():
    with np.load(DATA / "tiny_stylegan2.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def gan():
    return stylegan2_files.read_stylegan2(FILE)


def test_what_the_network_is_is_read_off_the_shapes(gan):
    assert gan.options == stylegan2.GanOptions(32, (7, 6, 5, 4), style=8)


def test_both_containers_hold_the_same(gan):
    legacy = stylegan2_files.read_stylegan2(DATA / "tiny_stylegan2_legacy.pt")
    _equal(legacy, gan)


def test_images_are_those_of_pytorch(gan, wanted):
    render = jax.jit(stylegan2.generate)
    w = stylegan2.map_latent(gan.mapping, jnp.asarray(_normal(10, 2, 8)), gan.options)
    _same(w, wanted["w"])
    plus = jnp.repeat(w[:, None], gan.options.latents, 1)
    _same(render(gan, plus), wanted["image"])
    truncated = stylegan2.truncate(w, gan.mean_w, 0.7)
    plus = jnp.repeat(truncated[:, None], gan.options.latents, 1)
    _same(render(gan, plus), wanted["truncated_image"])
    plus = jnp.float32(0.7) * _normal(11, 2, gan.options.latents, 8)
    _same(render(gan, plus), wanted["plus_image"])


@pytest.mark.parametrize("batch", [2, 4, 8])
def test_logits_are_those_of_pytorch(gan, wanted, batch):
    judge = jax.jit(stylegan2.discriminate, static_argnums=2)
    signed = jnp.asarray(_normal(12, 8, 32, 32, 3)[:batch])
    _same(judge(gan.discriminator, signed, gan.options), wanted[f"logits_{batch}"])


@pytest.mark.parametrize("name, seed, size", [("", 12, 32), ("large_", 13, 64)])
def test_features_are_those_of_pytorch(gan, wanted, name, seed, size):
    """At 64 px through the first blocks of a 32 px model too."""
    read = jax.jit(stylegan2.discriminator_features, static_argnums=2)
    signed = _normal(seed, 8 if size == 32 else 1, size, size, 3)[:1]
    maps = read(gan.discriminator, jnp.asarray(signed), gan.options)
    assert len(maps) == 3
    for n, found in enumerate(maps):
        _same(found, wanted[f"{name}feature_{n}"])


# --- refusals ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree():
    """The file's numbers, to be spoilt."""
    stored = torch_files.read_torch_file(FILE)
    return {
        name: {key: value.array() for key, value in part.items()}
        if isinstance(part, dict)
        else part.array()
        for name, part in stored.items()
    }


def _spoilt(tree, part, **changes):
    state = dict(tree[part])
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return {**tree, part: state}


def _zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("g_ema", {"conv1__conv__weight": None}, "g_ema: key 'conv1.conv.weight'"),
        ("g_ema", {"convs__7__bias": _zeros(3)}, "g_ema: unknown key 'convs.7.bias'"),
        (
            "g_ema",
            {"convs__3__activate__bias": _zeros(9)},
            r"'convs.3.activate.bias' must have shape \(5,\), found \(9,\)",
        ),
        ("g_ema", {"input__input": None}, "'input.input' must be an array of 4 axes"),
        (
            "g_ema",
            {"to_rgbs__1__upsample__kernel": np.ones((4, 4), np.float32)},
            r"'to_rgbs.1.upsample.kernel' is not the filter \[1, 3, 3, 1\]",
        ),
        ("d", {"final_linear__1__bias": None}, "d: key 'final_linear.1.bias'"),
        (
            "d",
            {"convs__2__conv2__1__weight": _zeros(12, 5, 3, 3)},
            r"'convs.2.conv2.1.weight' must have shape \(6, 5, 3, 3\)",
        ),
        ("d", {"convs__9__0__weight": _zeros(1)}, "d: unknown key"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tree, part, changes, message):
    file = tmp_path / "spoilt.pt"
    torch_zip.save(_spoilt(tree, part, **changes), file)
    with pytest.raises(UserError, match=message) as error:
        stylegan2_files.read_stylegan2(file)
    assert str(file) in str(error.value)


def test_a_part_that_is_missing_is_named(tmp_path, tree):
    file = tmp_path / "half.pt"
    for part in ("g_ema", "d"):
        torch_zip.save({k: v for k, v in tree.items() if k != part}, file)
        with pytest.raises(UserError, match=f"'{part}' is missing"):
            stylegan2_files.read_stylegan2(file)


def test_noise_maps_that_are_missing_are_drawn_with_a_warning(tmp_path, tree, caplog):
    noises = {k: None for k in tree["g_ema"] if k.startswith("noises.")}
    file = tmp_path / "noiseless.pt"
    torch_zip.save(_spoilt(tree, "g_ema", **noises), file)
    gan = stylegan2_files.read_stylegan2(file)
    assert "no noise maps" in caplog.text
    assert [n.shape[0] for n in gan.noise] == list(gan.options.noise_sizes)


def test_parameters_behind_a_prefix_of_several_gpus_are_found(tmp_path, tree, gan):
    file = tmp_path / "parallel.pt"
    parts = {
        part: {f"module.{key}": value for key, value in tree[part].items()}
        for part in ("g_ema", "d")
    }
    torch_zip.save({**tree, **parts}, file)

    found = stylegan2_files.read_stylegan2(file)
    _equal(found, gan)


def test_a_wider_network_than_expected_is_refused(gan):
    """config-f where config-e is wanted: twice the channels of the large maps."""
    narrow = dataclasses.replace(gan.options, channels=(7, 6, 5, 2))
    with pytest.raises(UserError, match=r"channels \(7, 6, 5, 4\), expected \(7, 6, 5"):
        stylegan2_files.read_stylegan2(FILE, expected=narrow)


class _Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_nothing_is_executed_and_half_a_file_is_refused(tmp_path):
    file, trap = tmp_path / "evil.pt", tmp_path / "trap"
    file.write_bytes(pickle.dumps({"g_ema": _Runs(trap)}, protocol=2))
    with pytest.raises(UserError, match="refused"):
        stylegan2_files.read_stylegan2(file)
    assert not trap.exists()
    for whole in (FILE, DATA / "tiny_stylegan2_legacy.pt"):
        file.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(UserError, match=str(file)):
            stylegan2_files.read_stylegan2(file)


def test_a_latent_is_read_in_every_form(tmp_path):
    file, w = tmp_path / "latent.pt", _normal(18, 8)
    named = {"latent": w, "noise": _zeros(2)}
    for tree in (w, w[None], named, {"a.png": {"latent": w}}):
        torch_zip.save(tree, file)
        np.testing.assert_array_equal(stylegan2_files.read_latent(file, 8), w)
    for tree, message in (
        (_zeros(9), r"'latent' must have shape \(8,\), found \(9,\)"),
        ({"w": w, "x": w}, "'latent' is missing"),
    ):
        torch_zip.save(tree, file)
        with pytest.raises(UserError, match=message):
            stylegan2_files.read_latent(file, 8)


# --- our own file --------------------------------------------------------------------


def test_our_file_gives_back_what_was_written(tmp_path, gan):
    file = tmp_path / "gan.safetensors"
    stylegan2_files.write_stylegan2(file, gan, metadata={"data": "open faces"})
    found = stylegan2_files.load_stylegan2(file)
    assert found.options == gan.options
    _equal(found, gan)
    assert stylegan2_files.read_metadata(file) == {"data": "open faces"}
    whole = file.stat().st_size
    stylegan2_files.write_stylegan2(file, gan, np.float16)
    found = stylegan2_files.read_stylegan2(file)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gan), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert file.stat().st_size < 0.65 * whole


def test_our_file_is_refused_where_it_is_not_ours(tmp_path, gan):
    file = tmp_path / "gan.safetensors"
    stylegan2_files.write_stylegan2(file, gan)
    about = weight_files.safetensors_metadata(file)
    arrays = safetensors.numpy.load_file(file)

    def refused(arrays, about, message):
        file.write_bytes(safetensors.numpy.save(arrays, about))
        with pytest.raises(UserError, match=message):
            stylegan2_files.read_stylegan2(file)

    refused(arrays, {}, "metadata 'stylegan2' is missing")
    refused(arrays, {"stylegan2": "{}"}, "not what we write")
    huge = about["stylegan2"].replace("[7,", "[70000,")
    refused(arrays, {"stylegan2": huge}, "impossible numbers")
    other = about["stylegan2"].replace("[7,", "[9,")
    refused(arrays, {"stylegan2": other}, "must have shape")
    refused({**arrays, "spy": _zeros(1)}, about, "unknown key 'spy'")
    del arrays["mean_w"]
    refused(arrays, about, "'mean_w' is missing")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        stylegan2_files.read_stylegan2(file)


def test_what_cannot_be_written_is_refused(tmp_path, gan):
    write = stylegan2_files.write_stylegan2
    with pytest.raises(ValueError, match=r"ends in .safetensors"):
        write(tmp_path / "gan.npz", gan)
    with pytest.raises(ValueError, match="float32 or float16"):
        write(tmp_path / "gan.safetensors", gan, np.int8)
    with pytest.raises(ValueError, match="mean_w is not finite in float16"):
        write(tmp_path / "gan.safetensors", gan.replace(mean_w=1e6 + gan.mean_w), "f2")
    assert not list(tmp_path.iterdir())


def test_a_name_that_does_not_ship_is_refused():
    with pytest.raises(UserError, match=r"neither a generator that ships \(open_faces"):
        stylegan2_files.load_stylegan2("open_cats")
    with pytest.raises(UserError, match="no such file"):
        stylegan2_files.load_stylegan2("nowhere.pt")
