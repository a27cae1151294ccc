"""A folder of photos with landmarks, as a `Dataset`: one example a face, cut out."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import folder, images, landmark_files, photos
from unsup3d_jax.errors import UserError

# A box of landmarks may be so many times as large as the photo, and no larger: beyond,
# the landmarks are wrong.
_LARGEST = 4.0


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Loads a split: fields `image` and `keypoints`, u, v in pixels of the example.

    Depth is NaN, as is every number of a landmark that is not known. Splits are those
    of `folder`; all faces of a photo lie in one. Photos without landmarks are left out
    and named.

    Args:
        config: reads `data`: path, layout, margin, and what all photos need; and
            face.landmarks, which must be those of the photos.

    Raises:
        UserError: naming the key or the file; see `landmark_files.find` and
            `file_set.from_listing`.
    """
    data, root = config.data, folder.data_root(config)
    if "layout" not in data:
        raise UserError(
            f"data.name: landmarks are for methods that learn from them, not for "
            f"{config.method}; set --config.data.name=folder."
        )
    if tuple(data.crop):
        raise UserError(
            "data.crop: photos with landmarks are cut around these (data.margin); set "
            "--config.data.crop=()."
        )
    faces, missing = landmark_files.find(root, data.layout, photos.look(root).images)
    by_name = {face.name: face for some in faces.values() for face in some}
    if not by_name:
        raise UserError(
            f"data.path: no photo under '{root}' has landmarks in layout "
            f"{data.layout} (data.layout); see `unsup3d_jax/data/landmark_files.py`."
        )
    count = _landmark_count(by_name)
    scheme, flip = landmark_files.scheme(count, root)
    if scheme != config.face.landmarks:
        raise UserError(
            f"face.landmarks: the photos in '{root}' have {count} landmarks, {scheme}; "
            f"set --config.face.landmarks={scheme}, not {config.face.landmarks}."
        )

    def examples(photo: str) -> Sequence[ds.Item]:
        path = str(root / photo)
        return [
            ds.Item(face.name, (path, str(face.table))) for face in faces.get(photo, ())
        ]

    def content(item: ds.Item) -> list:
        # A moved point need not change the size of its table.
        photo, table = item.paths
        points = by_name[item.name].points
        raw = Path(table).read_bytes() if points is None else points.tobytes()
        return [os.path.getsize(photo), hashlib.sha256(raw).hexdigest()]

    size, margin = data.image_size, float(data.margin)
    read = partial(_read, faces=by_name, count=count, margin=margin, image_size=size)
    notes = ()
    if missing:
        notes = (
            f"{len(missing):,} of the photos that landmarks name are not there, the "
            f"first '{ds.printable(missing[0])}'",
        )
    return folder.load_photos(
        config,
        split,
        read,
        options={"image_size": size, "margin": margin, "landmarks": count},
        bytes_each=size * size * 3 + count * 12,
        examples=examples,
        partner="landmarks",
        notes=notes,
        keypoint_flip=flip,
        content=content,
    )


def _landmark_count(faces: Mapping[str, landmark_files.Face]) -> int:
    """How many landmarks a face has: as the first that can be read.

    Raises:
        UserError: of the first, if none can.
    """
    first = None
    for face in faces.values():
        try:
            return len(_points(face))
        except UserError as error:
            first = first or error
    raise first or UserError("data.path: no landmarks.")


def _points(face: landmark_files.Face) -> Float[np.ndarray, "k 2"]:
    if face.points is None:
        return landmark_files.read_pts(face.table)
    return face.points


def _read(
    item: ds.Item,
    *,
    faces: Mapping[str, landmark_files.Face],
    count: int,
    margin: float,
    image_size: int,
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    points = _points(faces[item.name])
    if len(points) != count:
        raise ValueError(
            f"{Path(item.paths[1]).name} holds {len(points)} landmarks, others {count}"
        )
    with images.open_upright(item.paths[0]) as image:
        left, top, side = crop_around(points, *image.size, margin=margin)
        pixels = images.rgb_part(
            image, left=left, top=top, side=side, image_size=image_size
        )
        size = image.size
    # Edges of pixels lie half a pixel before their centres.
    moved = (points + 0.5 - [left, top]) * (image_size / side) - 0.5
    depth = np.full((count, 1), np.nan)
    keypoints = np.concatenate([moved, depth], axis=1).astype(np.float32)
    return {"image": pixels, "keypoints": keypoints}, size


def crop_around(
    points: Float[np.ndarray, "k 2"], width: int, height: int, *, margin: float
) -> tuple[float, float, float]:
    """The square around landmarks: left edge, upper edge and side, in pixels.

    The photo's own edges are at 0, so the centre of its first pixel at 0.5.

    Its middle is that of the landmarks' box, but moved into the photo where it fits;
    where it does not, it reaches out alike on both sides.

    Args:
        points: x and y, the centre of the first pixel (0, 0); NaN where unknown.
        width, height: of the photo, pixels.
        margin: on each side, as a share of the larger side of the box.

    Raises:
        ValueError: if less than two points are known, or they lie far from the photo.
    """
    known = points[np.isfinite(points).all(axis=1)]
    low, high = (known.min(0), known.max(0)) if len(known) else (0.0, 0.0)
    extent = float(np.max(np.subtract(high, low)))
    if len(known) < 2 or not extent > 0.0:
        raise ValueError("fewer than two landmarks are known")
    photo = np.array([width, height], float)
    middle = (low + high) / 2 + 0.5
    side = extent * (1.0 + 2.0 * margin)
    if ((middle < 0) | (middle > photo)).any() or side > _LARGEST * photo.max():
        raise ValueError("its landmarks lie outside of the photo")
    start = np.where(
        side <= photo, np.clip(middle - side / 2, 0.0, photo - side), (photo - side) / 2
    )
    return float(start[0]), float(start[1]), side
