"""Which photos are copies of others, or nearly: saved anew, resized, mirrored, graded.

Each photo becomes a grey thumbnail of zero mean and unit length, so that brightness and
contrast do not count. Two are near-copies if the distance of their thumbnails, or of
one and the other's mirror image, is at most `RADIUS`, and that of their low frequencies
at most `LOW_RADIUS`, and their colours agree (`COLOUR_RADIUS`) unless one is grey;
near-copies of near-copies are of one group. Distance of a photo from itself, changed
(whole, low frequencies; median of 300 faces):

    JPEG of quality 75   0.02  0.003        half the size         0.09  0.03
    JPEG of quality 30   0.04  0.009        gamma 0.7             0.08  0.05
    grey                 0.01  0.001        3 % cut away          0.20  0.07
    less contrast        0.01  0.001        6 % cut away          0.39  0.15

Of 15,500 aligned faces of CelebA, some 11 pairs lie within 0.25, each one photo twice;
from 0.28 on lie different people. Of 8,956 cats, 38 pairs within 0.2, each one photo;
of 4,850 rendered cars none below 0.27, of 3,000 open faces none below 0.38. So
look-alikes are kept apart, and a copy cut anew by more than some 3 % is not found.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from unsup3d_jax.data import array_files, images
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.prepare import cache_root, prepare

RADIUS, LOW_RADIUS = 0.2, 0.1
VERSION = 1  # raise it when the same pictures would give other pairs
# Of coarse RGB pictures of zero mean and unit length, where one face made warmer, paler
# or more colourful stays within 0.28: plain shapes are alike in grey, and differ here.
COLOUR_RADIUS = 0.3
_GREY = 3.0  # root mean square of what is not grey, levels: below, it has no colour
_SIDE = 32  # pixels of a thumbnail; at 16, copies and look-alikes overlap
_COARSE = 8  # pixels of its colours
_LOW = 4  # frequencies of each axis by which a tree finds neighbours
_NEIGHBOURS = 64  # looked at, the nearest first, which bounds time and memory
# A group of more different pictures than this is no photo with its copies, but a scene.
_LARGEST, _LARGEST_SHARE = 32, 0.05
_BLOCK = 1 << 14  # thumbnails or pairs at a time, which bounds the memory


@dataclass(frozen=True)
class NearCopies:
    """Which of some items are copies of one another.

    Attributes:
        groups: indices of the items of each group, ascending; two or more.
        scenes: likewise, groups so large that they can hardly be copies.
    """

    groups: tuple[tuple[int, ...], ...] = ()
    scenes: tuple[tuple[int, ...], ...] = ()


def search(
    items: Sequence[ds.Item],
    *,
    crop: tuple[int, ...],
    workers: int,
    cache_dir: str,
) -> NearCopies:
    """Reads photos and finds the near-copies among what a crop keeps of them.

    Files that cannot be read, or cropped, are copies of nothing. Thumbnails are cached,
    and which of them are alike: every split of a set asks for the same.
    """
    prepared = prepare(
        items,
        partial(_read, crop=crop),
        options={"thumbnail": _SIDE, "colours": _COARSE, "crop": crop},
        keep=True,
        workers=workers,
        cache_dir=cache_dir,
        label="comparing photos",
    )
    broken = {index for index, _ in prepared.broken}
    usable = [i for i in range(len(items)) if i not in broken]
    if len(usable) < 2:
        return NearCopies()
    arrays = prepared.arrays
    cache = cache_root(cache_dir) / "near_copies"
    found = find(arrays["thumbnail"], arrays["colours"], workers, cache)

    def named(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(usable[i] for i in group) for group in groups)

    return NearCopies(named(found.groups), named(found.scenes))


def _read(
    item: ds.Item, *, crop: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    try:
        pixels, size = images.read_image(item.paths[0], crop=crop, image_size=_SIDE)
    except images.CropError as error:  # whoever loads its split says so
        raise ValueError(str(error)) from None
    thumbnail, colours = reduce(pixels)
    return {"thumbnail": thumbnail, "colours": colours}, size


def reduce(
    pixels: UInt8[np.ndarray, "s s 3"],
) -> tuple[UInt8[np.ndarray, "s s"], UInt8[np.ndarray, "k k 3"]]:
    """What is kept of a small picture to compare it: grey pixels, coarse colours."""
    image = Image.fromarray(pixels)
    coarse = image.resize((_COARSE, _COARSE), Image.Resampling.BOX)
    return np.asarray(image.convert("L")), np.asarray(coarse)


def find(
    thumbnails: UInt8[np.ndarray, "n s s"],
    colours: UInt8[np.ndarray, "n k k 3"],
    workers: int = 1,
    cache: Path | None = None,
) -> NearCopies:
    """Groups near-copies, in about n log n steps.

    Args:
        thumbnails, colours: of `reduce`.
        workers: threads.
        cache: folder where the pairs of these pictures are kept.
    """
    both = (thumbnails, colours)
    flat = np.concatenate([part.reshape(len(part), -1) for part in both], axis=1)
    # Equal pictures are one: a thousand of them would be a million pairs.
    _, first, which = np.unique(
        flat.view(np.dtype((np.void, flat.shape[1]))).ravel(),
        return_index=True,
        return_inverse=True,
    )
    count = len(first)

    def compare() -> dict[str, np.ndarray]:
        return {"pairs": _pairs(thumbnails[first], colours[first], workers)}

    if cache is None:
        pairs = compare()["pairs"]
    else:
        rules = (VERSION, RADIUS, LOW_RADIUS, COLOUR_RADIUS, _GREY, _LOW, _NEIGHBOURS)
        name = hashlib.sha256(repr(rules).encode() + flat[first].tobytes()).hexdigest()
        pairs = array_files.made_once(cache / f"{name[:20]}.npz", compare)["pairs"]
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    pictures = np.bincount(label)  # different ones of each group
    label = label[which.ravel()]
    order = np.argsort(label, kind="stable")
    cuts = np.flatnonzero(np.diff(label[order])) + 1
    members = sorted(
        tuple(map(int, part)) for part in np.split(order, cuts) if len(part) > 1
    )
    most = max(_LARGEST, _LARGEST_SHARE * count)
    is_scene = [pictures[label[group[0]]] > most for group in members]
    return NearCopies(
        tuple(g for g, scene in zip(members, is_scene, strict=True) if not scene),
        tuple(g for g, scene in zip(members, is_scene, strict=True) if scene),
    )


def _pairs(
    thumbnails: UInt8[np.ndarray, "n s s"],
    colours: UInt8[np.ndarray, "n k k 3"],
    workers: int,
) -> Int[np.ndarray, "p 2"]:
    """Which are near-copies, each pair once or twice."""
    count, blocks = len(thumbnails), range(0, len(thumbnails), _BLOCK)
    parts = [_low(_unit(thumbnails[start : start + _BLOCK])) for start in blocks]
    low = np.concatenate(parts)
    # Mirroring changes the sign of odd frequencies of the horizontal axis.
    mirrored = low * np.where(np.arange(_LOW) % 2, -1.0, 1.0)
    tree = KDTree(np.concatenate([low, mirrored]).reshape(2 * count, -1))
    low = low.reshape(count, -1)
    tint = colours - colours.mean(axis=-1, keepdims=True)
    grey = np.sqrt((tint**2).mean(axis=(1, 2, 3))) < _GREY
    found = [np.empty((0, 2), np.intp)]
    for start in blocks:
        distance, other = map(
            np.asarray,
            tree.query(
                low[start : start + _BLOCK],
                k=min(_NEIGHBOURS, 2 * count),
                distance_upper_bound=LOW_RADIUS,
                workers=max(workers, 1),
            ),
        )
        row, place = np.nonzero(np.isfinite(distance))
        one, other = row + start, other[row, place]
        turned, other = other >= count, other % count
        different = one != other
        one, other, turned = one[different], other[different], turned[different]
        for begin in range(0, len(one), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            near = _distance(thumbnails, one[part], other[part], turned[part]) <= RADIUS
            agree = _distance(colours, one[part], other[part], turned[part])
            near &= (agree <= COLOUR_RADIUS) | grey[one[part]] | grey[other[part]]
            found.append(np.stack([one[part][near], other[part][near]], axis=1))
    return np.concatenate(found)


def _distance(
    pictures: UInt8[np.ndarray, "n h w ..."],
    one: Int[np.ndarray, " p"],
    other: Int[np.ndarray, " p"],
    turned: Bool[np.ndarray, " p"],
) -> Float[np.ndarray, " p"]:
    """Of each pair, the second one mirrored where `turned`."""
    a, b = pictures[one], pictures[other].copy()
    b[turned] = b[turned][:, :, ::-1]
    return np.linalg.norm((_unit(a) - _unit(b)).reshape(len(one), -1), axis=1)


def _unit(pictures: UInt8[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """Zero mean, unit length; a picture of one grey is zero."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # Pixels are whole numbers: what is shorter than one is rounding.
    return (flat / np.maximum(length, 1.0)).reshape(pictures.shape)


def _low(values: Float[np.ndarray, "n s s"]) -> Float[np.ndarray, "n k k"]:
    """The lowest frequencies, which keep at most the length of the whole."""
    return np.asarray(dctn(values, axes=(1, 2), norm="ortho"))[:, :_LOW, :_LOW]
