"""Stored arrays come back as they were, or not at all."""

import numpy as np

from unsup3d_jax.data import array_files


def test_stored_arrays_come_back(tmp_path):
    arrays = {"image": np.arange(12, dtype=np.uint8).reshape(3, 4), "x": np.ones(2)}
    path = tmp_path / "folder" / "a.npz"
    assert array_files.read(path) is None
    array_files.write(path, arrays)
    stored = array_files.read(path)
    assert stored is not None and stored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
        assert stored[name].dtype == array.dtype
    some = array_files.read(path, {"x", "other"})
    assert some is not None and some.keys() == {"x"}
    path.write_bytes(b"")
    assert array_files.read(path) is None


def test_no_flipped_byte_goes_unseen(tmp_path):
    arrays = {"image": np.arange(20, dtype=np.uint8), "x": np.ones(2, np.float32)}
    path = tmp_path / "a.npz"
    array_files.write(path, arrays)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0x02, 0x80):
            harmed = bytearray(whole)
            harmed[place] ^= flip
            path.write_bytes(harmed)
            stored = array_files.read(path)
            if stored is None:
                continue
            assert stored.keys() == arrays.keys(), place
            for name, array in arrays.items():
                np.testing.assert_array_equal(stored[name], array, err_msg=str(place))


def test_an_array_that_seems_shorter_is_not_taken(tmp_path):
    """Then reading ends before the checksum."""
    path = tmp_path / "a.npz"
    array_files.write(path, {"image": np.zeros(20_000, np.uint8)})
    harmed = path.read_bytes().replace(b"(20000,)", b"(00000,)")
    assert harmed != path.read_bytes()
    path.write_bytes(harmed)
    assert array_files.read(path) is None
