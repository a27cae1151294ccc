"""What is odd about the photos of a split, and whether they are fit to train on.

Looked at are the small pictures that training sees, block by block, of which some 200
bytes each are kept; and the headers of the files, for sizes and orientation. So memory
does not grow with the set beyond what loading it takes (data.device_memory_mib).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images

NAMED = 20  # files of a kind that are named; all are counted
# Levels, root mean square: below, a picture has no colour, or shows nothing.
_GREY, _BLANK = 3.0, 6.0
_LONG = 2.0  # longer side over shorter
# A picture's embedding: so many pixels, and the steps from pixel to pixel in so many
# cells of it, each way.
_COARSE, _CELLS = 8, 4
_COMPONENTS = 24
_ROUNDS, _CORE = 3, 0.8  # the share of pictures that tells the spread
_FAR = 5.0  # robust standard deviations of the logarithm of the distance
_LEAST = 50  # pictures: among fewer, nothing is an outlier
_BLOCK = 256
_ORIENTATION = 0x0112
# Enough photos to train on: fewer work, but each face is then learnt by heart.
_FEW = 1000
_ENOUGH = 200  # photos for their mean to mean something


@dataclass(frozen=True)
class Looks:
    """What was found in a split; indices are of `Dataset`, the oddest first.

    Attributes:
        grey: without colour. blank: hardly any contrast.
        outliers: far from all others in colour and layout.
        tiny: the crop is smaller than data.image_size. long: one side is twice the
            other, or more. turned: EXIF says so, and they are turned upright. Each
            empty where files have no headers to be read (archives, records).
        symmetry: correlation of a picture and its mirror image: the median, and that
            of the mean picture. NaN where nothing is to be seen.
    """

    grey: Int[np.ndarray, " a"]
    blank: Int[np.ndarray, " b"]
    outliers: Int[np.ndarray, " c"]
    tiny: Int[np.ndarray, " d"]
    long: Int[np.ndarray, " e"]
    turned: Int[np.ndarray, " f"]
    symmetry: tuple[float, float]

    def counts(self) -> dict[str, int]:
        kinds = ("grey", "blank", "outliers", "tiny", "long", "turned")
        return {kind: len(getattr(self, kind)) for kind in kinds}


def look(dataset: ds.Dataset, config: ConfigDict) -> Looks:
    """Looks at all pictures of a split, and at the headers of their files."""
    count = len(dataset)
    coarse = np.empty((count, _COARSE, _COARSE, 3), np.uint8)
    texture = np.empty((count, _CELLS * _CELLS), np.uint8)
    tint, contrast, mirrored = (np.empty(count, np.float32) for _ in range(3))
    total: Float[np.ndarray, "s s"] | float = 0.0
    for start in tqdm(
        range(0, count, _BLOCK), desc=f"looking at {dataset.report.split}",
        unit=" blocks", delay=2.0, leave=False, disable=None,
    ):  # fmt: skip
        some = slice(start, min(start + _BLOCK, count))
        block = dataset.take(range(some.start, some.stop), ["image"])["image"]
        if block.ndim == 5:  # several views of each
            block = block[:, 0]
        for i, picture in enumerate(block, start):
            small = Image.fromarray(picture)
            small = small.resize((_COARSE, _COARSE), Image.Resampling.BOX)
            coarse[i] = np.asarray(small)
        value = block.astype(np.float32)
        grey = value.mean(axis=-1)
        tint[some] = np.sqrt(((value - grey[..., None]) ** 2).mean(axis=(1, 2, 3)))
        contrast[some] = grey.std(axis=(1, 2))
        mirrored[some] = _mirror_correlation(grey)
        texture[some] = _texture(grey)
        total = total + grey.sum(axis=0)
    mean = np.asarray(total, np.float32)[None] / count
    tiny, long, turned = _headers(dataset, config)
    clear = contrast >= _BLANK
    return Looks(
        grey=np.flatnonzero(tint < _GREY),
        blank=np.flatnonzero(~clear),
        outliers=outliers(coarse.reshape(count, -1), texture),
        tiny=tiny,
        long=long,
        turned=turned,
        symmetry=(
            float(np.median(mirrored[clear])) if clear.any() else float("nan"),
            float(_mirror_correlation(mean)[0]),
        ),
    )


def _mirror_correlation(grey: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, " n"]:
    flat = grey - grey.mean(axis=(1, 2), keepdims=True)
    power = (flat**2).sum(axis=(1, 2))
    # Of a picture of one grey, 0.
    return (flat * flat[:, :, ::-1]).sum(axis=(1, 2)) / np.maximum(power, 1e-6)


def _texture(grey: Float[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n c"]:
    """Mean step between neighbouring pixels in each cell, in thirds of a level."""
    count, height, width = grey.shape
    step = (
        np.abs(np.diff(grey, axis=1))[:, :, 1:] + np.abs(np.diff(grey, axis=2))[:, 1:]
    )
    rows = np.arange(_CELLS) * (height - 1) // _CELLS
    columns = np.arange(_CELLS) * (width - 1) // _CELLS
    total = np.add.reduceat(np.add.reduceat(step, rows, axis=1), columns, axis=2)
    area = np.outer(
        np.diff(rows, append=height - 1), np.diff(columns, append=width - 1)
    )
    return np.clip(3.0 * total / area, 0, 255).astype(np.uint8).reshape(count, -1)


def outliers(*embeddings: UInt8[np.ndarray, "n _"]) -> Int[np.ndarray, " m"]:
    """Pictures that lie far from the others in one embedding; the farthest first."""
    count = len(embeddings[0])
    if count < _LEAST:
        return np.empty(0, np.intp)
    far = np.max([_farness(flat) for flat in embeddings], axis=0)
    order = np.argsort(-far, kind="stable")
    return order[far[order] > _FAR]


def _farness(flat: UInt8[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Distance from the mean, each direction measured by the spread along it.

    In robust standard deviations of its logarithm. What lies far widens the spread that
    it is measured by, so that is measured anew without the farther part. A group that
    is larger than that does not lie far.
    """
    near = np.arange(len(flat))
    for _ in range(_ROUNDS):
        distance = np.log(_distance(flat, flat[near]) + 1e-9)
        near = np.argsort(distance, kind="stable")[: math.ceil(_CORE * len(flat))]
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle))
    return (distance - middle) / max(float(spread), 0.1)


def _distance(
    flat: UInt8[np.ndarray, "n d"], common: UInt8[np.ndarray, "m d"]
) -> Float[np.ndarray, " n"]:
    """Squared, of each row from the mean of `common`, by the spread of `common`."""
    count, size = common.shape
    mean = common.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((size, size))
    for start in range(0, count, _BLOCK):
        centred = common[start : start + _BLOCK] - mean
        covariance += centred.T @ centred
    variance, axes = np.linalg.eigh(covariance / count)
    kept = min(_COMPONENTS, count // 10, size // 2)
    # What the kept directions leave out counts as one more, by its mean.
    rest = max(float(variance[:-kept].mean()), 1.0)  # pixels are whole numbers
    variance, axes = np.maximum(variance[-kept:], rest), axes[:, -kept:]
    distance = np.empty(len(flat))
    for start in range(0, len(flat), _BLOCK):
        centred = flat[start : start + _BLOCK] - mean
        along = centred @ axes
        left = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
        left = np.maximum(left, 0.0) / (size - kept) / rest
        distance[start : start + _BLOCK] = (along**2 / variance).sum(axis=1) + left
    return distance


def _headers(
    dataset: ds.Dataset, config: ConfigDict
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"], Int[np.ndarray, " c"]]:
    """Which files are tiny, long, turned, by their headers."""
    paths = [item.paths[0] if item.paths else "" for item in dataset.items]
    if not paths or not paths[0].lower().endswith(tuple(images.EXTENSIONS)):
        none = np.empty(0, np.intp)
        return none, none, none
    import grain

    source = grain.MapDataset.source(paths).map(_header)
    found = np.array(list(ds.parallel(source, config.data.workers, ahead=64)))
    width, height, orientation = found.T
    crop = tuple(config.data.crop)
    sides = [_side(crop, int(h), int(w)) for w, h in zip(width, height, strict=True)]
    short, long = np.minimum(width, height), np.maximum(width, height)
    return (
        _worst(np.array(sides), np.array(sides) < config.data.image_size),
        _worst(-long / np.maximum(short, 1), long >= _LONG * short),
        np.flatnonzero(orientation > 1),
    )


def _worst(
    key: Shaped[np.ndarray, " n"], chosen: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " m"]:
    order = np.argsort(key, kind="stable")
    return order[chosen[order]]


def _side(crop: tuple[int, ...], height: int, width: int) -> int:
    """Shorter side of what is cut."""
    try:
        return min(images.crop_box(crop, height, width)[2:])
    except images.CropError:  # of a file that has changed since it was read
        return min(height, width)


def _header(path: str) -> tuple[int, int, int]:
    """Upright width and height of a sound file, and the orientation EXIF names."""
    try:
        with Image.open(path, formats=images.FORMATS) as image:
            width, height = image.size
            # Of PNG, one behind the pixels is not looked for: that would decode it.
            known = image.format != "PNG" or "exif" in image.info
            value = image.getexif().get(_ORIENTATION, 1) if known else 1
            turned = value if isinstance(value, int) and 1 <= value <= 8 else 1
    except Exception:  # PIL raises nearly anything; it was read well before
        return 1 << 20, 1 << 20, 1
    return (height, width, turned) if turned >= 5 else (width, height, turned)


# --- the verdict ----------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether to train on a set.

    Attributes:
        stops: what advises against it, each with what to do.
        remarks: what to know, or what would better it.
    """

    stops: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        return not self.stops

    def headline(self) -> str:
        if self.stops:
            return "verdict: not fit to train on as it is"
        if self.remarks:
            return "verdict: fit to train on, with remarks"
        return "verdict: fit to train on"


def judge(
    config: ConfigDict,
    reports: Mapping[str, ds.Report],
    looks: Mapping[str, Looks],
    counts: Mapping[str, int],
    errors: Mapping[str, str],
) -> Verdict:
    """The verdict, from the training split and what the others lack.

    Args:
        reports, looks, counts: by split, of those that could be loaded; "train" is one.
            Counts are of usable examples.
        errors: why others could not.
    """
    verdict, train, seen = Verdict(), reports["train"], looks["train"]
    count, found = counts["train"], max(reports["train"].found, 1)
    stop, remark = verdict.stops.append, verdict.remarks.append

    def share(kind: str) -> float:
        return seen.counts()[kind] / max(count, 1)

    for split, error in errors.items():
        stop(f"{split} cannot be used, and training needs it: {error}")
    if len(train.broken) > 0.2 * found:
        stop(
            f"{len(train.broken):,} of {found:,} files cannot be read: fetch or save "
            "them anew, or take them out."
        )
    elif train.broken:
        remark(f"{len(train.broken):,} files cannot be read; they are left out.")
    twins = {n for group in train.near_copies for n in group[1:]}
    distinct = sum(counts.values()) - len(twins)
    if twins and distinct < 0.5 * sum(counts.values()):
        stop(
            f"only {distinct:,} of {sum(counts.values()):,} photos differ from one "
            "another: take copies out and add other photos."
        )
    elif len(twins) > 0.05 * sum(counts.values()):
        remark(f"{len(twins):,} photos are near-copies of others: they teach little.")
    if share("blank") > 0.2:
        stop(
            f"{seen.counts()['blank']:,} of {count:,} photos show hardly anything: "
            "look at the crop (data.crop) and at the files."
        )
    elif seen.counts()["blank"]:
        remark(f"{seen.counts()['blank']:,} photos show hardly anything.")
    if share("tiny") > 0.5:
        stop(
            f"{seen.counts()['tiny']:,} of {count:,} photos are smaller than "
            f"{config.data.image_size} pixels (data.image_size): find larger ones, or "
            "set a smaller data.image_size."
        )
    elif seen.counts()["tiny"]:
        remark(
            f"{seen.counts()['tiny']:,} photos are smaller than "
            f"{config.data.image_size} pixels and are enlarged: they are soft."
        )
    if count < _FEW:
        remark(f"{count:,} photos to train on are few: some thousands are better.")
    if 0.0 < share("grey") < 1.0 and share("grey") > 0.02:
        remark(
            f"{seen.counts()['grey']:,} photos are grey among coloured ones: their "
            "albedo is grey, which pulls at the others."
        )
    if seen.counts()["long"]:
        remark(
            f"{seen.counts()['long']:,} photos are at least twice as long as wide, or "
            "wide as long: screenshots, panoramas? See what is left in the sheet."
        )
    if not config.data.crop and config.data.name == "folder" and _squashed(train):
        remark(
            "most photos are not square and are squashed: --config.data.crop=0, takes "
            "the largest centred square."
        )
    if seen.counts()["outliers"]:
        remark(
            f"{seen.counts()['outliers']:,} photos are unlike all others: see whether "
            "they show the same kind of thing, about as large and as central."
        )
    if count >= _ENOUGH and seen.symmetry[1] < 0.5:
        remark(
            f"the mean photo and its mirror image correlate by {seen.symmetry[1]:.2f}: "
            "things are seen mostly from one side, or have no two like halves, which "
            "the method takes for granted. Without: --config.model.albedo_flip=False "
            "--config.model.depth_flip=False --config.loss.flip=0."
        )
    return verdict


def _squashed(report: ds.Report) -> bool:
    """Whether more than half of the files are a tenth longer than wide, or wider."""
    sides = [(*map(int, key.split("x")), n) for key, n in report.sizes.items()]
    far = sum(n for w, h, n in sides if max(w, h) > 1.1 * min(w, h))
    return far > 0.5 * max(sum(report.sizes.values()), 1)


def named(dataset: ds.Dataset, index: Sequence[int] | np.ndarray) -> list[str]:
    """Names of the first examples of `index`."""
    first = [int(i) for i in index[:NAMED]]
    if not dataset.items:
        return [f"image {i}" for i in first]
    return [dataset.items[i].name for i in first]
