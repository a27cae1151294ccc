"""Two-dimensional landmarks of photos on disk, in three layouts.

pts     300-W and iBUG: beside each `photo.jpg` a file `photo.pts`:

            version: 1
            n_points: 68
            {
            223.5 187.25
            ...
            }

        x and y of one face, where the first pixel's centre is (1, 1).
csv     `FOLDER/landmarks.csv`, a face a line, and one line of names above:

            image,x1,y1,v1,x2,y2,v2,...

        `image` is a path relative to FOLDER, with "/"; the first pixel's centre is
        (0, 0); v is 1 where a point is known and 0 where it is not.
aflw    AFLW as it is published: `FOLDER/data/aflw.sqlite` (or `FOLDER/aflw.sqlite`)
        with its tables Faces, FaceImages and FeatureCoords, and the images beside it
        in `flickr/`. Points that nobody saw have no row.

How many points a face has tells which they are: 68 are iBUG's, 21 are AFLW's. x grows
to the right and y down, in pixels of the upright image. A point that is unknown is NaN.
"""

import contextlib
import csv
import math
import os
import sqlite3
import unicodedata
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from unsup3d_jax.data.keypoint_files import text_lines
from unsup3d_jax.data.open_face.model import LANDMARK_FLIP
from unsup3d_jax.errors import UserError, one_line

LAYOUTS = ("pts", "csv", "aflw")
CSV_NAME = "landmarks.csv"
# AFLW's 21 from the image's left to its right: brows 6, eyes 6, ear, nose 3, ear, mouth
# 3, chin; the landmark that each one becomes in a mirror.
AFLW_FLIP = (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 16, 15, 14, 13, 12, 19, 18, 17, 20)
# Number of points -> name, and the landmark that each one becomes in a mirror.
SCHEMES = {68: ("ibug68", LANDMARK_FLIP), 21: ("aflw21", AFLW_FLIP)}
_MOST_BYTES = 1 << 20  # of a .pts file, which has 2 kB


@dataclass(frozen=True)
class Face:
    """One face in a photo.

    Attributes:
        name: of the photo, and where it has several faces "#" and what tells this one
            from the others.
        table: the file that has its landmarks.
        points: (k, 2) x and y, the first pixel's centre (0, 0), NaN where unknown; None
            of a .pts file, which is read with its photo.
    """

    name: str
    table: Path
    points: Float[np.ndarray, "k 2"] | None = None


def find(
    root: Path, layout: str, photos: Sequence[str]
) -> tuple[dict[str, list[Face]], list[str]]:
    """Lists the faces of a folder's photos.

    Args:
        root: see the module's head.
        layout: one of LAYOUTS.
        photos: names of the images below `root`, relative to it and with "/".

    Returns:
        Photo -> its faces, without photos that have none; and names of photos that a
        table has and the folder has not.

    Raises:
        UserError: if there is no such layout or no such table, or the table is not as
            the module's head says, naming the file and the line.
    """
    if layout == "pts":
        found = {}
        for name in photos:
            for ending in (".pts", ".PTS"):
                table = (root / name).with_suffix(ending)
                if table.is_file():
                    found[name] = [Face(name, table)]
                    break
        return found, []
    if layout == "csv":
        table = root / CSV_NAME
        rows = read_csv(table)
    elif layout == "aflw":
        table, rows = _aflw(root)
    else:
        raise UserError(
            f"data.layout: expected one of {', '.join(LAYOUTS)}, got '{layout}'."
        )
    # macOS stores names in another Unicode form than most programs write.
    stored = {unicodedata.normalize("NFC", name): name for name in photos}
    found, missing = {}, {}
    for name, key, points in rows:
        photo = stored.get(unicodedata.normalize("NFC", name))
        if photo is None:
            missing[name] = None
            continue
        faces = found.setdefault(photo, [])
        faces.append(Face(f"{photo}#{key}" if key else photo, table, points))
    return found, list(missing)


def scheme(count: int, source: str | Path) -> tuple[str, tuple[int, ...]]:
    """Name of the landmarks, and what each becomes in a mirror, by their number.

    Raises:
        UserError: naming the source, if there are neither 68 nor 21.
    """
    if count not in SCHEMES:
        raise UserError(
            f"{source} holds {count} landmarks; need 68 (iBUG's) or 21 (AFLW's)."
        )
    return SCHEMES[count]


def read_pts(path: Path) -> Float[np.ndarray, "k 2"]:
    """Reads a file of the layout pts; its first pixel (1, 1) becomes (0, 0).

    Raises:
        UserError: naming the file and the line, if it is not as the module's head says.
    """
    with contextlib.suppress(OSError):  # reading says what is wrong
        if os.path.getsize(path) > _MOST_BYTES:
            raise UserError(f"{path}: too large for a .pts file.")
    declared, rows, inside = None, [], False
    for number, line in enumerate(text_lines(path), 1):
        words, where = line.split(), f"{path}, line {number}"
        if not words or (not inside and line.lstrip().startswith("//")):
            continue
        if words == ["}"] and inside:
            break
        if inside:
            rows.append(_numbers(words, 2, where, "x and y", line))
        elif words == ["{"]:
            inside = True
        elif words[0] == "n_points:" and len(words) == 2 and words[1].isdecimal():
            declared = int(words[1])
        elif words[0] != "version:":
            raise UserError(
                f"{where}: need 'version:', 'n_points: N' or '{{', got {line[:80]!r}."
            )
    else:
        raise UserError(f"{path}: need points between lines '{{' and '}}'.")
    if declared != len(rows):
        raise UserError(
            f"{path}: need 'n_points: {len(rows)}' for its {len(rows)} points, got "
            f"{declared}."
        )
    scheme(len(rows), path)
    return np.array(rows) - 1.0


def _numbers(
    words: Sequence[str], count: int, where: str, what: str, line: str
) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or any(math.isinf(value) for value in values):
        raise UserError(f"{where}: need {what}, got {line[:80]!r}.")
    return values


def read_csv(path: Path) -> list[tuple[str, str, Float[np.ndarray, "k 2"]]]:
    """Reads a file of the layout csv.

    Returns:
        (image, what tells this face of the image from its first one, points).

    Raises:
        UserError: naming the file and the line, if it is not as the module's head says.
    """
    rows = _rows_of_csv(path)
    names = [name.strip() for name in next(rows, [])]
    count = len(names) // 3
    wanted = ["image", *(f"{axis}{i + 1}" for i in range(count) for axis in "xyv")]
    if names != wanted or not count:
        raise UserError(
            f"{path}, line 1: need the names image,x1,y1,v1,x2,y2,v2,..., got "
            f"{','.join(names)[:80]!r}."
        )
    scheme(count, path)
    faces, seen = [], {}
    for number, row in enumerate(rows, 2):
        if not any(row):
            continue
        where = f"{path}, line {number}"
        name, line = row[0].strip(), ",".join(row)
        _check_inside(name, where)
        what = f"a path and {3 * count} numbers"
        values = np.array(_numbers(row[1:], 3 * count, where, what, line))
        values = values.reshape(count, 3)
        known = values[:, 2] == 1
        if not (known | (values[:, 2] == 0)).all():
            raise UserError(f"{where}: v must be 0 or 1, got {line[:80]!r}.")
        seen[name] = seen.get(name, 0) + 1
        key = str(seen[name]) if seen[name] > 1 else ""
        faces.append((name, key, np.where(known[:, None], values[:, :2], np.nan)))
    return faces


def _rows_of_csv(path: Path) -> Iterator[list[str]]:
    """The fields of each line, which may be quoted; no field goes over a line."""
    for number, line in enumerate(text_lines(path), 1):
        try:
            yield next(csv.reader([line]), [])
        except csv.Error as error:
            raise UserError(f"{path}, line {number}: {error}.") from None


def _check_inside(name: str, where: str) -> None:
    """Refuses a path that leads out of the folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UserError(
            f"{where}: need an image's path relative to the folder, with '/', got "
            f"{name[:80]!r}."
        )


def _aflw(root: Path) -> tuple[Path, list[tuple[str, str, np.ndarray]]]:
    """AFLW's database, and its faces under the names of images below `root`."""
    places = [root / "data" / "aflw.sqlite", root / "aflw.sqlite"]
    table = next((place for place in places if place.is_file()), None)
    if table is None:
        raise UserError(f"data.path: need {places[0]} or {places[1]}.")
    images = table.parent / "flickr"
    prefix = (images if images.is_dir() else table.parent).relative_to(root)
    rows = []
    for face, (image, points) in read_aflw(table).items():
        rows.append(((prefix / image).as_posix(), str(face), points))
    return table, rows


def read_aflw(path: Path) -> Mapping[int, tuple[str, Float[np.ndarray, "21 2"]]]:
    """Reads the faces of AFLW's database, which is not changed.

    Returns:
        Number of the face -> path of its image, and its points.

    Raises:
        UserError: if it is not that database, naming the file.
    """
    faces: dict[int, tuple[str, np.ndarray]] = {}
    with _rows_of_aflw(path) as rows:
        for face, image, feature, x, y in rows:
            is_point = isinstance(x, int | float) and isinstance(y, int | float)
            is_name = isinstance(face, int) and isinstance(image, str)
            if not is_point or not is_name or feature not in range(1, 22):
                raise UserError(
                    f"{path}: need numbers of points from 1 to 21 in FeatureCoords, "
                    f"with x and y; face {face!r} has point {feature!r}."
                )
            if face not in faces:
                _check_inside(image, f"{path}, face {face}")
                faces[face] = (image, np.full((21, 2), np.nan))
            if x >= 0 or y >= 0:  # (-1, -1) marks what was taken back
                faces[face][1][feature - 1] = x, y
    return faces


@contextlib.contextmanager
def _rows_of_aflw(path: Path) -> Iterator[Iterator[tuple[Any, ...]]]:
    place = f"file:{urllib.request.pathname2url(str(path.resolve()))}?mode=ro"
    query = (
        "SELECT Faces.face_id, FaceImages.filepath, feature_id, x, y FROM Faces "
        "JOIN FaceImages ON FaceImages.file_id = Faces.file_id "
        "JOIN FeatureCoords ON FeatureCoords.face_id = Faces.face_id "
        "ORDER BY Faces.face_id, feature_id"
    )
    try:
        # Immutable: neither locked nor a journal looked for, on read-only disks too.
        with contextlib.closing(
            sqlite3.connect(f"{place}&immutable=1", uri=True)
        ) as db:
            db.execute("PRAGMA trusted_schema = OFF")  # no functions in views
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = {name for (name,) in db.execute(tables)}
            if missing := {"Faces", "FaceImages", "FeatureCoords"} - names:
                raise UserError(f"{path}: no table {' or '.join(sorted(missing))}.")
            yield db.execute(query)
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: not a readable AFLW database ({one_line(error, 200)})."
        ) from None
