"""The authors' D, A, V, L and E, as an independent PyTorch model computes them.

`authors_networks.npz` holds outputs of such networks, narrow ones, and the keys and
shapes of their parameters, which numpy's legacy generator fills (its stream does not
change).
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_zip

from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import import_weights
from unsup3d_jax.nets import networks
from unsup3d_jax.nets.offset_encoder import OffsetEncoder

FILE = Path(__file__).with_name("authors_networks.npz")
NETS = {
    "depth": networks.EncoderDecoder(1, 4, 8, channels=networks.GAN2SHAPE),
    "albedo": networks.EncoderDecoder(3, 4, 8, channels=networks.GAN2SHAPE),
    "view": networks.Encoder(6, 4, channels=networks.GAN2SHAPE),
    "light": networks.Encoder(4, 4, channels=networks.GAN2SHAPE),
    "encoder": OffsetEncoder(5, 3),
}


def _signed(size):
    normal = np.random.RandomState(size).standard_normal((2, size, size, 3))
    return jnp.asarray(np.tanh(normal).astype(np.float32))


def _state(keys, seed):
    rng, state = np.random.RandomState(seed), {}
    for key, shape in keys:
        array = rng.standard_normal(shape)
        if len(shape) == 4:
            array = 1.5 * array / np.sqrt(np.prod(shape[1:]))
        else:
            array = 0.3 * array + (0.0 if key.endswith("bias") else 1.0)
        state[key] = array.astype(np.float32)
    return state


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as arrays:
        found = dict(arrays)
    return found, json.loads(str(found.pop("keys")))


def _tree(keys, size):
    """A whole checkpoint."""
    return {
        name: _state(keys[f"{name}_{size}"], 10 * size + n)
        for n, name in enumerate(["netD", "netA", "netV", "netL", "netEnc"])
    }


@functools.cache
def _shapes_of(name, size):
    image, net = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), NETS[name]
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x), image)["params"]


def _shapes(names, size):
    return {name: _shapes_of(name, size) for name in names}


@pytest.mark.parametrize("size", [64, pytest.param(128, marks=pytest.mark.once)])
@pytest.mark.parametrize("name", list(NETS))
def test_outputs_are_those_of_pytorch(stored, name, size):
    outputs, keys = stored
    theirs = import_weights.NETWORKS[name]
    params = import_weights.convert(
        _tree(keys, size), _shapes([name], size), size, source="numbers"
    )
    found = jax.jit(NETS[name].apply)({"params": params[name]}, _signed(size))
    if found.ndim == 4:
        found = found[:, ::5, ::3]
    if name == "albedo":  # the network proper has no activation
        found = jnp.tanh(found)
    wanted = outputs[f"{theirs}_{size}"]
    atol = 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("size, count", [(64, 3_565_504), (128, 13_789_632)])
def test_the_encoder_has_the_authors_parameter_count(size, count):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    net = OffsetEncoder(512)
    shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_a_file_of_pytorch_is_read(tmp_path, stored):
    keys = stored[1]
    file = tmp_path / "authors.pth"
    torch_zip.save(_tree(keys, 64), file)
    found = import_weights.read_authors_checkpoint(file, _shapes(NETS, 64), 64)
    assert found.keys() == NETS.keys()
    kernel = found["encoder"]["DownBlock_1"]["Conv_1"]["kernel"]
    wanted = _tree(keys, 64)["netEnc"]["network.2.conv2.weight"]
    np.testing.assert_array_equal(kernel, wanted.transpose(2, 3, 1, 0))


def _drop(key):
    return lambda state: state.pop(key)


def _put(key, *shape):
    return lambda state: state.__setitem__(key, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "network, spoil, message",
    [
        ("netD", _drop("network.20.weight"), "netD: key 'network.20.weight'"),
        ("netA", _put("network.42.weight", 1, 4, 5, 5), "42.weight' must have"),
        ("netV", _put("network.12.weight", 1), "netV: unknown key 'network.12.weight'"),
        ("netEnc", _drop("network.2.conv_sc.bias"), "key 'network.2.conv_sc.bias'"),
        ("netEnc", _put("network.3.spy", 1), "netEnc: unknown key 'network.3.spy'"),
        ("netL", dict.clear, "network 'netL' \\(light\\) is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(stored, network, spoil, message):
    tree = _tree(stored[1], 64)
    spoil(tree[network])
    with pytest.raises(UserError, match=message):
        import_weights.convert(tree, _shapes(NETS, 64), 64, source="file")


def test_networks_of_another_size_are_refused(stored):
    keys = stored[1]
    for name, message in (("depth", "netD"), ("view", "netV"), ("encoder", "netEnc")):
        with pytest.raises(UserError, match=f"file: {message}: "):
            import_weights.convert(
                _tree(keys, 64), _shapes([name], 128), 128, source="file"
            )
