"""The files of a table: table.json, and table.md made from that alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.experiments.tables.summary import COLLAPSES, MEASURES
from unsup3d_jax.files import finite, write_atomically


def write_table(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes table.json, and table.md from it."""
    text = json.dumps(finite(record), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(workdir / "table.json", text + "\n")
    write_atomically(workdir / "table.md", markdown(json.loads(text)) + "\n")


def markdown(record: Mapping[str, Any]) -> str:
    """The table for people, from the content of table.json alone."""
    state = "" if record["complete"] else " (not complete yet)"
    rules = record["rules"]
    first = "the first " if record.get("first_images") else ""
    lines = [
        f"# {record['title']}{state}",
        "",
        f"Scale `{record['scale']}`: {record['image_size']} px, {_schedule(record)}, "
        f"{record['seeds']} seed(s) a trained row; data `{record['data']}`, "
        f"split `{record['split']}`, {first}{record['images'] or 0} images. Crop: "
        f"{rules['crop']}. Mask: {rules['mask']}. Mean ± spread over images ± spread "
        "over seeds.",
        "",
    ]
    if changes := record.get("made_with", {}).get("changes"):
        text = ", ".join(f"`{key}={value}`" for key, value in changes.items())
        lines += [f"Changed for this table: {text}.", ""]
    if record["scale"] == "tiny":
        lines += ["**A test of the machinery: these numbers mean nothing.**", ""]
    if record["measure"] == "keypoints":
        lines += _keypoint_table(record)
    else:
        lines += _error_table(record)
        lines += ["", *_agreement_lines(record), *_patch_lines(record)]
        lines += _stage_table(record)
    if record["stability"] is not None:
        s = record["stability"]
        parts = ", ".join(f"{_words(name)} {s[name]}" for name in COLLAPSES)
        # Nobody knows yet how the other method's fail.
        whose = " of unsup3d" if len(record.get("schedule", ())) > 1 else ""
        lines += [
            "",
            f"Stability: {s['failed']} of {s['seeds']} unsupervised trainings{whose} "
            f"failed ({parts}).",
        ]
    lines += [f"\n{note}" for note in record["notes"]]
    return "\n".join(lines)


def _schedule(record: Mapping[str, Any]) -> str:
    """How long rows are trained; older records name one number of steps."""
    known = record.get("schedule") or {"": f"{record['steps']} steps"}
    if len(known) == 1:
        return next(iter(known.values()))
    return "; ".join(f"{method} {text}" for method, text in known.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _failures(rates: Mapping[str, Any]) -> str:
    """How many seeds of a row failed, and how."""
    text = f"{rates['failed']} of {rates['seeds']}"
    kinds = [f"{_words(name)} {rates[name]}" for name in COLLAPSES if rates[name]]
    return f"{text}: {', '.join(kinds)}" if kinds else text


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(summary: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if summary is None:
        return "–"
    text = f"{scale * summary['mean']:.{digits}f}"
    for key in ("std_images", "std_seeds"):
        if summary.get(key) is not None:
            text += f" ± {scale * summary[key]:.{digits}f}"
    return text


def _error_table(record: Mapping[str, Any]) -> list[str]:
    header = ["row", "SIDE ours", "SIDE paper", "MAD ours", "MAD paper"]
    header += ["MAD, unit normals", "coverage", "viewpoint (deg.)", "yaw r, slope"]
    header += ["failed seeds"]
    asks = any("view_control" in line for line in record["rows"].values())
    if asks:
        header += ["generator turns: rank, slope", "person: same, other"]
    timed = any("minutes_an_image" in line for line in record["rows"].values())
    if timed:
        header.append("minutes an image")
    lines = [_cells(header), _cells(["---"] * len(header))]
    (side, _, side_scale, side_digits), (mad, *_), (unit, *_) = MEASURES
    for line in record["rows"].values():
        published = line.get("published")

        def paper(key: str, digits: int, published=published) -> str:
            if published is None:
                return "–"
            std = published[f"{key}_std"]
            text = f"{published[key]:.{digits}f}"
            return text if std is None else f"{text} ± {std:.{digits}f}"

        fails = line["collapses"]
        failed = "–" if fails is None else _failures(fails)
        cells = [
            line["label"],
            _spread(line.get(side), side_scale, side_digits),
            paper("side", 3),
            _spread(line.get(mad), 1.0, 2),
            paper("mad", 2),
            _spread(line.get(unit), 1.0, 2),
            _spread(line.get("coverage"), 1.0, 3),
            _spread(line.get("viewpoint_error_deg"), 1.0, 1),
            _yaw_cell(line),
            failed,
        ]
        if asks:
            control = line.get("view_control", {})
            pairs = (("spearman", "slope", 2), ("same", "other", 3))
            for one, two, digits in pairs:
                means = [_mean(control.get(key), digits) for key in (one, two)]
                cells.append(", ".join(means) if control else "–")
        if timed:
            cells.append(_mean(line.get("minutes_an_image"), 2))
        lines.append(_cells(cells))
    lines += ["", "SIDE x10^-2; MAD in degrees by the authors' formula (see rules)."]
    return lines


def _yaw_cell(line: Mapping[str, Any]) -> str:
    """Correlation and slope of predicted against true yaw, means over seeds."""
    means = []
    for key in ("yaw_pearson", "yaw_slope"):
        seeds = line.get(key, {"seeds": []})["seeds"]
        known = [x for x in seeds if x is not None]  # None: the same yaw for all
        if not known:
            return "–"
        count = f" ({len(known)} of {len(seeds)})" if len(known) < len(seeds) else ""
        means.append(f"{np.mean(known):.2f}{count}")
    return ", ".join(means)


def _mean(summary: Mapping[str, Any] | None, digits: int) -> str:
    return "–" if summary is None else f"{summary['mean']:.{digits}f}"


def _stage_table(record: Mapping[str, Any]) -> list[str]:
    """The way of rows that work in stages, if there are any."""
    (side, _, scale, digits), _, (unit, *_) = MEASURES
    header = ["row", "stage", "SIDE", "MAD, unit normals"]
    lines = ["", "By stage, mean over the seeds (least, largest):", "", _cells(header)]
    lines.append(_cells(["---"] * len(header)))
    before = len(lines)
    for line in record["rows"].values():
        for name, stage in line.get("stages", {}).items():
            cells = [line["label"], name]
            cells.append(_limits(stage.get(side), scale, digits))
            cells.append(_limits(stage.get(unit), 1.0, 2))
            lines.append(_cells(cells))
    return lines if len(lines) > before else []


def _limits(summary: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if summary is None:
        return "–"
    text = f"{scale * summary['mean']:.{digits}f}"
    seeds = [scale * x for x in summary["seeds"]]
    if len(seeds) > 1:
        text += f" ({min(seeds):.{digits}f}, {max(seeds):.{digits}f})"
    return text


def _keypoint_table(record: Mapping[str, Any]) -> list[str]:
    lines = [_cells(["row", "depth correlation ± over seeds", "of", "coverage"])]
    lines.append(_cells(["---"] * 4))
    for line in record["rows"].values():
        found = line.get("keypoint_depth")
        cells = [line["label"], _spread(found, 1.0, 2)]
        cells.append("–" if found is None else str(found["keypoints"]))
        cells.append(_spread(line.get("coverage"), 1.0, 3))
        lines.append(_cells(cells))
    return lines


def _agreement_lines(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, name, *_ in MEASURES[:2]:
        found = record["rank_agreement"][key]
        if not found["rows"]:
            continue  # a table of which nothing was published
        tau = found["kendall_tau"]
        value = "undefined" if tau is None else f"{tau:.2f}"
        lines.append(
            f"Rank agreement with the paper, {name}: Kendall's tau {value} over "
            f"{found['rows']} rows.  "
        )
    labels = {name: line["label"] for name, line in record["rows"].items()}
    for claim in record["claims"]:
        words = []
        for key, name in (("side", "SIDE"), ("mad_authors_deg", "MAD")):
            verdict = claim[key]
            word = "seen" if verdict["seen"] else "**not seen**"
            if verdict["separated"]:
                word += " (all seeds apart)"
            words.append(f"{name} {word}")
        pair = f"{labels[claim['better']]} below {labels[claim['worse']]}"
        lines.append(f"- {pair}: {', '.join(words)}.")
    for near in record.get("near", ()):
        words = []
        for key, name in (("side", "SIDE"), ("mad_authors_deg", "MAD")):
            word = "seen" if near[key]["seen"] else "**not seen**"
            words.append(f"{name} {100 * near[key]['change']:+.1f} %, {word}")
        pair = f"{labels[near['row']]} within {near['share']:.0%} of "
        lines.append(f"- {pair}{labels[near['to']]}: {'; '.join(words)}.")
    for drop in record.get("drops", ()):
        lines.append(
            f"- From {labels[drop['full']]} to {labels[drop['without']]}: SIDE "
            f"{100 * drop['side']:+.3f}, MAD {drop['mad_authors_deg']:+.2f}."
        )
    if "recovered" in record:
        found = record["recovered"]
        parts = [
            f"{name} {found[key]:.2f} (paper {found['paper'][paper]})"
            for key, name, paper in (
                ("side", "SIDE", "side"),
                ("mad_authors_deg", "MAD", "mad"),
            )
            if found[key] is not None
        ]
        lines.append(f"- Recovered share of supervision: {', '.join(parts)}.")
    return lines


def _patch_lines(record: Mapping[str, Any]) -> list[str]:
    """How well confidence finds the patches, in rows that have both."""
    return [
        f"- {line['label']}: sigma of the mirrored reconstruction finds the patches "
        f"with AUROC {_spread(line['auroc_patch'], 1.0, 2)}."
        for line in record["rows"].values()
        if "auroc_patch" in line
    ]
