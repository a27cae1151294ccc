"""The page of a run: what it keeps of a log, and that it is safe, small and whole."""

import html
import json
import math
import re

import pytest

from unsup3d_jax.show import documents
from unsup3d_jax.show.run_page import curves as curve_files
from unsup3d_jax.show.run_page import page
from unsup3d_jax.show.run_page.curves import Curve, Curves


def line(step, split="train", **numbers):
    return {"step": step, "split": split, **numbers}


def event(step, kind, text=""):
    return {"step": step, "split": "event", "event": kind, "reason": text}


def content(text):
    """What the script is given."""
    (found,) = re.findall(r'id="content">(.*?)</script>', text, re.S)
    return json.loads(found)


def shown(run, **options):
    return page.document(run, **options)[0]


def test_a_long_curve_keeps_its_ends_and_its_extremes(monkeypatch):
    monkeypatch.setattr(curve_files, "MOST_BUCKETS", 40)
    curve = Curve()
    for step in range(1, 2001):
        value = {1234: 7.0, 1777: -9.0}.get(step, math.sin(step / 99.0))
        curve.add(step, value)
    assert len(curve._buckets) <= 40
    points = curve.points(50)
    assert len(points) <= 52
    assert (1234, 7.0) in points and (1777, -9.0) in points
    assert points[0][0] == 1 and points[-1][0] == 2000 == curve.last[0]
    assert [step for step, _ in points] == sorted({step for step, _ in points})


def test_a_short_curve_keeps_all_and_shows_where_it_was_not_finite():
    curve = Curve()
    for step, value in enumerate([3.0, math.nan, 1.0, math.inf, 2.0]):
        curve.add(step, value)
    assert curve.points(800) == [(0, 3.0), (1, None), (2, 1.0), (3, None), (4, 2.0)]


def test_a_long_run_with_many_names_is_a_small_page(monkeypatch):
    monkeypatch.setattr(page, "MOST_POINTS", 600)
    monkeypatch.setattr(curve_files, "MOST_CURVES", 10)
    names = [f"a_name_of_some_length_{i}" for i in range(12)]
    curves = Curves()
    for step in range(60):
        curves.add(line(step, **dict.fromkeys(names, step / 7.0)))
    for step in range(1000):
        curves.add(event(step, f"kind {step % 9}", "x" * 10_000))
    assert len(curves.curves) == 10
    text = shown(page.Run("long", curves, pictures=range(5000)))
    # Events at their worst; 60,000 points of 20 bytes would come to this.
    assert len(text.encode()) < 700_000
    found = content(text)
    drawn = [s for g in found["groups"] for c in g["charts"] for s in c["series"]]
    assert {len(s["s"]) for s in drawn} == {60}
    monkeypatch.setattr(page, "MOST_POINTS", 1)
    (group,) = page.groups(curves)
    assert all(len(c["series"][0]["s"]) <= 42 for c in group["charts"])
    pictures = found["pictures"]
    assert len(pictures) == page.MOST_PICTURES
    assert pictures[0] == 0 and pictures[-1] == 4999
    assert "are left out" in text


def test_all_text_of_a_run_is_escaped():
    evil = "</script><script>alert(1)</script>\u202e\x1b[31m"
    curves = Curves(
        [
            line(1, **{evil: 1.0, "total": 1.0}),
            line(1, "eval", of=evil, **{evil: 2.0}),
            event(1, "warning", evil),
            event(1, evil, evil),
        ]
    )
    record = {
        "config": {"name": evil, evil: {evil: evil}, "train": {"steps": 3}},
        "defaults": {f"{evil}.{evil}": evil},
        "versions": {evil: evil},
        "devices": [evil],
        "command": [evil],
        "seed": evil,
    }
    tables = {evil: f"{evil}\nmethod  score\n------  -----\n{evil[:6]}  {evil}\n"}
    text = shown(page.Run(evil, curves, record, tables), beside=evil)
    assert text.count("<script") == 2 == text.count("</script")
    assert "\x1b" not in text and "\u202e" not in text
    assert "alert(1)" in html.unescape(text)
    assert content(text)["marks"][0]["text"].startswith("</script>")


@pytest.mark.parametrize("live", [False, True])
def test_nothing_is_fetched_and_only_its_own_script_runs(live):
    text, policy = page.document(page.Run("x", Curves()), live=live)
    (meta,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert html.unescape(meta) == policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert ("connect-src 'self'" in policy) == live
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    for part in (script, style):
        assert documents.digest(part) in policy
    addresses = set(re.findall(r"https?://[^\"' ]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"\son\w+=|\sstyle=", text)


def test_numbers_that_are_not_finite_leave_the_page_whole():
    lines = [line(s, total=v) for s, v in enumerate([1.0, math.nan, math.inf])]
    lines.append(event(3, "skip") | {"total": math.nan, "grad_norm": math.inf})
    text = shown(page.Run("x", Curves(lines)))
    (chart,) = content(text)["groups"][0]["charts"]
    assert chart["series"][0]["v"] == [1.0, None, None]
    assert "step skipped</strong>: total nan, grad_norm inf" in text


def test_training_and_validation_share_a_chart():
    lines = []
    for step in range(1, 4):
        numbers = {"total": 1.0 / 10**step, "fit": -1.0, "grad_norm": 1.0}
        more = {"grad_norm_depth": 2.0, "coverage": 0.5, "step_time": 1.0, "eta": 9.0}
        lines.append(line(step, **numbers, **more))
        lines.append(line(step, "val", total=0.1, fit=-1.0, mad_deg=3.0))
    groups = page.groups(Curves(lines))
    names = {g["title"]: [c["title"] for c in g["charts"]] for g in groups}
    assert names == {
        "Loss": ["total", "fit"],
        "What a step reports": ["coverage"],
        "Validation": ["mad_deg"],
        "Optimizer": ["grad_norm"],
        "Speed": ["step_time"],
    }
    total, fit = groups[0]["charts"]
    assert [s["label"] for s in total["series"]] == ["train", "val"]
    assert total["log"] and not fit["log"]
    norms = groups[3]["charts"][0]["series"]
    assert [s["label"] for s in norms] == ["grad_norm", "grad_norm_depth"]


def test_a_table_for_a_terminal_becomes_one_of_cells():
    text = "\n".join(
        [
            "method   SIDE x10^-2  MAD",
            "-------  -----------  ---",
            "average  1.0 ± 0.2      5",
            "ours               -  123",
            "",
            "On the pixels that 'ours' is scored on:",
        ]
    )
    found = shown(page.Run("x", Curves(), tables={"test": text}))
    assert '<th scope="col">SIDE x10^-2</th><th scope="col">MAD</th>' in found
    assert '<th scope="row">average</th><td>1.0 ± 0.2</td><td>5</td>' in found
    assert '<th scope="row">ours</th><td>-</td><td>123</td>' in found
    assert "<p>On the pixels that &#x27;ours&#x27; is scored on:</p>" in found


def test_without_a_table_the_line_of_the_log_is_shown():
    found = shown(page.Run("x", Curves([line(9, "eval", of="test", side_x100=0.81)])))
    assert '<th scope="row">side_x100</th><td>0.81</td>' in found


def test_what_differs_from_the_defaults_comes_first_and_stands_out():
    record = {
        "config": {"a": {"x": 1}, "train": {"steps": 1600, "rate": 0.1}},
        "defaults": {"train.steps": 30_000},
    }
    text = shown(page.Run("x", Curves(), record))
    assert "1 of 3 values differ from the defaults" in text
    rows = re.findall(r'<tr( class="changed")?><th scope="row">(.*?)</th>', text)
    assert rows == [
        (' class="changed"', "train.steps"),
        ("", "a.x"),
        ("", "train.rate"),
    ]
    assert "default: 30000" in text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "Nothing has been logged yet"),
        ([line(5, total=2.0, eta=60.0)], "Step 5 of 10 (50%): loss 2, 0:01:00 left"),
        ([line(10, total=2.0)], "Finished. Step 10 of 10"),
        ([line(5, total=2.0), event(6, "diverged", "why")], "<strong>Diverged"),
        ([event(2, "diverged", "why"), line(5, total=2.0)], "<p>Step 5 of 10"),
    ],
)
def test_it_says_how_far_the_run_is(lines, words):
    record = {"config": {"train": {"steps": 10}}}
    assert words in shown(page.Run("x", Curves(lines), record))
