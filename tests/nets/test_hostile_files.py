"""No file of weights does more than be read, or be refused by one line."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch_zip

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import file_guard, torch_files, weight_files

PROGRAM = Path(__file__).with_name("hostile_files.py")
measured = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is measured on Linux"
)


def _seeds(first, last, folder):
    """In a process of its own, whose memory is measured and bounded."""
    command = [sys.executable, PROGRAM, str(first), str(last), folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    assert found["read"] + found["refused"] == last - first
    assert found["read"] and found["refused"]


@measured
def test_a_few_hundred_damaged_files(tmp_path):
    _seeds(0, 300, tmp_path)


@measured
@pytest.mark.slow
def test_many_thousand_damaged_files(tmp_path):
    _seeds(300, 20_000, tmp_path)


# Each is a whole pickle of a few bytes.
TUPLES = b"2\x86" * 60  # a tuple of the same two tuples of ...
BOMBS = {
    "a memo of 16 GB": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a key that takes 2^60 steps to hash": b"\x80\x02}(K\x01" + TUPLES + b"K\x01u.",
    "a dictionary that holds itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "2^60 leaves": b"\x80\x02}X\x05\x00\x00\x00model]" + TUPLES + b"s.",
    "bytes of 1 TB": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",
    "an array of 16 GB": b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",
    "a number of 5000 digits": b"\x80\x02}I" + b"9" * 5000 + b"\nK\x01s.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("format", ["pickle", "zip"])
def test_a_few_bytes_that_ask_for_much(tmp_path, name, format):
    path = tmp_path / "bomb.pth"
    path.write_bytes(BOMBS[name])
    if format == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", BOMBS[name])
    read = getattr(
        torch_files, "read_torch_file" if format == "zip" else "read_numpy_pickle"
    )
    with pytest.raises(UserError, match=r"bomb.pth.*(refused|damaged|is missing)"):
        tree = weight_files.unwrapped(read(path))
        weight_files.require_array(tree, "a", (1,), source=str(path))


def test_the_budget_is_asked_before_anything_is_read(tmp_path, monkeypatch):
    """5 kB that would be 4 MB, for a limit of 1 MB."""
    monkeypatch.setattr(file_guard, "LIMIT", 2**20)
    path = tmp_path / "zeros.npz"
    zeros = np.zeros((512, 1024), np.float32)
    np.savez_compressed(path, a=zeros, b=zeros)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(UserError, match="zeros.npz: expands to more than 1 MiB"):
        weight_files.read_npz(path)
    monkeypatch.undo()
    assert weight_files.read_npz(path)["b"].shape == (512, 1024)


def test_a_file_larger_than_the_budget_may_be_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(file_guard, "LIMIT", 2**14)
    tree = {f"{n}": np.full(5000, n, np.float32) for n in range(3)}
    torch_zip.save(tree, tmp_path / "large.pth")
    np.savez(tmp_path / "large.npz", **tree)
    for found in (
        torch_files.read_torch_file(tmp_path / "large.pth"),
        weight_files.read_npz(tmp_path / "large.npz"),
    ):
        for name, array in tree.items():
            for _ in range(3):  # memory that is given back is not counted
                np.testing.assert_array_equal(found[name].array(), array)


def test_only_what_a_network_asks_for_is_read(tmp_path, monkeypatch):
    """An array of another shape is refused by what the file says of it."""
    np.savez(tmp_path / "x.npz", a=np.zeros((100, 3), np.float32))
    torch_zip.save({"a": np.zeros((100, 3), np.float32)}, tmp_path / "x.pth")
    monkeypatch.setattr(file_guard.StoredArray, "array", None)
    for found in (
        weight_files.read_npz(tmp_path / "x.npz"),
        torch_files.read_torch_file(tmp_path / "x.pth"),
    ):
        with pytest.raises(
            UserError, match=r"must have shape \(3,\), found \(100, 3\)"
        ):
            weight_files.require_array(found, "a", (3,), source="x")


def test_arrays_that_are_no_numbers_are_left_alone(tmp_path):
    numbers = {"half": np.arange(3, dtype=">f2"), "columns": np.ones((2, 3), order="F")}
    others = {"text": np.array(["a"]), "object": np.array([{}], object)}
    np.savez(tmp_path / "x.npz", **numbers, **others)
    found = weight_files.read_npz(tmp_path / "x.npz")
    assert found.keys() == numbers.keys()
    for name, array in numbers.items():
        np.testing.assert_array_equal(found[name].array(), array)


def test_numbers_and_tuples_among_the_keys(tmp_path):
    """As in the state of an optimizer, or a log."""
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps({0: 1, (1, 2): 2, None: 3, "a": 4}, 2))
    assert torch_files.read_numpy_pickle(path) == {"0": 1, "None": 3, "a": 4}
