"""Landmarks on disk: three layouts, what is missing, and what is wrong with a file."""

import sqlite3

import numpy as np
import pytest

from unsup3d_jax.data import landmark_files
from unsup3d_jax.errors import UserError


def pts_text(points, *, declared=None):
    rows = "".join(f"{x:.3f} {y:.3f}\n" for x, y in points)
    count = len(points) if declared is None else declared
    return f"version: 1\nn_points:  {count}\n{{\n{rows}}}\n"


def csv_text(faces, count=21):
    lines = ["image," + ",".join(f"x{i},y{i},v{i}" for i in range(1, count + 1))]
    for name, points, known in faces:
        numbers = [
            f"{x:g},{y:g},{v:d}" for (x, y), v in zip(points, known, strict=True)
        ]
        lines.append(",".join([name, *numbers]))
    return "\n".join(lines) + "\n"


def write_aflw(path, faces):
    """The tables of AFLW's database, as much of them as is read, and a column more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE FaceImages (file_id TEXT, filepath TEXT, width INT)")
        db.execute("CREATE TABLE Faces (face_id INTEGER PRIMARY KEY, file_id TEXT)")
        db.execute(
            "CREATE TABLE FeatureCoords "
            "(face_id INT, feature_id INT, x REAL, y REAL, annot_type_id INT)"
        )
        for face, (image, points) in faces.items():
            db.execute("INSERT INTO Faces VALUES (?, ?)", (face, f"id of {image}"))
            found = db.execute("SELECT 1 FROM FaceImages WHERE filepath = ?", [image])
            if not found.fetchone():
                row = (f"id of {image}", image, 500)
                db.execute("INSERT INTO FaceImages VALUES (?, ?, ?)", row)
            for feature, (x, y) in points.items():
                row = (face, feature, x, y, 0)
                db.execute("INSERT INTO FeatureCoords VALUES (?, ?, ?, ?, ?)", row)
    db.close()
    return path


def some_points(count, seed=0):
    return np.random.default_rng(seed).uniform(5, 95, (count, 2)).round(2)


def test_pts_count_pixels_from_one(tmp_path):
    points = some_points(68)
    path = tmp_path / "a.pts"
    path.write_text(pts_text(points) + "anything behind\n")
    np.testing.assert_allclose(landmark_files.read_pts(path), points - 1.0, atol=1e-9)


def test_pts_lie_beside_their_photos(tmp_path):
    for name in ("a.pts", "b/c.PTS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(pts_text(some_points(68)))
    found, missing = landmark_files.find(
        tmp_path, "pts", ["a.jpg", "b/c.PNG", "b/none.jpg"]
    )
    assert missing == [] and list(found) == ["a.jpg", "b/c.PNG"]
    (face,) = found["b/c.PNG"]
    assert face.name == "b/c.PNG" and face.table == tmp_path / "b/c.PTS"
    assert face.points is None


@pytest.mark.parametrize(
    "text, words",
    [
        (pts_text(some_points(66)), "holds 66 landmarks; need 68"),
        (pts_text(some_points(68), declared=67), "'n_points: 68'.*got 67"),
        (pts_text(some_points(68))[:-2], "between lines"),
        ("version: 1\nn_points: 1\n{\n1 2 3\n}\n", "line 4: need x and y"),
        ("version: 1\nn_points: 1\n{\n1 inf\n}\n", "line 4: need x and y"),
        ("hello\n", "line 1: need 'version:'"),
        ("", "between lines"),
        ("x" * (2 << 20), "too large"),
    ],
)
def test_bad_pts_are_refused_by_name(tmp_path, text, words):
    path = tmp_path / "bad.pts"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        landmark_files.read_pts(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_csv_marks_what_is_unknown_and_may_have_several_faces(tmp_path):
    first, second = some_points(21), some_points(21, 1)
    known = np.arange(21) % 3 > 0
    faces = [("a/1.jpg", first, known), ("2.jpg", second, known | True)]
    faces += [("a/1.jpg", second, known | True), ("gone.jpg", first, known)]
    (tmp_path / "landmarks.csv").write_text(csv_text(faces), encoding="utf-8-sig")
    found, missing = landmark_files.find(tmp_path, "csv", ["2.jpg", "a/1.jpg", "x.png"])
    assert missing == ["gone.jpg"] and sorted(found) == ["2.jpg", "a/1.jpg"]
    one, other = found["a/1.jpg"]
    assert (one.name, other.name) == ("a/1.jpg", "a/1.jpg#2")
    np.testing.assert_array_equal(one.points[known], first[known])
    assert np.isnan(one.points[~known]).all()
    np.testing.assert_array_equal(other.points, second)


def test_csv_names_match_in_any_unicode_form(tmp_path):
    faces = [("M\u00fcller.jpg", some_points(68), [1] * 68)]
    (tmp_path / "landmarks.csv").write_text(csv_text(faces, 68), encoding="utf-8")
    found, missing = landmark_files.find(tmp_path, "csv", ["Mu\u0308ller.jpg"])
    assert list(found) == ["Mu\u0308ller.jpg"] and not missing


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "line 1: need the names"),
        ("image,x,y\n", "line 1: need the names"),
        (csv_text([], 5), "holds 5 landmarks; need 68"),
        (csv_text([("a.jpg", some_points(20), [1] * 20)]), None),
        (csv_text([("a.jpg", some_points(21), [2] * 21)]), "line 2: v must be 0 or 1"),
        (
            csv_text([("../a.jpg", some_points(21), [1] * 21)]),
            "line 2: need an image's",
        ),
        (csv_text([("/a.jpg", some_points(21), [1] * 21)]), "line 2: need an image's"),
    ],
)
def test_bad_csv_is_refused_by_name_and_line(tmp_path, text, words):
    path = tmp_path / "landmarks.csv"
    path.write_text(text)
    with pytest.raises(
        UserError, match=words or "line 2: need a path and 63"
    ) as caught:
        landmark_files.read_csv(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("place", ["data/aflw.sqlite", "aflw.sqlite"])
def test_aflw_as_published(tmp_path, place):
    points = {i: (10.5 * i, 300.25 - i) for i in range(1, 22) if i not in (13, 17)}
    table = write_aflw(
        tmp_path / place,
        {39341: ("0/image00002.jpg", points), 39342: ("0/image00002.jpg", {1: (3, 4)}),
         39400: ("2/image9.jpg", {2: (1, 2), 3: (-1, -1)}), 40000: ("3/x.jpg", {})},
    )  # fmt: skip
    before = table.read_bytes()
    (table.parent / "flickr").mkdir()
    base = (table.parent / "flickr").relative_to(tmp_path).as_posix()
    photos = [f"{base}/0/image00002.jpg", f"{base}/2/image9.jpg"]
    found, missing = landmark_files.find(tmp_path, "aflw", photos)
    assert list(found) == photos and not missing
    first, second = found[photos[0]]
    assert (first.name, second.name) == (f"{photos[0]}#39341", f"{photos[0]}#39342")
    for i in range(1, 22):
        expected = points.get(i, (np.nan, np.nan))
        np.testing.assert_array_equal(first.points[i - 1], expected)
    (third,) = found[photos[1]]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(third.points[:, 0])), [1])
    assert table.read_bytes() == before
    assert [p.name for p in table.parent.glob("aflw*")] == ["aflw.sqlite"]


def test_other_databases_are_refused_by_name(tmp_path):
    path = tmp_path / "aflw.sqlite"
    with pytest.raises(UserError, match="need .*data/aflw.sqlite or .*aflw.sqlite"):
        landmark_files.find(tmp_path, "aflw", [])
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="not a readable AFLW database"):
        landmark_files.read_aflw(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE Faces (face_id INT, file_id TEXT)")
    db.close()
    with pytest.raises(UserError, match="no table FaceImages or FeatureCoords"):
        landmark_files.read_aflw(path)
    path.unlink()
    write_aflw(path, {1: ("a.jpg", {22: (1.0, 2.0)})})
    with pytest.raises(UserError, match="from 1 to 21.*face 1 has point 22"):
        landmark_files.read_aflw(path)
    path.unlink()
    write_aflw(path, {1: ("../a.jpg", {2: (1.0, 2.0)})})
    with pytest.raises(UserError, match="face 1: need an image's path"):
        landmark_files.read_aflw(path)


def test_the_number_of_points_names_them():
    assert landmark_files.scheme(68, "a")[0] == "ibug68"
    assert landmark_files.scheme(21, "a")[0] == "aflw21"
    with pytest.raises(UserError, match="file.pts holds 49 landmarks"):
        landmark_files.scheme(49, "file.pts")
    for count, (_, flip) in landmark_files.SCHEMES.items():
        assert len(flip) == count
        assert [flip[flip[i]] for i in range(count)] == list(range(count))


def test_aflw_points_change_places_with_those_across_the_face():
    """u of the flattened mean face (Bas et al., ICCVW 2017, code), left to right."""
    u = [0.221, 0.339, 0.437, 0.563, 0.661, 0.779, 0.304, 0.361, 0.403, 0.597, 0.639]
    u += [0.696, 0.068, 0.455, 0.5, 0.545, 0.932, 0.423, 0.5, 0.577, 0.5]
    flip = np.array(landmark_files.AFLW_FLIP)
    np.testing.assert_allclose(np.array(u)[flip], 1.0 - np.array(u), atol=1e-9)


def test_another_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.layout: expected one of pts, csv, aflw"):
        landmark_files.find(tmp_path, "mat", [])
