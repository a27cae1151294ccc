"""`--mode=data`: what a data set holds, what is wrong with it, how it looks."""

import json
import math
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from unsup3d_jax.data import checkup, folder, report_page, tiles
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.load import load_split
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.files import finite, write_atomically

SHEET_IMAGES = 64
_COLUMNS = 8
_NAMED = 20  # broken files named on the terminal; report.json has all
_KINDS = {
    "grey": "without colour",
    "blank": "that show hardly anything",
    "outliers": "unlike all others",
    "tiny": "smaller than data.image_size",
    "long": "twice as long as wide or wide as long",
    "turned": "turned upright as EXIF says",
}
_VIEW = (
    ("rotation x (pitch)", "degrees"),
    ("rotation y (yaw)", "degrees"),
    ("rotation z (roll)", "degrees"),
    ("translation x", "scene units"),
    ("translation y", "scene units"),
    ("translation z", "scene units"),
)


def data_report(
    config: ConfigDict,
    output_dir: str | pathlib.Path,
    load: Callable[[str], ds.Dataset] | None = None,
) -> str:
    """The text of `examine`."""
    return examine(config, output_dir, load)[0]


def examine(
    config: ConfigDict,
    output_dir: str | pathlib.Path,
    load: Callable[[str], ds.Dataset] | None = None,
) -> tuple[str, bool]:
    """Loads every split, looks at its pictures, and judges whether to train on them.

    Files: `report.json`; `report.html`, which can be sent as it is; `<split>.png`, up
    to 64 images spread evenly over the split, as the crop leaves them; for true depth
    `<split>_depth.png` beside it (near is white).

    Args:
        config: the full configuration.
        output_dir: made if needed.
        load: split name -> data set, of a method with sets of its own; None:
            `load.load_split`.

    Returns:
        What to print, and whether the set is fit to train on.

    Raises:
        UserError: if the training split is unusable or the output no place to
            write. Another split's trouble is part of the verdict.
    """
    output = pathlib.Path(output_dir)
    folder.check_output(config, output, "--output")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    title = f"data set '{config.data.name}' {config.data.path}".rstrip()
    lines, record, sheets = [title], {}, {}
    reports, looks, counts, errors = {}, {}, {}, {}
    for split in ds.SPLITS:
        try:
            dataset = load(split) if load else load_split(config, split)
        except UserError as error:
            if split == "train":
                raise
            lines += [f"{split}: unusable: {error}"]
            record[split] = {"error": str(error)}
            errors[split] = str(error)
            continue
        summary = summarize(dataset)
        seen = checkup.look(dataset, config)
        summary["looks"] = _looks(dataset, seen)
        reports[split], looks[split], counts[split] = dataset.report, seen, len(dataset)
        record[split] = summary
        lines += _text(summary)
        if split == "train":  # what lies there of all splits
            lines += [f"  {clause}" for clause in ds.left_out(dataset.report)]
        for name, sheet in _sheets(dataset, config).items():
            with writing(output / name):
                Image.fromarray(sheet).save(output / name)
            lines.append(f"  look at {output / name}")
            sheets[name] = sheet
        if len(seen.outliers):
            some = dataset.take(seen.outliers[: checkup.NAMED], ["image"])["image"]
            sheets[f"{split}: unlike all others"] = _sheet(some)
    verdict = checkup.judge(config, reports, looks, counts, errors)
    record["verdict"] = {
        "fit": verdict.fit,
        "stops": verdict.stops,
        "remarks": verdict.remarks,
    }
    page = report_page.page(
        title,
        verdict.headline(),
        fit=verdict.fit,
        stops=verdict.stops,
        remarks=verdict.remarks,
        text="\n".join(lines),
        pictures=sheets,
    )
    with writing(output / "report.json"):
        text = json.dumps(finite(record), indent=1, allow_nan=False)
        write_atomically(output / "report.json", text)
    with writing(output / "report.html"):
        write_atomically(output / "report.html", page)
    lines += [
        f"all of it: {output / 'report.json'}; to look at: {output / 'report.html'}",
        verdict.headline(),
    ]
    lines += [f"  ! {ds.printable(stop)}" for stop in verdict.stops]
    lines += [f"  - {ds.printable(remark)}" for remark in verdict.remarks]
    return "\n".join(lines), verdict.fit


def _looks(dataset: ds.Dataset, seen: checkup.Looks) -> dict:
    """What `checkup` saw of a split, JSON-able; the first of each kind by name."""
    kinds = {
        kind: {"count": count, "first": checkup.named(dataset, getattr(seen, kind))}
        for kind, count in seen.counts().items()
    }
    median, mean = seen.symmetry
    return {**kinds, "symmetry": {"median": median, "of_mean_picture": mean}}


def summarize(dataset: ds.Dataset) -> dict:
    """Returns what is known of a split, JSON-able; sizes in pixels."""
    report = dataset.report
    summary = {
        "split": report.split,
        "found": report.found,
        "usable": len(dataset),
        "broken": [list(pair) for pair in report.broken],
        "unpaired": list(report.unpaired),
        "partner": report.partner,
        "other_types": report.others,
        "leftovers": report.leftovers,
        "unreadable_folders": [list(pair) for pair in report.closed],
        "near_copies": [list(group) for group in report.near_copies],
        "notes": list(report.notes),
        "streamed": dataset.is_streamed,
        "from_cache": report.cached,
        "seconds": round(report.seconds, 3),
    }
    if report.sizes:
        sizes = np.array([list(map(int, key.split("x"))) for key in report.sizes])
        counts = np.array(list(report.sizes.values()))
        each = np.repeat(sizes, counts, axis=0)
        summary["width"], summary["height"] = (
            {"min": int(v.min()), "median": int(np.median(v)), "max": int(v.max())}
            for v in each.T
        )
        top = np.argsort(-counts, kind="stable")[:5]
        summary["common_sizes"] = [
            [int(sizes[i, 0]), int(sizes[i, 1]), int(counts[i])] for i in top
        ]
    if "view" in dataset.arrays:
        view = np.asarray(dataset.arrays["view"], np.float64)
        view = np.concatenate([np.degrees(view[:, :3]), view[:, 3:]], axis=1)
        summary["view"] = {
            name: {
                "unit": unit,
                "mean": round(float(v.mean()), 4),
                "std": round(float(v.std()), 4),
                "min": round(float(v.min()), 4),
                "max": round(float(v.max()), 4),
            }
            for (name, unit), v in zip(_VIEW, view.T, strict=True)
        }
    return summary


def _sheets(
    dataset: ds.Dataset, config: ConfigDict
) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """name of the file -> pixels."""
    count = min(SHEET_IMAGES, len(dataset))
    some = dataset.take(np.linspace(0, len(dataset) - 1, count).astype(int))
    pictures = {f"{dataset.report.split}.png": some["image"]}
    if "depth" in some:
        near, far = config.depth.min, config.depth.max
        shade = np.clip((far - some["depth"]) / (far - near), 0.0, 1.0)
        grey = np.rint(255.0 * shade).astype(np.uint8)
        pictures[f"{dataset.report.split}_depth.png"] = np.repeat(grey[..., None], 3, 3)
    return {name: _sheet(stack) for name, stack in pictures.items()}


def _sheet(stack: UInt8[np.ndarray, "n ..."]) -> UInt8[np.ndarray, "h w 3"]:
    if stack.ndim == 5:  # several views of each, side by side
        stack = stack.reshape(-1, *stack.shape[2:])
    return tiles.grid_of_images(stack, columns=min(_COLUMNS, len(stack)))


def _text(summary: dict) -> list[str]:
    how = "streamed from files" if summary["streamed"] else "held in memory"
    source = "from cache" if summary["from_cache"] else "ready"
    lines = [
        f"{summary['split']}: {summary['usable']} usable of {summary['found']} "
        f"images, {len(summary['broken'])} broken; {how}, {source} in "
        f"{summary['seconds']:.1f} s"
    ]
    if "width" in summary:
        spread = ", ".join(
            "{} {min} to {max} (median {median})".format(name, **summary[name])
            for name in ("width", "height")
        )
        lines.append(f"  pixels: {spread}")
    looks = summary.get("looks", {})
    odd = [
        f"{looks[kind]['count']:,} {words}"
        for kind, words in _KINDS.items()
        if looks.get(kind, {}).get("count")
    ]
    if odd:
        lines.append(f"  among them: {', '.join(odd)}")
    if looks and math.isfinite(looks["symmetry"]["median"]):
        lines.append(
            "  mirror images: correlation {median:.2f} (median of the photos), "
            "{of_mean_picture:.2f} (of their mean)".format(**looks["symmetry"])
        )
    for name, spread in summary.get("view", {}).items():
        lines.append(
            "  {}: {mean:+.3g} +- {std:.3g}, {min:.3g} to {max:.3g} {unit}".format(
                name, **spread
            )
        )
    lines += [f"  {ds.printable(note)}" for note in summary["notes"]]
    for name, reason in summary["broken"][:_NAMED]:
        lines.append(f"  skipped {ds.printable(name)}: {ds.printable(reason)}")
    if len(summary["broken"]) > _NAMED:
        lines.append(f"  and {len(summary['broken']) - _NAMED} more")
    if summary["unpaired"]:
        first = ", ".join(map(ds.printable, summary["unpaired"][:3]))
        first += ", ..." if len(summary["unpaired"]) > 3 else ""
        lines.append(
            f"  skipped {len(summary['unpaired'])} images without "
            f"{summary['partner']}: {first}"
        )
    return lines
