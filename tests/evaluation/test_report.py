"""The table, the curves and the file of a row that no method made."""

import errno
import json

import numpy as np
import pytest

from unsup3d_jax import files
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import report, summary
from unsup3d_jax.evaluation.depth import DepthScores
from unsup3d_jax.evaluation.scores import ImageScores

COUNT = 5


@pytest.fixture(scope="module")
def row():
    rng = np.random.default_rng(0)

    def some(*shape):
        return rng.uniform(0.1, 0.9, (COUNT, *shape)).astype(np.float32)

    depth = DepthScores(*(some() for _ in range(6)), np.full(COUNT, 100))
    scores = ImageScores(
        depth=depth,
        view=some(6),
        true_view=some(6),
        recon_l1=some(),
        losses={"a": some()},
    )
    return summary.row_of("ours", scores)


def provenance(split, step, crop=()):
    return report.Provenance(split, "balls", crop, step, {"seed": 3})


def test_table_prints_the_papers_units(row):
    text = report.format_table([row, {**row, "name": "other"}])
    lines = text.splitlines()
    assert len(lines) == 4 and "SIDE x10^-2" in lines[0] and "MAD deg" in lines[0]
    assert (
        f"{100 * row['side']['mean']:.3f} ± {100 * row['side']['std']:.3f}" in lines[2]
    )
    assert len({len(line) for line in lines}) == 1  # aligned
    assert report.scalars(row)["side_x100"] == 100 * row["side"]["mean"]
    assert report.scalars(row)["yaw_slope"] == row["view"]["yaw"]["slope"]


def spread(mean, n=COUNT):
    return {"mean": mean, "std": 0.01, "n": n}


def test_photos_without_truth_show_what_is_known():
    row = {
        "name": "ours",
        "images": 7,
        "ground_truth": False,
        "note": "no true depth",
        "recon_l1": spread(0.0761),
        "valid_share": spread(0.912),
        "losses": {"perceptual": spread(0.1234), "photometric": spread(1.0)},
        "shape": {"hollow_share": 0.1429, "view_std_y_deg": 16.04},
        "confidence": {"plain": {"curve": [], "calibration_error": 0.043}},
    }
    header, rule, line, *words = report.format_table([row]).splitlines()
    assert [c.strip() for c in header.split("  ") if c.strip()] == [
        "method", "recon L1", "perceptual", "covered", "hollow", "yaw spread deg",
        "calibration", "images",
    ]  # fmt: skip
    assert line.split() == ["ours", *"0.0761 0.1234 0.912 0.143 16.04 0.043 7".split()]
    assert words[0] == "" and "No true depth" in words[1]
    # Without perceptual loss and confidence there are no columns for them.
    del row["losses"], row["confidence"]
    assert "perceptual" not in report.format_table([row]).splitlines()[0]
    assert "-" not in report.format_table([row]).splitlines()[2]


def test_a_column_that_some_row_knows_stays(row):
    plane = {k: row[k] for k in ("images", "ground_truth", "scored_images", "side")}
    text = report.format_table([{**plane, "name": "plane"}, row]).splitlines()
    assert "yaw r" in text[0] and text[2].split().count("-") >= 3
    alone = report.format_table([{**plane, "name": "plane"}]).splitlines()
    assert alone[0].split() == ["method", "SIDE", "x10^-2", "images"]


def test_scores_on_common_pixels_stand_below(row):
    shared = {"side": spread(0.0123), "mad_deg": spread(20.5), "scored_images": 4}
    plane = {**row, "name": "plane", "shared_pixels": shared}
    plain = report.format_table([{**row, "name": "plane"}, row])
    text = report.format_table([plane, row])
    assert text.startswith(plain + "\n")  # which is as it was
    below = text[len(plain) :].splitlines()
    assert below[2] == "On the pixels that 'ours' is scored on:"
    assert below[5].startswith("plane") and "1.230 ± 1.000" in below[5]
    assert f"4 of {COUNT}" in below[5] and "20.50 ± 0.01" in below[5]
    assert below[6].startswith("ours") and below[6].split()[1] in plain


def test_file_holds_scores_rules_and_baselines(tmp_path, row):
    broken = {**row, "name": "broken", "extra": float("nan")}
    made = provenance("test", 7, crop=(170,))
    for _ in range(2):  # the second replaces the first
        path = report.write_scores(tmp_path, row, made, baseline_rows=[broken])
    assert path == tmp_path / "eval" / "test.json"
    assert [p.name for p in path.parent.iterdir()] == ["test.json"]
    content = json.loads(path.read_text())
    assert content["side"] == row["side"] and content["images"] == COUNT
    assert content["checkpoint_step"] == 7 and content["crop"] == [170]
    assert "eroded" in content["rules"]["mask"]
    assert content["baselines"]["broken"]["extra"] is None


def test_interrupted_writing_leaves_the_old_file(tmp_path, row, monkeypatch):
    path = report.write_scores(tmp_path, row, provenance("val", 1))
    before = path.read_text()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write_scores(tmp_path, row, provenance("val", 2))
    assert path.read_text() == before
    monkeypatch.undo()
    report.write_scores(tmp_path, row, provenance("val", 2))
    assert [p.name for p in path.parent.iterdir()] == ["val.json"]


def test_scores_that_cannot_be_written_are_one_line(tmp_path, row, monkeypatch):
    (tmp_path / "eval").write_text("in the way")
    with pytest.raises(UserError, match=r"test\.json: File exists \(.*eval\)"):
        report.write_scores(tmp_path, row, provenance("test", 1))
    (tmp_path / "eval").unlink()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"test\.json: No space left on device\. The"):
        report.write_scores(tmp_path, row, provenance("test", 1))


def test_curves_leave_out_what_was_not_measured(row):
    bare = summary.row_of("bare", ImageScores(recon_l1=np.ones(2, np.float32)))
    assert report.scalars(bare) == {"recon_l1": 1.0}
    assert report.scalars(row)["loss_a"] == row["losses"]["a"]["mean"]


def test_a_crop_is_said_in_words():
    assert report.crop_rule((), "folder").startswith("none")
    assert "CelebA's own" in report.crop_rule((), "celeba")
    assert "largest square" in report.crop_rule((0,), "folder")
    assert "170 x 170" in report.crop_rule((170,), "synface")
    assert report.crop_rule((8, 14, 100, 90), "celeba") == (
        "rows 8 to 107, columns 14 to 103, before resizing"
    )
