"""From what each seed scored to all that table.json holds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from unsup3d_jax.evaluation import baselines, report
from unsup3d_jax.experiments.paper_tables import Near, Row, Table
from unsup3d_jax.experiments.tables.rows import schedule
from unsup3d_jax.unsup3d import watch

# (key in a row, its name, factor, digits): the measures of Tables 2 to 4. MAD by
# the authors' formula is what compares with the paper's.
MEASURES = (
    ("side", "SIDE (x10^-2)", 100.0, 3),
    ("mad_authors_deg", "MAD (deg.), authors' formula", 1.0, 2),
    ("mad_deg", "MAD (deg.), unit normals", 1.0, 2),
)
VERDICTS = ("side", "mad_authors_deg")  # what orders are seen in
# Of the generator that a row of GAN2Shape asks (`gan2shape.view_control`).
VIEW_CONTROL = {
    "spearman": "rank correlation of yaws read off its answers with those asked for",
    "slope": "of the yaw read over the yaw asked for, -30 to 30 degrees",
    "same": (
        "distance of its answers to the frontal one of the same image, by the "
        "discriminator's features"
    ),
    "other": "the same to the frontal one of another image",
}
MORE_MEASURES = ("mae", "depth_pearson", "coverage", "albedo")  # table.json only
# Below this correlation of predicted with true yaw, viewpoints are not learnt.
VIEW_LOST_PEARSON = 0.5
# Below this correlation of predicted with true depth, on average over images, shape
# is not learnt. On the open faces noise has 0, a bump 0.6, the average depth 0.89.
SHAPE_LOST_PEARSON = 0.5
COLLAPSES = {
    "hollow": (
        "depth is opposed to the truth (depth_pearson below "
        f"-{SHAPE_LOST_PEARSON}); where true depth is not known, in most images the "
        "centre is farther than what surrounds it, in the canonical frame"
    ),
    "flat": (
        f"depth varies by less than {watch.FLAT_DEPTH_SHARE:.0%} of its range inside "
        "an image"
    ),
    "shape_lost": (
        "neither of these, but depth follows the truth no better than noise does "
        f"(depth_pearson below {SHAPE_LOST_PEARSON}); False where true depth is not "
        "known"
    ),
    "view_collapsed": (
        f"all three angles spread by less than {watch.VIEW_SPREAD_DEG:g} degree over "
        "images"
    ),
    "view_lost": (
        f"the correlation of predicted with true yaw is below {VIEW_LOST_PEARSON}, as "
        "of a hollow face, which turns the other way; False where the true viewpoint "
        "is not known"
    ),
    "diverged": "loss or gradient were not finite",
}


def collapses(row: Mapping[str, Any], *, depth_range: float) -> dict[str, bool]:
    """Whether the training of one seed ended in a known failure.

    Args:
        row: of `evaluate.evaluate`, or {"diverged": ...}.
        depth_range: largest minus smallest depth, scene units.

    Returns:
        Each of `COLLAPSES`, which says what it means; a run can have failed in
        shape and in viewpoint. Empty for a row without factors.
    """
    if "diverged" in row:
        return dict.fromkeys(COLLAPSES, False) | {"diverged": True}
    if "shape" not in row:
        return {}
    shape = row["shape"]
    if None in shape.values():  # not finite
        return dict.fromkeys(COLLAPSES, False) | {"diverged": True}
    flat = shape["depth_std"] < watch.FLAT_DEPTH_SHARE * depth_range
    hollow, shape_lost = shape["hollow_share"] > 0.5, False
    agreement = row.get("depth_pearson", {}).get("mean")
    if agreement is not None:
        # The truth decides: the centre of noise is farther by chance, and a face
        # beside the middle of its frame is none the worse.
        hollow = agreement < -SHAPE_LOST_PEARSON
        shape_lost = not hollow and agreement < SHAPE_LOST_PEARSON
    view_lost = False
    if "view" in row:
        pearson = row["view"]["yaw"]["pearson"]
        view_lost = pearson is None or pearson < VIEW_LOST_PEARSON
    return {
        "hollow": hollow and not flat,
        "flat": flat,
        "shape_lost": shape_lost and not flat,
        "view_collapsed": all(
            shape[f"view_std_{axis}_deg"] < watch.VIEW_SPREAD_DEG for axis in "xyz"
        ),
        "view_lost": view_lost,
        "diverged": False,
    }


def over_seeds(rows: Sequence[Mapping[str, Any]], key: str) -> dict | None:
    """One measure over the seeds that have it.

    Returns:
        "mean" over seeds of the mean over images; "std_seeds" (n - 1; None for
        fewer than two); "std_images", the mean over seeds of the spread over
        images; "seeds", the means themselves. None if no seed has it.
    """
    # Not finite (null in the file), or over no image: no number.
    found = [r[key] for r in rows if key in r]
    found = [entry for entry in found if entry["n"] and entry["mean"] is not None]
    if not found:
        return None
    means = [entry["mean"] for entry in found]
    return {
        "mean": float(np.mean(means)),
        "std_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "std_images": float(np.mean([entry["std"] for entry in found])),
        "seeds": means,
    }


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank agreement: Kendall's tau-b; 1 for the same order, -1 for the opposite.

    None if there are fewer than two items, or one side is all ties.
    """
    if len(a) < 2:
        return None
    found: Any = stats.kendalltau(a, b)  # SciPy has no types
    return None if math.isnan(found.statistic) else float(found.statistic)


def summarise(
    bases: Mapping[str, ConfigDict],
    table: Table,
    rows: Mapping[str, Row],
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    complete: bool,
) -> dict:
    """Everything `table.json` holds.

    Args:
        bases: of `base_config`, by method; the table's own among them.
        table, rows: of `table_of`.
        scores: for each row, what each seed scored; may lack the last ones.
        complete: whether all rows and seeds are in.
    """
    base = bases[table.method]

    def depth_range(row: Row) -> float:
        return bases[row.method].depth.max - bases[row.method].depth.min

    lines = {
        name: _line(row, list(scores[name]), depth_range=depth_range(row))
        for name, row in rows.items()
    }
    scored = [r for found in scores.values() for r in found if "side" in r]
    images = sorted({r["images"] for r in scored})
    record = {
        "table": base.tables.name,
        "title": table.title,
        "scale": base.tables.scale,
        "complete": complete,
        "data": base.data.name,
        "split": base.eval.split,
        "images": scored[0]["images"] if scored else None,
        "first_images": base.eval.max_images,  # 0: no limit
        "schedule": {method: schedule(x) for method, x in bases.items()},
        "image_size": base.data.image_size,
        "seeds": base.tables.seeds,
        "seeds_trained": (
            "together" if base.tables.get("together", False) else "one by one"
        ),
        "measure": "keypoints" if table.keypoints else "SIDE and MAD",
        "rules": report.RULES
        | {
            "crop": report.crop_rule(base.data.crop, base.data.name),
            "collapses": COLLAPSES,
        }
        | ({"view_control": VIEW_CONTROL} if table.method == "gan2shape" else {}),
        "rows": lines,
        "stability": _rates(
            [
                collapses(r, depth_range=depth_range(rows[name]))
                for name, found in scores.items()
                if rows[name].kind == "trained"
                for r in found
            ]
        ),
        "notes": list(table.notes),
    }
    record["rank_agreement"] = _rank_agreement(lines)
    record["claims"] = [
        verdict
        for claim in table.claims
        if (verdict := _verdict(lines, claim.better, claim.worse)) is not None
    ]
    if len(images) > 1:
        counts = ", ".join(map(str, images))
        record["notes"].append(f"Rows are of different images: {counts}.")
    record["near"] = [
        verdict
        for near in table.near
        if (verdict := _nearness(lines, near)) is not None
    ]
    record["drops"] = [
        _drop(lines, full, without)
        for full, without in table.drops
        if all("side" in lines.get(name, {}) for name in (full, without))
    ]
    if (recovered := _recovered(lines)) is not None:
        record["recovered"] = recovered
    return record


def _line(
    row: Row, found: Sequence[Mapping[str, Any]], *, depth_range: float
) -> dict[str, Any]:
    """What the table holds of one row, from what its seeds scored."""
    line: dict[str, Any] = {"label": row.label, "kind": row.kind}
    line["seeds"] = len(found)
    for key in (*(m[0] for m in MEASURES), *MORE_MEASURES):
        if (summary := over_seeds(found, key)) is not None:
            line[key] = summary
    for key, part in (
        ("viewpoint", "error_deg"),
        ("light", "direction_deg"),
        ("auroc", "patch"),
        ("auroc", "asymmetric"),
    ):
        inner = [r[key] for r in found if key in r]
        if (summary := over_seeds(inner, part)) is not None:
            line[f"{key}_{part}"] = summary
    for key in ("pearson", "slope"):  # absent where the true view is not known
        if yaws := [r["view"]["yaw"].get(key) for r in found if "view" in r]:
            line[f"yaw_{key}"] = {"seeds": yaws}
    line |= _keypoint_line(found) | _stages_line(found)
    if controls := [r["view_control"] for r in found if "view_control" in r]:
        line["view_control"] = {
            key: _plain_over_seeds([c[key] for c in controls]) for key in VIEW_CONTROL
        }
    if minutes := [r["minutes_an_image"] for r in found if "minutes_an_image" in r]:
        line["minutes_an_image"] = _plain_over_seeds(minutes)
    # An untrained model has no viewpoint yet, and has not failed.
    line["collapses"] = None
    if row.kind == "trained":
        verdicts = [collapses(r, depth_range=depth_range) for r in found]
        line["collapses"] = _rates(verdicts)
    if row.published is not None:
        line["published"] = vars(row.published).copy()
    return line


def _stages_line(found: Sequence[Mapping[str, Any]]) -> dict:
    """What a run that works in stages scored on its way, and at its end."""
    names = [
        name
        for name in (found[0].get("baselines", {}) if found else {})
        if name not in baselines.BASELINES
    ]
    if not names or "stage" not in found[0].get("name", ""):
        return {}
    stages = {name: [r["baselines"][name] for r in found] for name in names}
    stages[found[0]["name"]] = list(found)
    keys = [m[0] for m in MEASURES]
    return {
        "stages": {
            name: {
                key: summary
                for key in keys
                if (summary := over_seeds(parts, key)) is not None
            }
            for name, parts in stages.items()
        }
    }


def _plain_over_seeds(values: Sequence[float | None]) -> dict | None:
    """As `over_seeds`, of one number a seed."""
    rows = [{"x": {"mean": value, "std": 0.0, "n": 1}} for value in values]
    found = over_seeds(rows, "x")
    if found is not None:
        del found["std_images"]
    return found


def _keypoint_line(found: Sequence[Mapping[str, Any]]) -> dict:
    entries = [r["keypoint_depth"] for r in found if "keypoint_depth" in r]
    entries = [e for e in entries if e["sum"] is not None]
    if not entries:
        return {}
    sums = [e["sum"] for e in entries]
    return {
        "keypoint_depth": {
            "mean": float(np.mean(sums)),
            "std_seeds": float(np.std(sums, ddof=1)) if len(sums) > 1 else None,
            "keypoints": entries[0]["keypoints"],
            "seeds": sums,
        }
    }


def _rates(verdicts: Sequence[Mapping[str, bool]]) -> dict | None:
    """How many seeds failed in each way; None if no seed can fail."""
    judged = [v for v in verdicts if v]
    if not judged:
        return None
    counts = {name: sum(bool(v[name]) for v in judged) for name in COLLAPSES}
    failed = sum(any(v.values()) for v in judged)
    return counts | {
        "seeds": len(judged),
        "failed": failed,
        "failed_share": failed / len(judged),
    }


def _rank_agreement(lines: Mapping[str, Mapping[str, Any]]) -> dict:
    result = {}
    for key, paper in (("side", "side"), ("mad_authors_deg", "mad")):
        both = [x for x in lines.values() if key in x and "published" in x]
        ours = [x[key]["mean"] for x in both]
        theirs = [x["published"][paper] for x in both]
        result[key] = {"kendall_tau": kendall_tau(ours, theirs), "rows": len(both)}
    return result


def _verdict(
    lines: Mapping[str, Mapping[str, Any]], better: str, worse: str
) -> dict | None:
    """Whether an order of the paper is seen here; None if a row is missing.

    `separated`: every seed of the better row lies below every seed of the worse;
    a trained row of a single seed is not known to.
    """
    if not all(name in lines and "side" in lines[name] for name in (better, worse)):
        return None
    a, b = lines[better], lines[worse]
    verdict: dict[str, Any] = {"better": better, "worse": worse}
    alone = any(
        x["kind"] in ("trained", "supervised") and len(x["side"]["seeds"]) < 2
        for x in (a, b)
    )
    for key in VERDICTS:
        verdict[key] = {
            "seen": a[key]["mean"] < b[key]["mean"],
            "separated": not alone and max(a[key]["seeds"]) < min(b[key]["seeds"]),
        }
    return verdict


def _nearness(lines: Mapping[str, Mapping[str, Any]], near: Near) -> dict | None:
    """Whether a row is as near to another as it should be; None if one is missing."""
    if not all("side" in lines.get(name, {}) for name in (near.row, near.to)):
        return None
    verdict: dict[str, Any] = {"row": near.row, "to": near.to, "share": near.share}
    for key in VERDICTS:
        change = lines[near.row][key]["mean"] / lines[near.to][key]["mean"] - 1.0
        verdict[key] = {"change": change, "seen": abs(change) <= near.share}
    return verdict


def _drop(
    lines: Mapping[str, Mapping[str, Any]], full: str, without: str
) -> dict[str, Any]:
    """By how much the errors of a row grow without a part of it."""
    grown = {k: lines[without][k]["mean"] - lines[full][k]["mean"] for k in VERDICTS}
    return {"full": full, "without": without, **grown}


def _recovered(lines: Mapping[str, Mapping[str, Any]]) -> dict | None:
    """(constant - ours) / (constant - supervised): 1 is as good as supervision."""
    ours = next((n for n in ("ours", "full") if n in lines), "")
    names = ("constant", ours, "supervised")
    if not all(name in lines and "side" in lines[name] for name in names):
        return None
    result: dict[str, Any] = {"paper": {"side": 0.83, "mad": 0.82}}
    for key in ("side", "mad_deg", "mad_authors_deg"):
        constant, mean, supervised = (lines[name][key]["mean"] for name in names)
        span = constant - supervised
        result[key] = (constant - mean) / span if span > 0 else None
    return result
