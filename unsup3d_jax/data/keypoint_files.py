"""Images of a folder and their keypoints on disk, in three layouts.

k keypoints an image, the same k everywhere:

csv            Beside each image `photo.jpg` a file `photo.csv`: k lines
               `u,v,depth`. Lines that do not start with a number are comments.
npz            `FOLDER/keypoints.npz` with `names` (n,), paths of the images
               relative to FOLDER, and `keypoints` (n, k, 3).
3dfaw          The 3DFAW challenge: `FOLDER/<split>_img/ID.jpg` with
               `FOLDER/<split>_lm/ID_lm.csv`, 66 lines x,y,z; `--split=valid`, or
               `--split=test` for the 225 images that `list_valid_test.txt`
               (lines `ID,test,orientation`) takes out of `valid`.

u and v are pixels of the image file, to the right and down. Text is UTF-8, with or
without a byte order mark, or Latin-1. A line in which a number is missing (nan, NA,
nothing) is an error.
"""

import codecs
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float

from unsup3d_jax.data import photos
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import need_regular

LAYOUTS = ("csv", "npz", "3dfaw")
NPZ_NAME = "keypoints.npz"
_3DFAW_LIST = "list_valid_test.txt"
# What stands where a number is missing. NaN and infinity are known to float().
_MISSING = frozenset({"", "?", "na", "n/a", "#n/a", "nil", "none", "null"})


def find(
    root: str | Path, layout: str, *, split: str = "valid"
) -> tuple[list[Path], Float[np.ndarray, "n k 3"]]:
    """Lists the images of a folder and their keypoints.

    Args:
        root: see the module's head.
        layout: one of `LAYOUTS`.
        split: of 3dfaw: train, valid or test.

    Returns:
        Image files, and u, v (pixels of the file) and depth of each keypoint.

    Raises:
        UserError: if the layout is not as described, naming the file.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"--input: {root} is not a folder.")
    if layout == "npz":
        return _find_npz(root)
    if layout == "csv":
        files = [root / name for name in photos.look(root).images]
        pairs = [(file, file.with_suffix(".csv")) for file in files]
        pairs = [(file, table) for file, table in pairs if table.is_file()]
        where = f"{root}: no image has a .csv of the same name beside it"
    elif layout == "3dfaw":
        pairs = _pairs_3dfaw(root, split)
        where = f"{root}: no ID.jpg with ID_lm.csv for split {split!r}"
    else:
        raise UserError(
            f"--layout must be one of {', '.join(LAYOUTS)}, got {layout!r}."
        )
    if not pairs:
        raise UserError(f"--input: {where}.")
    tables = [read_csv(table) for _, table in pairs]
    for (_, table), points in zip(pairs, tables, strict=True):
        if len(points) != len(tables[0]):
            raise UserError(
                f"{table} holds {len(points)} keypoints, {pairs[0][1]} holds "
                f"{len(tables[0])}."
            )
    return [file for file, _ in pairs], np.stack(tables)


def read_csv(path: Path) -> Float[np.ndarray, "k 3"]:
    """Reads lines `u,v,depth`.

    Raises:
        UserError: if a line has other than three numbers, or there is none, or the
            encoding is none that the module's head names.
    """
    rows = []
    for number, line in enumerate(text_lines(path), 1):
        fields = [field.strip() for field in line.split(",")]
        if not line.strip() or not _is_number(fields[0]):
            continue  # a header, a comment, an empty line
        while fields and not fields[-1]:
            fields.pop()  # a comma at the end
        try:
            values = [float(field) for field in fields]
        except ValueError:
            values = []
        if len(values) != 3 or not np.isfinite(values).all():
            raise UserError(f"{path}, line {number}: need u,v,depth, got {line!r}.")
        rows.append(values)
    if not rows:
        raise UserError(f"{path}: no line u,v,depth.")
    return np.array(rows)


def _is_number(field: str) -> bool:
    """Whether a line that starts so is meant as a keypoint, if perhaps a bad one."""
    if field.lower() in _MISSING or field[0] in "+-.0123456789":
        return True
    try:
        float(field)  # nan, inf
    except ValueError:
        return False
    return True


def text_lines(path: Path, content: bytes | None = None) -> list[str]:
    """The lines of a text file as spreadsheets write it, without their ends.

    Args:
        path: the file; with `content` only its name in errors.
        content: the file's bytes, where these are known already.

    Raises:
        UserError: if it cannot be read, or is UTF-16 or UTF-32, naming the line.
    """
    try:
        if content is None:
            need_regular(path)
        raw = path.read_bytes() if content is None else content
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if wide or b"\0" in raw:  # UTF-32 starts as UTF-16 does, or with zeros
        number = 1 if wide else raw[: raw.index(b"\0")].count(b"\n") + 1
        raise UserError(
            f"{path}, line {number}: need plain text, got UTF-16 or binary data; save "
            "the file as UTF-8."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    # Not str.splitlines: one of Latin-1's characters ends a line there.
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _find_npz(root: Path) -> tuple[list[Path], np.ndarray]:
    path = root / NPZ_NAME
    try:
        need_regular(path)
        with np.load(path, allow_pickle=False) as archive:
            names, points = archive["names"], archive["keypoints"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: need an .npz with 'names' and 'keypoints' ({error})."
        ) from None
    if points.ndim != 3 or points.shape[2] != 3 or names.shape != points.shape[:1]:
        raise UserError(
            f"{path}: need names (n,) and keypoints (n, k, 3), got {names.shape} and "
            f"{points.shape}."
        )
    files = [root / str(name) for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{path}: names {missing[0]}, which does not exist.")
    return files, points.astype(np.float64)


def _pairs_3dfaw(root: Path, split: str) -> list[tuple[Path, Path]]:
    if split not in ("train", "valid", "test"):
        raise UserError(f"--split must be train, valid or test, got {split!r}.")
    home = "valid" if split == "test" else split
    image_folder, table_folder = root / f"{home}_img", root / f"{home}_lm"
    for place in (image_folder, table_folder):
        if not place.is_dir():
            raise UserError(f"--input: 3DFAW needs the folder {place}.")
    stems = sorted(path.stem for path in image_folder.glob("*.jpg"))
    if split == "test":
        listed = root / _3DFAW_LIST
        if not listed.is_file():
            raise UserError(f"--split=test needs the file {listed}.")
        lines = [line.split(",") for line in text_lines(listed)]
        chosen = {x[0].strip() for x in lines if len(x) > 1 and x[1].strip() == "test"}
        stems = [stem for stem in stems if stem in chosen]
    pairs = [(image_folder / f"{s}.jpg", table_folder / f"{s}_lm.csv") for s in stems]
    return [pair for pair in pairs if pair[1].is_file()]
