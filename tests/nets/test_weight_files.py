"""Arrays of .safetensors files, of wrapped dictionaries, and their checks."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import weight_files


def test_require_array_names_key_and_shapes():
    tree = {"w": np.zeros((2, 3), np.float32), "n": np.float32([np.nan])}
    with pytest.raises(UserError, match=r"'w' must have shape \(3, 2\), found \(2"):
        weight_files.require_array(tree, "w", (3, 2), source="f")
    with pytest.raises(UserError, match="'v' is missing"):
        weight_files.require_array(tree, "v", (1,), source="f")
    with pytest.raises(UserError, match="finite"):
        weight_files.require_array(tree, "n", (1,), source="f")


def test_safetensors_keep_their_types_but_bfloat16(tmp_path):
    file = tmp_path / "x.safetensors"
    rng = np.random.default_rng(0)
    arrays = {
        "f4": rng.normal(size=(2, 3)).astype(np.float32),
        "f2": rng.normal(size=4).astype(np.float16),
        "i8": np.arange(3),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5),
        "short": np.array([1.5, -2.0, 3.0e38, 1e-40], ml_dtypes.bfloat16),
    }
    save_file(arrays, file)
    found = weight_files.read_safetensors(file)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        wanted = array.astype(np.float32) if name == "short" else array
        np.testing.assert_array_equal(found[name].array(), wanted)
        assert found[name].array().dtype == wanted.dtype
        assert found[name].shape == wanted.shape


def test_safetensors_that_cannot_be_read_are_named(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"w": np.zeros(4, np.float32)}, file)
    whole = file.read_bytes()
    huge = json.dumps(
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1]}}
    )
    for damage in (
        b"",
        whole[:-4],
        whole + b"more",
        (1 << 40).to_bytes(8, "little") + whole[8:],  # a header of 1 TB
        len(huge).to_bytes(8, "little") + huge.encode() + b"0",
        whole.replace(b"F32", b"X32"),
        b"PK\x03\x04 no such thing",
    ):
        file.write_bytes(damage)
        with pytest.raises(UserError, match="x.safetensors: not a readable"):
            weight_files.read_safetensors(file)
    with pytest.raises(UserError, match="no such file"):
        weight_files.read_safetensors(tmp_path / "gone.safetensors")


def test_wrappers_and_prefixes_are_found():
    state = {"module.a.weight": 1, "module.b.a.weight": 2}
    for tree in (state, {"model": state}, {"net": {"state_dict": state}, "epoch": 3}):
        assert weight_files.unwrapped(tree) is state
    assert weight_files.prefix_of(state, "a.weight") == "module."
    assert weight_files.prefix_of(state, "weight") == "module.a."
    assert weight_files.prefix_of(state, "eight") is None
