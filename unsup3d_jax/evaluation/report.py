"""What is said of scores: the rules, a table for a terminal, a file."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unsup3d_jax.errors import writing
from unsup3d_jax.files import finite, write_atomically

# Named in every result, because numbers under other rules do not compare.
RULES = {
    "side": (
        "standard deviation over scored pixels of ln depth - ln true depth, per "
        "image; a fraction, tables print it x100"
    ),
    "mad_deg": "mean angle between unit normals over scored pixels, per image",
    "mad_authors_deg": (
        "the same with the authors' normals, divided by norm + 1e-7, which adds up "
        "to 6.5 degrees at 64 px; compare this one with the paper's table"
    ),
    "depth_pearson": (
        "correlation of depth and true depth over scored pixels, per image; 0 where "
        "either is constant"
    ),
    "mask": (
        "true mask and predicted validity, each eroded 3x3 with zeros outside the "
        "image; pixels in both are scored; baselines are valid everywhere"
    ),
    "shared_pixels": (
        "of a baseline: the same over its pixels that the method is scored on as well; "
        "a baseline that is valid everywhere is then scored on exactly those"
    ),
    "coverage": "scored pixels over pixels of the true mask before erosion",
    "spread": "standard deviation over images, n - 1",
    "viewpoint": (
        "angle between predicted and true rotation after the one rotation, common "
        "to all images, that brings the canonical frames together (Procrustes); "
        "offset_deg is its size"
    ),
    "albedo": (
        "root mean square over scored pixels and channels after one scale an image"
    ),
    "light": (
        "direction_deg: angle in the camera's frame; diffuse_share: difference of "
        "k_d / (k_s + k_d), which does not change with a common factor"
    ),
    "confidence": (
        "pixels valid in both reconstructions; sigma against the mean absolute error "
        "over channels of images in [-1, 1], whose expectation is sigma / sqrt 2 "
        "under Eq. (3); calibration_error 0 is calibrated"
    ),
    "auroc": (
        "of sigma of the mirrored reconstruction, over pixels of the object valid in "
        "both; patch: against the perturbation's mask; asymmetric: against that mask "
        "and its mirror image on the true surface, which is asymmetric as well"
    ),
    "keypoint_depth": (
        "correlation over images of predicted and true depth at each keypoint, both "
        "relative to their mean over the image's keypoints; summed over keypoints "
        "(Table 5); keypoints beside the reconstruction take its nearest pixel"
    ),
    "shape": (
        "over images: depth_std inside an image (scene units), depth_relief (what "
        "surrounds the centre minus the centre), hollow_share (relief below 0), "
        "view_std_{x,y,z}_deg; canonical frame"
    ),
    "pose": (
        "rotation_deg: angle between predicted and true rotation, of the same frame; "
        "yaw, pitch, roll: mean absolute differences; by_yaw: of the true yaw, degrees"
    ),
    "nme": (
        "mean distance of projected and true points over the root of the true "
        "landmarks' box; nme_eyes: over the distance of the outer eye corners; "
        "nme_visible: of landmarks that are not hidden; vertex_nme: of all vertices"
    ),
    "shape_mm": (
        "root mean square distance of a model's vertices from the true ones in 3D, "
        "after the similarity that brings them nearest; shape_ratio: mean over that of "
        "the mean face; shape_eyes: over the distance of the outer eye corners"
    ),
    "visible": (
        "texels seen, by the z-buffer at the predicted theta and by its normals alone "
        "(facing), against the z-buffer at the true theta; 224 px"
    ),
    "texture_l1": (
        "mean absolute difference of the flattened face and of one sampled at the true "
        "places, over texels truly seen, colours in [0, 1]"
    ),
    "symmetry": (
        "mean squared difference of the flattened face and its mirror image, over "
        "texels seen on both sides (masked) and over all (unmasked); |yaw| > 40 degrees"
    ),
    "views": (
        "several poses and expressions of a person under one light. variance: over "
        "views, of texels seen in two or more, relative to that of the pixels of the "
        "face in the images as they are. single, mean: texture error of one view and "
        "of the mean of half of the views, over the texels of that view, against the "
        "mean of the other half sampled at the true places"
    ),
}


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of a row worth a curve, for metrics.jsonl and TensorBoard."""
    out = {f"loss_{k}": v["mean"] for k, v in row.get("losses", {}).items()}
    for key in ("recon_l1", "valid_share", "mad_deg", "coverage"):
        if key in row:
            out[key] = row[key]["mean"]
    if "side" in row:
        out["side_x100"] = row["side"]["mean"]
    for angle, agreement in row.get("view", {}).items():
        out[f"{angle}_pearson"] = agreement["pearson"]
        out[f"{angle}_slope"] = agreement["slope"]
    if "viewpoint" in row:
        out["viewpoint_deg"] = row["viewpoint"]["error_deg"]["mean"]
    # Files have null where nothing could be scored.
    known = {name: value for name, value in out.items() if value is not None}
    if "side_x100" in known:
        known["side_x100"] *= 100.0
    return known


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal, one line a row, in the order given.

    Columns that no row has a number for are left out. Where no depth is true, what is
    known without it is shown instead. Below stand, where rows have them, the scores
    over the pixels that the last row is scored on.
    """
    truth = any(row["ground_truth"] for row in rows)
    text = aligned(_columns(rows, (*_DEPTH, *(_OTHER if truth else _WITHOUT_DEPTH))))
    if not truth:
        text += ["", *_WORDS_WITHOUT_DEPTH]
    shared = [
        row | row["shared_pixels"] if "shared_pixels" in row else row
        for row in map(dict, rows)
        if "shared_pixels" in row or row["name"] == rows[-1]["name"]
    ]
    if len(shared) > 1:
        text += ["", f"On the pixels that {rows[-1]['name']!r} is scored on:"]
        text += aligned(_columns(shared, _DEPTH))
    return "\n".join(text)


def _mean(row: Mapping[str, Any], *path: str, digits: int) -> str | None:
    """A number somewhere in a row, or the mean of a spread; None if it is not there."""
    value: Any = row
    for key in path:
        value = value.get(key, {})
    value = value.get("mean") if isinstance(value, Mapping) else value
    return None if value is None else f"{value:.{digits}f}"


def _spread(
    row: Mapping[str, Any], key: str, *, scale: float = 1.0, digits: int
) -> str | None:
    if key not in row or row[key]["n"] == 0:
        return None
    mean, std = scale * row[key]["mean"], scale * row[key]["std"]
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


# Header -> cell of a row, None where its number is not known.
_Column = tuple[str, Callable[[Mapping[str, Any]], str | None]]
_DEPTH: tuple[_Column, ...] = (
    ("SIDE x10^-2", lambda row: _spread(row, "side", scale=100.0, digits=3)),
    ("MAD deg", lambda row: _spread(row, "mad_deg", digits=2)),
    ("MAD authors' code", lambda row: _spread(row, "mad_authors_deg", digits=2)),
    ("coverage", lambda row: _mean(row, "coverage", digits=3)),
)
_OTHER: tuple[_Column, ...] = (
    ("yaw r", lambda row: _mean(row, "view", "yaw", "pearson", digits=3)),
    ("yaw slope", lambda row: _mean(row, "view", "yaw", "slope", digits=2)),
    ("recon L1", lambda row: _mean(row, "recon_l1", digits=4)),
)
_WITHOUT_DEPTH: tuple[_Column, ...] = (
    *_OTHER,
    ("perceptual", lambda row: _mean(row, "losses", "perceptual", digits=4)),
    ("covered", lambda row: _mean(row, "valid_share", digits=3)),
    ("hollow", lambda row: _mean(row, "shape", "hollow_share", digits=3)),
    ("yaw spread deg", lambda row: _mean(row, "shape", "view_std_y_deg", digits=2)),
    (
        "calibration",
        lambda row: _mean(row, "confidence", "plain", "calibration_error", digits=3),
    ),
)
_WORDS_WITHOUT_DEPTH = (
    "No true depth in this data set, so what is known without it: recon L1 (mean",
    "difference of colours in [0, 1] over the covered pixels), the share of the images",
    "that the reconstruction covers, of faces that are hollow, the spread of the yaw,",
    "and how far sigmas are from the errors they stand for (0: calibrated).",
)


def _columns(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[_Column]
) -> list[list[str]]:
    """Header and rows, of the columns that some row has a number for."""
    found = [["method", *(row["name"] for row in rows)]]
    for header, cell in columns:
        cells = [cell(row) for row in rows]
        if any(text is not None for text in cells):
            found.append([header, *("-" if text is None else text for text in cells)])
    images = []
    for row in rows:
        scored, count = row.get("scored_images"), row["images"]
        partly = scored is not None and scored < count
        images.append(f"{scored} of {count}" if partly else str(count))
    found.append(["images", *images])
    return [list(line) for line in zip(*found, strict=True)]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text from lines of cells.

    A rule under the first line; all columns but the first to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    rule = ["-" * width for width in widths]
    for line in [lines[0], rule, *lines[1:]]:
        cells = [line[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return text


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What was scored, for the file of the scores.

    Attributes:
        split: train, val or test.
        data: `data.name`.
        crop: `data.crop`, pixels cut from each image before resizing.
        step: training step of the checkpoint.
        scored: what else tells this evaluation from others of the split; JSON-able.
    """

    split: str
    data: str
    crop: Sequence[int]
    step: int
    scored: Mapping[str, Any]


def write_scores(
    workdir: str | Path,
    row: Mapping[str, Any],
    provenance: Provenance,
    *,
    baseline_rows: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes eval/<split>.json, whole or not at all.

    Args:
        workdir: of the run.
        row: of `summary.row_of`.
        baseline_rows: rows of baselines, trained or not.

    Returns:
        The path of the file.

    Raises:
        UserError: if it cannot be written.
    """
    path = Path(workdir) / "eval" / f"{provenance.split}.json"
    crop = provenance.crop
    content = {
        "split": provenance.split,
        "data": provenance.data,
        "checkpoint_step": int(provenance.step),
        "crop": list(crop) if crop else "none",
        "scored": dict(provenance.scored),
        "rules": RULES | {"crop": crop_rule(crop, provenance.data)},
        **row,
        "baselines": {r["name"]: r for r in baseline_rows},
    }
    text = json.dumps(finite(content), indent=2, allow_nan=False)
    with writing(path, "The same command scores again; no training is lost."):
        write_atomically(path, text + "\n")
    return path


def crop_rule(crop: Sequence[int], data: str) -> str:
    """Says in words what `data.crop` does to an image of a set before it is resized."""
    if len(crop) == 0 and data == "celeba":
        return "CelebA's own, by the layout it lies in (docs/data.md)"
    if len(crop) == 0:
        return "none: the whole image, resized to a square"
    if len(crop) == 1:
        size = f"{crop[0]} x {crop[0]} pixels" if crop[0] else "largest square"
        return f"centred, {size}, before resizing"
    y0, x0, h, w = crop
    return f"rows {y0} to {y0 + h - 1}, columns {x0} to {x0 + w - 1}, before resizing"
