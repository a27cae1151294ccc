"""Keypoints on disk: three layouts, encodings, and whatever is wrong with a file."""

import keypoint_samples
import numpy as np
import pytest
from keypoint_samples import COUNT, write_csv, write_photo

from unsup3d_jax.data import keypoint_files
from unsup3d_jax.errors import UserError


@pytest.fixture
def points():
    return keypoint_samples.points()


def test_csv_beside_each_image(tmp_path, points):
    for i in range(COUNT):
        write_photo(tmp_path / f"a/{i}.png", i)
        write_csv(tmp_path / f"a/{i}.csv", points[i], header="u,v,depth\n# hand-made\n")
    write_photo(tmp_path / "a/without.png")
    files, found = keypoint_files.find(tmp_path, "csv")
    assert [f.name for f in files] == ["0.png", "1.png", "2.png", "3.png"]
    np.testing.assert_array_equal(found, points)


def test_npz_names_its_images(tmp_path, points):
    names = [f"{i}.png" for i in (2, 0, 1, 3)]
    for i, name in enumerate(names):
        write_photo(tmp_path / name, i)
    np.savez(tmp_path / "keypoints.npz", names=names, keypoints=points)
    files, found = keypoint_files.find(tmp_path, "npz")
    assert [f.name for f in files] == names
    np.testing.assert_array_equal(found, points)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="1.png, which does not exist"):
        keypoint_files.find(tmp_path, "npz")


def test_3dfaw_folders_and_its_test_list(tmp_path, points):
    for i in range(COUNT):
        write_photo(tmp_path / f"valid_img/{i}.jpg", i)
        write_csv(tmp_path / f"valid_lm/{i}_lm.csv", points[i])
    lines = ["0,valid,center", "1,test,left", "3,test,right"]
    (tmp_path / "list_valid_test.txt").write_text("\n".join(lines) + "\n")
    files, found = keypoint_files.find(tmp_path, "3dfaw")
    assert len(files) == COUNT
    files, found = keypoint_files.find(tmp_path, "3dfaw", split="test")
    assert [f.stem for f in files] == ["1", "3"]
    np.testing.assert_array_equal(found, points[[1, 3]])
    with pytest.raises(UserError, match="train_img"):
        keypoint_files.find(tmp_path, "3dfaw", split="train")


@pytest.mark.parametrize(
    "text, words",
    [
        ("1,2\n", "line 1: need u,v,depth"),
        ("u,v,z\n1,2,x\n", "line 2"),
        ("1,2,nan\n", "line 1"),
        ("# nothing\n", "no line"),
        # A keypoint that is missing is not one less.
        ("1,2,3\nnan,nan,nan\n", "line 2: need u,v,depth, got 'nan,nan,nan'"),
        ("1,2,3\n# seen\n NA ,NA,NA\n", "line 3"),
        ("1,2,3\n-inf,0,0\n", "line 2"),
        ("1,2,3\n,,\n", "line 2"),
        ("1,2,3\n,5,6\n", "line 2"),
        ("1,,2,3\n", "line 1"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, words):
    write_photo(tmp_path / "0.png")
    (tmp_path / "0.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        keypoint_files.find(tmp_path, "csv")


def test_other_mistakes_are_named(tmp_path, points):
    with pytest.raises(UserError, match="not a folder"):
        keypoint_files.find(tmp_path / "none", "csv")
    with pytest.raises(UserError, match="no image has a .csv"):
        keypoint_files.find(tmp_path, "csv")
    with pytest.raises(UserError, match="keypoints.npz"):
        keypoint_files.find(tmp_path, "npz")
    with pytest.raises(UserError, match="--layout"):
        keypoint_files.find(tmp_path, "mat")
    write_photo(tmp_path / "0.png")
    write_photo(tmp_path / "1.png")
    write_csv(tmp_path / "0.csv", points[0])
    write_csv(tmp_path / "1.csv", points[1, :3])
    with pytest.raises(UserError, match="holds 3 keypoints"):
        keypoint_files.find(tmp_path, "csv")


_ROWS = "10,20,0.5\n30,20,0.4\n20,30,0.3\n"
_READ = [[10, 20, 0.5], [30, 20, 0.4], [20, 30, 0.3]]


@pytest.mark.parametrize(
    "raw",
    [
        _ROWS.encode(),
        _ROWS.encode("utf-8-sig"),
        "# größe\n".encode("latin-1") + _ROWS.encode(),
        # 0x85 ends a line for `str.splitlines`, and is "..." in what Windows writes.
        b"# sizes\x85 9,9,9\n" + _ROWS.encode(),
        _ROWS.replace("\n", "\r\n").encode(),
        _ROWS.replace("\n", "\r").encode(),
        _ROWS.replace("\n", ",\n").encode() + b"\n\n",
    ],
    ids=["utf8", "mark", "latin1", "windows", "crlf", "cr", "commas"],
)
def test_every_keypoint_is_read_in_the_encodings_of_spreadsheets(tmp_path, raw):
    (tmp_path / "0.csv").write_bytes(raw)
    np.testing.assert_array_equal(keypoint_files.read_csv(tmp_path / "0.csv"), _READ)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_wide_text_is_named(tmp_path, encoding):
    path = tmp_path / "0.csv"
    path.write_bytes(_ROWS.encode(encoding))
    with pytest.raises(UserError) as caught:
        keypoint_files.read_csv(path)
    assert f"{path}, line 1: need plain text" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_named_where_it_starts(tmp_path):
    path = tmp_path / "0.csv"
    path.write_bytes(_ROWS.encode() + b"\0")
    with pytest.raises(UserError, match="line 4"):
        keypoint_files.read_csv(path)
    with pytest.raises(UserError, match="cannot read .*none.csv"):
        keypoint_files.read_csv(tmp_path / "none.csv")


def test_the_list_of_3dfaw_may_have_a_byte_order_mark(tmp_path, points):
    for i in range(2):
        write_photo(tmp_path / f"valid_img/{i}.jpg", i)
        write_csv(tmp_path / f"valid_lm/{i}_lm.csv", points[i])
    text = "0,test,left\n1,test,right\n"
    (tmp_path / "list_valid_test.txt").write_text(text, encoding="utf-8-sig")
    files, _ = keypoint_files.find(tmp_path, "3dfaw", split="test")
    assert [f.stem for f in files] == ["0", "1"]
