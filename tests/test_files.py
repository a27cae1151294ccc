"""A file, or a folder, is the old one or the new one, whole."""

import stat
import subprocess
import sys

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


_KILLED = """
import os, pathlib, shutil, signal, sys
from unsup3d_jax import files
at, target, aside = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
replace, calls = os.replace, []
def replacing(*ends):
    calls.append(ends)
    if at == f"before move {len(calls)}":
        kill()
    replace(*ends)
os.replace = replacing
with files.replacing_folder(target, aside, ours=("gone",)) as new:
    (new / "a").write_text("new")
    if at == "writing":
        kill()
    shutil.rmtree = kill if at == "end" else shutil.rmtree
"""


@pytest.mark.parametrize(
    "at, content",
    [
        ("writing", "old"),
        ("before move 1", "old"),
        ("before move 2", "old"),
        ("end", "new"),
        ("never", "new"),
    ],
)
def test_a_killed_writer_leaves_the_old_folder_or_the_new_one(tmp_path, at, content):
    target, aside = tmp_path / "face", tmp_path / ".aside"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "gone").write_text("of the last time")
    (target / "notes").mkdir()
    (target / "notes" / "mine").write_text("mine")
    command = [sys.executable, "-c", _KILLED, at, str(target), str(aside)]
    done = subprocess.run(command)
    assert (done.returncode == 0) == (at == "never")
    files.restore_folders(aside, tmp_path)
    assert (target / "a").read_text() == content
    assert (target / "notes" / "mine").read_text() == "mine"
    assert (target / "gone").exists() == (content == "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".aside", "face"]
    assert not list(aside.iterdir())


def test_a_body_that_fails_leaves_no_new_folder(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with files.replacing_folder(tmp_path / "face", tmp_path / ".aside") as new:
            (new / "a").write_text("half")
            _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == [".aside"]
    assert not list((tmp_path / ".aside").iterdir())
