"""Which photos are copies of others, or nearly: saved anew, resized, mirrored, graded.

Each photo becomes a grey thumbnail of zero mean and unit length, so that brightness and
contrast do not count. Two are near-copies if the distance of their thumbnails, or of
one and the other's mirror image, is at most `RADIUS`, and that of their low frequencies
at most `LOW_RADIUS`; near-copies of near-copies are of one group. Distance of a photo
from itself, changed (whole, low frequencies; median of 300 faces):

    JPEG of quality 75   0.02  0.003        half the size         0.09  0.03
    JPEG of quality 30   0.04  0.009        gamma 0.7             0.08  0.05
    grey                 0.01  0.001        3 % cut away          0.20  0.07
    less contrast        0.01  0.001        6 % cut away          0.39  0.15

Of 15,500 aligned faces of CelebA, 11 pairs lie within 0.25, each one photo twice; from
0.28 on lie different people. Of 8,956 cats, 40 pairs within 0.2, each one photo; of
4,850 rendered cars none below 0.27, of 3,000 open faces none below 0.38. So look-alikes
are kept apart, and a copy that was cut anew by more than some 3 % is not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images
from unsup3d_jax.data.prepare import prepare

RADIUS, LOW_RADIUS = 0.2, 0.1
_SIDE = 32  # pixels of a thumbnail; at 16, copies and look-alikes overlap
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

    Files that cannot be read, or cropped, are copies of nothing. Thumbnails are cached.
    """
    prepared = prepare(
        items,
        partial(_read, crop=crop),
        options={"thumbnail": _SIDE, "crop": crop},
        keep=True,
        workers=workers,
        cache_dir=cache_dir,
        label="comparing photos",
    )
    broken = {index for index, _ in prepared.broken}
    usable = [i for i in range(len(items)) if i not in broken]
    if len(usable) < 2:
        return NearCopies()
    found = find(prepared.arrays["thumbnail"], workers)

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
    return {"thumbnail": np.asarray(Image.fromarray(pixels).convert("L"))}, size


def find(thumbnails: UInt8[np.ndarray, "n s s"], workers: int = 1) -> NearCopies:
    """Groups near-copies, in about n log n steps.

    Args:
        thumbnails: grey, square.
        workers: threads.
    """
    flat = np.ascontiguousarray(thumbnails.reshape(len(thumbnails), -1))
    # Equal pictures are one: a thousand of them would be a million pairs.
    _, first, which = np.unique(
        flat.view(np.dtype((np.void, flat.shape[1]))).ravel(),
        return_index=True,
        return_inverse=True,
    )
    different = thumbnails[first]
    count = len(different)
    pairs = _pairs(different, workers)
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
    thumbnails: UInt8[np.ndarray, "n s s"], workers: int
) -> Int[np.ndarray, "p 2"]:
    """Which are near-copies, each pair once or twice."""
    count, blocks = len(thumbnails), range(0, len(thumbnails), _BLOCK)
    parts = [_low(_unit(thumbnails[start : start + _BLOCK])) for start in blocks]
    low = np.concatenate(parts)
    # Mirroring changes the sign of odd frequencies of the horizontal axis.
    mirrored = low * np.where(np.arange(_LOW) % 2, -1.0, 1.0)
    tree = cKDTree(np.concatenate([low, mirrored]).reshape(2 * count, -1))
    low = low.reshape(count, -1)
    found = [np.empty((0, 2), np.intp)]
    for start in blocks:
        distance, other = tree.query(
            low[start : start + _BLOCK],
            k=min(_NEIGHBOURS, 2 * count),
            distance_upper_bound=LOW_RADIUS,
            workers=max(workers, 1),
        )
        row, place = np.nonzero(np.isfinite(distance))
        one, other = row + start, other[row, place]
        turned, other = other >= count, other % count
        different = one != other
        one, other, turned = one[different], other[different], turned[different]
        for begin in range(0, len(one), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            a, b = thumbnails[one[part]], thumbnails[other[part]]
            b = np.where(turned[part, None, None], b[:, :, ::-1], b)
            near = np.linalg.norm(_unit(a) - _unit(b), axis=(1, 2)) <= RADIUS
            found.append(np.stack([one[part][near], other[part][near]], axis=1))
    return np.concatenate(found)


def _unit(thumbnails: UInt8[np.ndarray, "n s s"]) -> Float[np.ndarray, "n s s"]:
    """Zero mean, unit length; a picture of one grey is zero."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(values, axis=(1, 2), keepdims=True)
    # Pixels are whole numbers: what is shorter than one is rounding.
    return values / np.maximum(length, 1.0)


def _low(values: Float[np.ndarray, "n s s"]) -> Float[np.ndarray, "n k k"]:
    """The lowest frequencies, which keep at most the length of the whole."""
    return dctn(values, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW]
