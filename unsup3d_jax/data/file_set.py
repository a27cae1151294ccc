"""Files of one split -> a data set: read once, checked, kept or streamed."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images
from unsup3d_jax.data.prepare import prepare
from unsup3d_jax.errors import UserError, refusing


def check_options(config: ConfigDict) -> None:
    """Checks the options that all file data sets share.

    Raises:
        UserError: naming the key.
    """
    crop = tuple(config.data.crop)
    with refusing("data.crop: "):
        images.crop_box(crop, 1 << 30, 1 << 30)


@dataclass(frozen=True)
class Listing:
    """What lies there for one split, before anything is read.

    Attributes:
        items: all of the split; data.max_images is applied later.
        unpaired: names of images left out for want of a partner.
        partner: what they want.
        others: extension -> number of files that are no images.
        leftovers: kind -> number of files that other programs left.
        closed: (name, reason) of folders that cannot be listed.
        near_copies: names of each group of photos that are alike.
        notes: for the report.
        share: for the error: tells which share of what was found this split is.
    """

    items: Sequence[ds.Item]
    unpaired: Sequence[str] = ()
    partner: str = ""
    others: Mapping[str, int] = field(default_factory=dict)
    leftovers: Mapping[str, int] = field(default_factory=dict)
    closed: Sequence[tuple[str, str]] = ()
    near_copies: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    share: Callable[[], str] = str


def sizes(item: ds.Item) -> list[int]:
    """Bytes of each of an item's files."""
    return [os.path.getsize(path) for path in item.paths]


def from_listing(
    config: ConfigDict,
    split: str,
    listing: Listing,
    read: ds.Reader,
    *,
    options: dict,
    bytes_each: int,
    content: Callable[[ds.Item], list] = sizes,
) -> ds.Dataset:
    """Reads or checks the items of a split and describes what was found.

    Decoded sets of at most data.device_memory_mib are kept in arrays; larger
    ones are only checked here, and read again while training.

    Args:
        listing: what lies there.
        read: reads one item.
        options: all that changes the pixels besides the files.
        bytes_each: decoded bytes of one example.
        content: JSON-able, what tells another item of the same name from it: the sizes
            of its files, unless these can change without changing their size.

    Raises:
        UserError: if no file is usable, or fewer than data.min_images of the
            training split, or the crop does not fit.
    """
    start = time.monotonic()
    data = config.data
    items = listing.items
    items = items[: data.max_images] if data.max_images else items
    keep = len(items) * bytes_each <= data.device_memory_mib * 2**20
    prepared = prepare(
        items,
        read,
        options={"name": data.name, **options},
        keep=keep,
        workers=data.workers,
        cache_dir=data.cache_dir,
        label=f"reading {split}",
    )
    bad = dict(prepared.broken)
    usable = tuple(item for i, item in enumerate(items) if i not in bad)
    broken = tuple((items[i].name, reason) for i, reason in prepared.broken)
    least = data.min_images if split == "train" else 1
    if len(usable) < max(least, 1):
        skipped = f"; {len(broken)} cannot be read" if broken else ""
        if broken:
            name, reason = broken[0]
            skipped += f", the first is {ds.printable(name)}: {reason}"
        if listing.unpaired:
            skipped += f"; {len(listing.unpaired)} are without {listing.partner}"
        skipped = "; ".join([skipped, *ds.left_out(listing)])
        raise UserError(
            f"data.path: '{data.path}' has {len(usable)} usable images in split "
            f"'{split}', fewer than {max(least, 1)} (data.min_images)"
            f"{listing.share()}{skipped}."
        )
    report = ds.Report(
        name=data.name,
        split=split,
        root=str(data.path),
        found=len(items),
        broken=broken,
        unpaired=tuple(listing.unpaired),
        partner=listing.partner,
        others=dict(listing.others),
        leftovers=dict(listing.leftovers),
        closed=tuple(listing.closed),
        near_copies=listing.near_copies,
        notes=listing.notes,
        sizes=prepared.sizes,
        cached=prepared.cached,
        seconds=time.monotonic() - start,
    )
    held = [[item.name, *content(item)] for item in usable]
    return ds.Dataset(
        arrays=prepared.arrays,
        report=report,
        digest=ds.digest_of(data.name, options, held),
        items=usable,
        read=None if keep else read,
        workers=data.workers,
    )
