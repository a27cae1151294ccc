"""Open synthetic faces: pictures with depth, normals, light and viewpoint known.

    faces = load("train", image_size=64, count=1000, seed=0, pose="natural",
                 cache_dir="cache")
    faces["image"]  # uint8 (n, h, w, 3)
    several = load_views("train", image_size=64, count=100, views=4)
    several["identity"]  # int32 (400,): 0 0 0 0 1 1 1 1 ...

Each face follows from one number, so splits are disjoint ranges of numbers; a
further view of the same person follows from that number and its own. The arrays of
a picture:

    image, albedo      uint8 (h, w, 3)   display colours; albedo is 0 off the face
    depth              float32 (h, w)    metres at the pixel centre; FAR = 1.1 off it
    mask               bool (h, w)       depth < FAR
    normal             float32 (h, w, 3) unit (-z_x, -z_y, 1)/|.|; 0 off the face
    light              float32 (5,)      ambient, diffuse, direction; camera frame
    view               float32 (6,)      pitch, yaw, roll (radians), tx, ty, tz
    keypoints          float32 (68, 3)   iBUG: u, v (pixels), depth
    keypoints_visible  bool (68,)
    seed               int64             the face's number
    perturb            bool (h, w)       where a patch was laid, if asked for
    identity           int32             whose picture, of `load_views` alone

A contact sheet: `python -m unsup3d_jax.data.open_face.sheet --contact_sheet out.png`.
"""

import functools
import os
from collections.abc import Collection

import numpy as np

from unsup3d_jax.data.dataset import SPLITS
from unsup3d_jax.data.open_face import cache, processes
from unsup3d_jax.data.open_face.model import Seeds, of_one_number
from unsup3d_jax.data.open_face.render import FAR

_MAX_SEED = 1 << 20
_MAX_COUNT = 1 << 24
_MAX_VIEWS = 1 << 16
# Further views draw from numbers above those of all faces: 3 splits < 2^2.
_VIEW_STEP = 4 * _MAX_SEED * _MAX_COUNT
# What may differ between the views of one person.
VARIES = ("expression", "pose", "light", "backdrop")


def load(
    split: str,
    *,
    image_size: int,
    count: int,
    seed: int = 0,
    pose: str = "mixed",
    asymmetry: float = 1.0,
    perturb: bool = False,
    cache_dir: str | os.PathLike | None = None,
    fields: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Returns `count` faces of a split, from the cache where it has them.

    Args:
        split: "train", "val" or "test"; no face is in two of them.
        image_size: height and width, pixels.
        count: how many; a smaller count is a prefix of a larger one.
        seed: another seed is another set of faces of that split.
        pose: "natural" (yaw about N(0, 20 degrees)) or "mixed" (wider).
        asymmetry: 0 for exactly symmetric faces, 1 for people.
        perturb: lay one coloured patch over each image (Wu et al., Sec. 4).
        cache_dir: where to keep the arrays; None to make them anew. A cache
            that cannot be read or written costs time, nothing else.
        fields: arrays to return; None for all. Leaving out what is not needed
            saves memory: normals are four times as large here as in the cache.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    seeds = split_seeds(split, count=count, seed=seed)
    options = {
        "image_size": image_size,
        "pose": pose,
        "asymmetry": asymmetry,
        "perturb": perturb,
    }
    make = functools.partial(processes.compact, of_one_number(seeds), **options)
    request = options | {"split": split, "count": count, "seed": seed}
    return _expand(cache.made_once(cache_dir, split, request, make, fields), fields)


def load_views(
    split: str,
    *,
    image_size: int,
    count: int,
    views: int,
    seed: int = 0,
    vary: Collection[str] = VARIES,
    pose: str = "mixed",
    asymmetry: float = 1.0,
    perturb: bool = False,
    cache_dir: str | os.PathLike | None = None,
    fields: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Returns several pictures of each of `count` people, from the cache or anew.

    A picture follows from (split, seed, person, number of the view) and the options;
    view 0 is the person's picture of `load`. Shape, skin and hair stay the same.

    Args:
        views: pictures of each person; fewer are a prefix of more, person by person.
        vary: what differs between them, of VARIES; what is left out stays as in view
            0. GAN2Shape's pseudo samples differ in ("pose", "light").
        split, image_size, count, seed, pose, asymmetry, perturb, cache_dir, fields: as
            `load`; count is of people.

    Returns:
        Arrays of count * views examples, the views of a person side by side, with
        "identity" (count * views,) int32, 0 to count - 1.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    people = split_seeds(split, count=count, seed=seed)
    options = {
        "image_size": image_size,
        "pose": pose,
        "asymmetry": asymmetry,
        "perturb": perturb,
    }
    seeds = view_seeds(people, views=views, vary=vary)
    make = functools.partial(processes.compact, seeds, **options)
    request = options | {
        "split": split,
        "count": count,
        "seed": seed,
        "views": views,
        "vary": sorted(vary),
    }
    stored = None if fields is None else [f for f in fields if f != "identity"]
    faces = _expand(
        cache.made_once(cache_dir, f"{split}-views", request, make, stored), stored
    )
    if fields is None or "identity" in fields:
        faces["identity"] = np.repeat(np.arange(count, dtype=np.int32), views)
    return faces


def view_seeds(
    people: np.ndarray, *, views: int, vary: Collection[str] = VARIES
) -> Seeds:
    """What the pictures of `load_views` are drawn from; see there.

    Raises:
        ValueError: if there are no views, too many, or `vary` names something else.
    """
    if not 0 < views <= _MAX_VIEWS:
        raise ValueError(f"need 0 < views <= {_MAX_VIEWS}, got {views}.")
    if unknown := set(vary) - set(VARIES):
        raise ValueError(
            f"vary: expected some of {', '.join(VARIES)}, got {sorted(unknown)}."
        )
    person = np.repeat(people, views)
    each = person + _VIEW_STEP * np.tile(np.arange(views, dtype=np.int64), len(people))
    of_view = {name: each for name in (*vary, "patch")}
    return of_one_number(person)._replace(**of_view)


def generate(
    seeds: np.ndarray,
    *,
    image_size: int,
    pose: str = "mixed",
    asymmetry: float = 1.0,
    perturb: bool = False,
) -> dict[str, np.ndarray]:
    """Makes the faces of the given numbers; the same number, the same face."""
    return _expand(
        processes.compact(
            of_one_number(seeds),
            image_size=image_size,
            pose=pose,
            asymmetry=asymmetry,
            perturb=perturb,
        )
    )


def split_seeds(split: str, *, count: int, seed: int = 0) -> np.ndarray:
    """Numbers of the faces of a split: split, seed and index in separate bits."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    if not 0 < count <= _MAX_COUNT or not 0 <= seed < _MAX_SEED:
        raise ValueError(
            f"need 0 < count <= {_MAX_COUNT} and 0 <= seed < {_MAX_SEED}, "
            f"got {count=}, {seed=}."
        )
    start = (SPLITS.index(split) * _MAX_SEED + seed) * _MAX_COUNT
    return np.arange(start, start + count, dtype=np.int64)


def _expand(
    stored: dict[str, np.ndarray], fields: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    wanted = {*stored, "mask"} if fields is None else set(fields)
    if unknown := wanted - {*stored, "mask"}:
        raise ValueError(f"no such fields: {', '.join(sorted(unknown))}.")
    faces = {name: array for name, array in stored.items() if name in wanted}
    if "mask" in wanted:
        faces["mask"] = stored["depth"] < FAR
    if "normal" in wanted:
        normal = stored["normal"].astype(np.float32)
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        normal /= np.maximum(length, 1.0)  # 0 stays 0 off the face
        faces["normal"] = normal
    return faces
