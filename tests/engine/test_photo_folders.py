"""Which folder is whose photo's."""

import json
from pathlib import Path

import pytest

from unsup3d_jax.engine.photo_folders import (
    RECORD,
    Made,
    folders_of,
    is_current,
    photo_of,
    write_record,
    written_names,
)

MADE = Made(parameters="p", options="o")


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def photo(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or str(path))
    return path


def fill(folder: Path, file: Path) -> None:
    """As if the photo had been reconstructed there."""
    folder.mkdir(exist_ok=True)
    (folder / "factors.npz").write_text("arrays")
    write_record(folder, photo_of(file), (0,), MADE, {})


def names(files, out):
    return [folder.name for folder in folders_of(files, out).values()]


def test_photos_of_one_stem_get_numbers_past_the_names_of_others(out):
    files = [Path(n) for n in ("x/face.png", "y/face.png", "y/FACE-2.png")]
    assert names(files, out) == ["face", "face-2", "FACE-2-2"]


def test_no_name_leads_out_of_the_output_or_hides(out):
    files = ["a/...jpg", "b/...jpg", "c/.. .png", "d/.face.jpg", "e/face.jpg"]
    expected = ["photo", "photo-2", "photo-3", "face", "face-2"]
    assert names([Path(n) for n in files], out) == expected


def test_a_photo_keeps_its_folder_when_one_is_added_before(tmp_path, out):
    late = photo(tmp_path / "in" / "y" / "face.png")
    fill(folders_of([late], out)[late], late)
    early = photo(tmp_path / "in" / "a" / "face.png")
    assert names([early, late], out) == ["face-2", "face"]
    fill(out / "face-2", early)
    assert names([late], out) == ["face"] and names([early], out) == ["face-2"]


def test_a_photo_that_was_moved_is_known_by_its_content(tmp_path, out):
    file = photo(tmp_path / "in" / "face.png", "the same bytes")
    fill(out / "face", file)
    copy = photo(tmp_path / "copies" / "face.png", "the same bytes")
    assert names([copy], out) == ["face-2"]  # the first is still there
    moved = file.rename(tmp_path / "in" / "other.png")
    assert names([moved], out) == ["face"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, out):
    files = [photo(tmp_path / "in" / f"{n}.png") for n in ("old", "mine", "empty")]
    for name, entry in (("old", "factors.npz"), ("mine", "holiday.txt")):
        photo(out / name / entry)
    (out / "empty").mkdir()
    assert names(files, out) == ["old", "mine-2", "empty"]


def test_a_folder_is_current_for_its_photo_as_it_was(tmp_path, out):
    file = photo(tmp_path / "in" / "face.png", "abc")
    folder = out / "face"
    assert not is_current(folder, file, (0,), MADE)
    fill(folder, file)
    assert is_current(folder, file, (0,), MADE)
    assert not is_current(folder, file, (170,), MADE)
    assert not is_current(folder, file, (0,), Made("p", "others"))
    assert not is_current(folder, file, (0,), Made("others", "o"))
    photo(file, "abd")  # as many bytes
    assert not is_current(folder, file, (0,), MADE)
    photo(file, "abc")
    (folder / "factors.npz").write_text("torn")
    assert not is_current(folder, file, (0,), MADE)
    assert written_names(folder) == {RECORD, "factors.npz"}


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"photo": 1, "files": {}}', "[" * 10**5, "\x80"]
)
def test_a_damaged_record_is_none(tmp_path, out, damage):
    file = photo(tmp_path / "in" / "face.png")
    fill(out / "face", file)
    (out / "face" / RECORD).write_text(damage, encoding="latin-1")
    assert not is_current(out / "face", file, (0,), MADE)
    assert names([file], out) == ["face"] and not written_names(out / "face")


def test_a_name_that_is_no_text_is_recorded(tmp_path, out):
    file = photo(tmp_path / "in" / "\udce9t\udce9.png", "x")
    fill(out / "summer", file)
    record = json.loads((out / "summer" / RECORD).read_text())
    assert record["photo"]["path"] == str(file)
    assert names([file], out) == ["summer"]
