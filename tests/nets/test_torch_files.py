"""Pickles are read, and never run."""

import collections
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch_zip

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import file_guard, torch_files


class _Runs:
    """A pickle of this creates the file `path` when it is loaded carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_numpy_pickle_is_read_in_every_protocol(tmp_path):
    tree = {"a": [np.arange(6.0).reshape(2, 3)], "b": np.float32([1.5])}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        file = tmp_path / f"{protocol}.ckpt"
        file.write_bytes(pickle.dumps(tree, protocol=protocol))
        if protocol == 5:  # numpy adds a newer helper there: refused, clearly
            with pytest.raises(UserError, match="numpy"):
                torch_files.read_numpy_pickle(file)
            continue
        found = torch_files.read_numpy_pickle(file)
        np.testing.assert_array_equal(found["a"][0].array(), tree["a"][0])
        np.testing.assert_array_equal(found["b"].array(), tree["b"])


@pytest.mark.parametrize("read", ["read_numpy_pickle", "read_torch_file"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, read, protocol):
    file, trap = tmp_path / "evil.pth", tmp_path / "trap"
    file.write_bytes(pickle.dumps({"w": _Runs(trap)}, protocol=protocol))
    with pytest.raises(UserError, match="refused"):
        getattr(torch_files, read)(file)
    assert not trap.exists()


@pytest.mark.parametrize("foreign", [False, True])
def test_malicious_zip_is_refused_and_not_run(tmp_path, foreign):
    file, trap = tmp_path / "evil.pth", tmp_path / "trap"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"w": _Runs(trap)}, protocol=2))
    with pytest.raises(UserError, match="mkdir.*refused"):
        torch_files.read_torch_file(file, foreign_classes=foreign)
    assert not trap.exists()


def test_object_arrays_and_damaged_files_are_errors(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(np.array([{}], dtype=object), protocol=2))
    with pytest.raises(UserError, match="not numbers"):
        torch_files.read_numpy_pickle(file)
    for junk in (b"", b"junk", b"PK\x03\x04junk"):
        file.write_bytes(junk)
        with pytest.raises(UserError, match=str(file)):
            torch_files.read_torch_file(file)
    with pytest.raises(UserError, match="no such file"):
        torch_files.read_torch_file(tmp_path / "missing.pth")


def _foreign_module():
    module = types.ModuleType("vanished_package")

    class Log:
        def __init__(self):
            self.data = {"loss": [1.0, 2.0]}

    Log.__module__, Log.__qualname__ = "vanished_package", "Log"
    module.Log = Log
    return module


@pytest.mark.parametrize("zipped", [False, True])
def test_torch_files_are_read_without_torch_or_the_pickled_class(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    shared = base.t()[1:, ::2]  # a strided view with an offset
    module = _foreign_module()
    sys.modules["vanished_package"] = module
    file = tmp_path / "weights.pth"
    try:
        saved = {
            "net": collections.OrderedDict(
                base=base, shared=shared, parameter=torch.nn.Parameter(base[:1])
            ),
            "half": base.to(torch.bfloat16),
            "long": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            "log": module.Log(),
            "epoch": 30,
        }
        torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules["vanished_package"]

    with pytest.raises(UserError, match="vanished_package"):
        torch_files.read_torch_file(file)
    found = torch_files.read_torch_file(file, foreign_classes=True)
    assert found["epoch"] == 30
    assert found["log"].name == "vanished_package.Log"
    np.testing.assert_array_equal(found["net"]["base"].array(), base.numpy())
    np.testing.assert_array_equal(found["net"]["shared"].array(), shared.numpy())
    np.testing.assert_array_equal(found["net"]["parameter"].array(), base[:1].numpy())
    np.testing.assert_array_equal(found["half"].array(), base.numpy())
    assert found["long"].array() == 7
    assert found["empty"].array().shape == (0, 3)

    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="weights.pth"):
        found = torch_files.read_torch_file(file, foreign_classes=True)
        [t.array() for t in found["net"].values()]


def test_tensor_beyond_its_storage_is_an_error(tmp_path):
    file = tmp_path / "4.pth"
    torch_zip.save({"w": np.zeros(4, np.float32)}, file)
    budget = file_guard.Budget(file)
    store = torch_files._Storage("0", "<f4", 4, lambda: np.zeros(4, "<f4"))
    for offset, shape, strides in ((2, (3,), (1,)), (0, (2, 2), (9, 1))):
        with pytest.raises(file_guard.Refused, match="does not fit"):
            torch_files._Tensor(budget, store, offset, shape, strides)
    for offset, shape in ((-1, (1,)), (0, (1 << 50,)), (0, (-1,)), (0, (1.5,))):
        with pytest.raises(file_guard.Refused, match="impossible shape"):
            torch_files._Tensor(budget, store, offset, shape, (1,))
    # Steps of 0: what is small in the file is 4 TB.
    wide = torch_files._Tensor(budget, store, 0, (1 << 20, 1 << 20), (0, 0))
    with pytest.raises(UserError, match="4.pth: expands to more than 1,024 MiB"):
        wide.array()
