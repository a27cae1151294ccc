"""A file is the old one or the new one, whole."""

import stat

import pytest

from unsup3d_jax import files


@pytest.mark.parametrize("shared", [False, True])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside(tmp_path, shared):
    path = tmp_path / "made" / "config.json"
    files.write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt):
        with files.replacing(path, shared=shared) as file:
            file.write(b"new")
            file.flush()
            assert path.read_text() == "old"
            raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_others_may_read_what_they_could_read_before(tmp_path):
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_text("")
    with files.replacing(written, shared=True) as file:
        file.write(b"x")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (plain, written)]
    assert modes[0] == modes[1]


def test_what_json_does_not_know_becomes_null():
    nan, infinite = float("nan"), float("inf")
    value = {"a": [nan, 1.5, (-infinite,)], "b": {"c": nan, "d": "text", "e": None}}
    expected = {"a": [None, 1.5, [None]], "b": {"c": None, "d": "text", "e": None}}
    assert files.finite(value) == expected
