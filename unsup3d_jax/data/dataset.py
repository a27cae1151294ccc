"""What a data set is: arrays in memory, or files read on demand; and a report."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unsup3d_jax.data.images import REMEDIES, CropError, ImageError
from unsup3d_jax.errors import UserError

SPLITS = ("train", "val", "test")
# How published sets name them, in lower case; the first that is there is taken.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_NAMED_KINDS = 5  # extensions named in a line; report.json has all


@dataclass(frozen=True)
class Item:
    """One example on disk.

    Attributes:
        name: path relative to the data set's root, with "/".
        paths: files that make up the example; the image first.
    """

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """Why an item could not be read.

    Attributes:
        reason: one line.
        is_crop: the crop did not fit: an option to change, not a bad file.
        is_transient: the system refused (permissions, network, memory), so the
            answer may change without the file changing.
    """

    reason: str
    is_crop: bool = False
    is_transient: bool = False


# Reads one item: named arrays of one example, and (width, height) on disk.
Reader = Callable[[Item], tuple[dict[str, np.ndarray], tuple[int, int]]]


@dataclass(frozen=True)
class Report:
    """What was found while a split was loaded.

    Attributes:
        name: of the data set, config.data.name.
        split: train, val or test.
        root: folder, or "" for rendered sets.
        found: examples listed.
        broken: (name, reason) of each file skipped.
        unpaired: names of images without a partner, skipped.
        partner: what those images want, such as "a depth map".
        others: extension -> number of files that are no images, all splits.
        leftovers: kind -> number of files that other programs left, all splits.
        closed: (name, reason) of each folder that cannot be listed, all splits.
        near_copies: names of each group of photos that are alike, all splits.
        notes: clauses about what else its owner should hear of.
        sizes: "widthxheight" -> number of usable files; empty when rendered.
        cached: whether the decoded set came from the cache.
        seconds: spent loading.
    """

    name: str
    split: str
    root: str
    found: int
    broken: tuple[tuple[str, str], ...] = ()
    unpaired: tuple[str, ...] = ()
    partner: str = ""
    others: dict[str, int] = field(default_factory=dict)
    leftovers: dict[str, int] = field(default_factory=dict)
    closed: tuple[tuple[str, str], ...] = ()
    near_copies: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    cached: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Dataset:
    """One split. Either `arrays` holds it, or `items` are read on demand.

    Attributes:
        arrays: example axis first. image (n, s, s, 3) uint8; where known
            depth (n, s, s) float32 scene units, mask (n, s, s) bool, view
            (n, 6), light (n, 5), what else `Batch` has, and more. Empty when the
            set is streamed.
        report: what was found.
        digest: names the content, whatever the machine or folder; a resumed
            run compares it.
        keypoint_flip: the keypoint that each one becomes in a mirror, where `arrays`
            has keypoints and that is known; else ().
        latent_mirror: (d, d), takes the code of an image to that of its mirror image,
            where `arrays` has latent codes and that is known.
        items: what each example was read from; () where it was rendered.
        read: of a streamed set; else None.
        workers: decoding threads of a streamed set.
    """

    arrays: dict[str, np.ndarray]
    report: Report
    digest: str
    items: tuple[Item, ...] = ()
    read: Reader | None = None
    workers: int = 1
    keypoint_flip: tuple[int, ...] = ()
    latent_mirror: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items) if self.is_streamed else len(self.arrays["image"])

    @property
    def is_streamed(self) -> bool:
        return self.read is not None

    def example(self, index: int) -> dict[str, np.ndarray] | Failure:
        """Returns one example; reads its file when the set is streamed."""
        if self.read is None:
            return {name: array[index] for name, array in self.arrays.items()}
        item = self.items[index]
        result = read_item(item, self.read)
        if isinstance(result, Failure):
            return replace(result, reason=f"{printable(item.name)}: {result.reason}")
        return result[0]

    def take(
        self, indices: Sequence[int] | np.ndarray, fields: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the stacked examples at `indices`, in that order.

        Args:
            indices: positions in [0, len).
            fields: names of the arrays wanted; None: all.

        Raises:
            UserError: if a streamed file has become unreadable.
        """
        if not self.is_streamed:
            names = list(self.arrays) if fields is None else list(fields)
            return {name: self.arrays[name][np.asarray(indices)] for name in names}
        import grain  # only trainings and scores wait for it

        reader = grain.MapDataset.source([int(i) for i in indices]).map(self.example)
        return stack(parallel(reader, self.workers, ahead=len(indices)), fields)


def read_item(
    item: Item, read: Reader
) -> tuple[dict[str, np.ndarray], tuple[int, int]] | Failure:
    """Reads an item; a bad file becomes a Failure instead of an exception."""
    try:
        return read(item)
    except CropError as error:
        return Failure(error.reason, is_crop=True)
    except Exception as error:  # libraries raise nearly anything
        refused = isinstance(error, OSError) and error.errno is not None
        is_transient = refused or isinstance(error, MemoryError)
        return Failure(reason_of(error), is_transient=is_transient)


def reason_of(error: Exception) -> str:
    """Why an item cannot be read, on one line, for a line that names it already."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__
    return " ".join(str(error).split()) or type(error).__name__


def parallel(source: Any, workers: int, *, ahead: int) -> Any:
    """`source` as a sequence in the same order, evaluated by `workers` threads.

    Threads suffice: PIL releases the interpreter lock while it decodes and
    resizes.

    Args:
        source: a grain.MapDataset.
        workers: threads; 0 evaluates in the caller.
        ahead: how many elements may be ready before they are asked for.

    Returns:
        A grain.IterDataset.
    """
    import grain

    options = grain.ReadOptions(
        num_threads=workers, prefetch_buffer_size=max(ahead, workers) if workers else 0
    )
    return source.to_iter_dataset(options)


def stack(
    examples: Iterable[dict[str, np.ndarray] | Failure],
    fields: Iterable[str] | None = None,
) -> dict[str, np.ndarray]:
    """Stacks examples along a new first axis.

    Raises:
        UserError: if one of them is a Failure.
    """
    rows = []
    for example in examples:
        if isinstance(example, Failure):
            raise UserError(
                "an image that was readable when the data set was checked is no "
                f"longer: {example.reason}. Restore it, or start again in a new "
                "workdir to have the data set checked afresh."
            )
        rows.append(example)
    names = list(rows[0]) if fields is None else list(fields)
    return {name: np.stack([row[name] for row in rows]) for name in names}


@runtime_checkable
class LeftOut(Protocol):
    """What was found and is not used; see `photos.Found`."""

    @property
    def others(self) -> Mapping[str, int]: ...
    @property
    def leftovers(self) -> Mapping[str, int]: ...
    @property
    def closed(self) -> Sequence[Sequence[str]]: ...


def left_out(found: LeftOut) -> list[str]:
    """Clauses about files that are there and not read; none where there are none."""
    clauses = []
    if found.others:
        clauses.append(f"left out: {_kinds_text(found.others)}")
        remedies: dict[str, list[str]] = {}
        for suffix in found.others:
            if suffix in REMEDIES:
                remedies.setdefault(REMEDIES[suffix], []).append(suffix)
        clauses += [
            f"{' and '.join(suffixes)} can be read after: {command}"
            for command, suffixes in remedies.items()
        ]
    if found.leftovers:
        clauses.append(f"not read, of other programs: {_kinds_text(found.leftovers)}")
    if found.closed:
        clauses.append(_closed_text(found.closed))
    return clauses


def _kinds_text(counts: Mapping[str, int]) -> str:
    """Names kinds of files and how many there are: .heic (400), .txt (1)."""
    kinds = [
        f"{printable(kind) or 'no extension'} ({count:,})"
        for kind, count in list(counts.items())[:_NAMED_KINDS]
    ]
    more = len(counts) - len(kinds)
    return ", ".join(kinds) + (f" and {more} more kinds" if more > 0 else "")


def _closed_text(closed: Sequence[Sequence[str]]) -> str:
    """Names the first of the folders that cannot be listed; there is one."""
    name, reason = closed[0]
    return (
        f"{len(closed):,} folder{'s' if len(closed) > 1 else ''} cannot be read, the "
        f"first {printable(name)}: {printable(reason)}"
    )


def remark(report: Report) -> str:
    """One line about a split's files that are not used, and its notes; "" if none.

    What lies there beside photos is the same for all splits: that of training tells.
    """
    parts = [*report.notes]
    if report.broken:
        name, reason = report.broken[0]
        parts.append(
            f"{len(report.broken):,} of {report.found:,} files of {report.split} "
            f"cannot be read, the first {printable(name)}: {printable(reason)}"
        )
    if report.unpaired:
        parts.append(
            f"{len(report.unpaired):,} images of {report.split} are without "
            f"{report.partner}, the first {printable(report.unpaired[0])}"
        )
    if report.split == "train":
        parts += left_out(report)
    return "; ".join([*parts, "--mode=data tells more"]) if parts else ""


def digest_of(*parts: Any) -> str:
    """Returns a short hex digest of JSON-able values."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def printable(name: str) -> str:
    """Returns a file name that any terminal and log can print on one line."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
