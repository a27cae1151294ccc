"""Benchmarks measure what they say they measure."""

import json
import sys
from argparse import Namespace
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import (
    charts,
    doc_tables,
    gpu_day,
    gradient_noise,
    kernels,
    operations,
    rasterizer,
    train_step,
)
from benchmarks.peers import Calls, Peer, scenes
from configs import default
from unsup3d_jax.unsup3d.options import options_from_config


@pytest.mark.slow  # every part is a program to compile
def test_a_small_step_is_measured_with_its_parts():
    config = default.get_config()
    config.data.image_size = 32
    config.model.width = 16
    config.train.batch_size = 2
    config.train.devices = 1
    config.loss.perceptual = 0.0
    report = train_step.measure(config, rounds=2, clone=None, with_parts=True)
    assert report["ours"]["images_per_s"] > 0
    assert 0 < report["ours"]["share_of_matmul"] < 1
    assert report["memory_mib"]["temporary"] > 0
    names = set(report["parts"])
    assert {"network depth", "rasterizer", "shading, sampling", "optimizer"} <= names
    assert sum(p["share"] for p in report["parts"].values()) == pytest.approx(1.0)
    networks = [p for name, p in report["parts"].items() if "network" in name]
    found = sum(stage["gflop"] for stage in report["layers"].values())
    assert found == pytest.approx(sum(p["gflop"] for p in networks))


@pytest.mark.once
def test_operations_are_those_of_the_papers_networks():
    """GFLOP an image at 64 px and full width, counted by hand from Tables 7 to 9."""
    options = options_from_config(default.get_config())
    layers = operations.layers(options, 64)

    def gflop(network, of):
        return sum(of(layer) for layer in layers if layer.network == network) / 1e9

    forward = {"depth": 1.873, "albedo": 1.900, "light": 0.0556, "conf": 0.575}
    training = {"depth": 5.614, "albedo": 5.692, "light": 0.1636, "conf": 1.718}
    for name, expected in forward.items():
        assert gflop(name, lambda x: x.flop) == pytest.approx(expected, rel=1e-3)
    for name, expected in training.items():
        found = gflop(name, lambda x: x.training_flop)
        assert found == pytest.approx(expected, rel=1e-3)
    five = [x for x in layers if x.network == "depth" and x.stage == operations.FIVE]
    assert [x.module.features for x in five] == [64, 1]
    assert operations.vgg_flop(64) / 5e9 == pytest.approx(1.524, rel=1e-3)
    whole = operations.training_flop(options, 64, vgg=True)
    assert whole / 1e9 == pytest.approx(20.97, rel=1e-3)


@pytest.mark.once
def test_a_peer_is_drawn_beside_ours_and_compared(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    scene = scenes.grid_scene(8, 2)
    ours = rasterizer.ours("ours", rasterizer.draw_grid).prepare(scene)
    assert ours.gradient is not None
    depth, gradient = (np.array(v) for v in ours.gradient())
    depth[0, 0, 0] += 1.0
    peer = Peer(
        name="peer",
        version="1",
        device="none",
        prepare=lambda _: Calls(lambda: depth, lambda: (depth, gradient)),
    )
    monkeypatch.setattr(rasterizer, "_cases", lambda full: [scene])
    own = {"ours, grid": rasterizer.draw_grid}
    monkeypatch.setattr(rasterizer, "_own_renderers", lambda scene, full: own)
    monkeypatch.setattr(rasterizer.peers, "load_all", lambda: ([peer], {"x": "none"}))
    path = tmp_path / "r.json"
    rasterizer.measure(full=False, rounds=1, output=path)
    report = json.loads(path.read_text())
    row = report["rows"][-1]
    assert row["renderer"] == "peer" and row["gradients_off"] == 0.0
    assert row["pixels_off"] == pytest.approx(1 / 128)
    assert report["missing_peers"] == {"x": "none"}
    assert "<svg" in (tmp_path / "r_throughput.svg").read_text()
    assert "peer" in capsys.readouterr().out


def test_a_chart_escapes_names_and_draws_every_point():
    pytest.importorskip("matplotlib")
    lines = {"a<b": [(64, 10.0), (32, 1.0)], "$c$": [(32, 2.0)]}
    names = {"title": "t", "x_label": "across", "y_label": "up"}
    chart = charts.line_chart(lines, **names, rule=5.0)
    assert chart == charts.line_chart(lines, **names, rule=5.0)
    assert "stroke-dasharray" in chart  # the rule
    assert "stroke-dasharray" not in charts.line_chart(lines, **names)
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(chart)
    texts = {text.text for text in root.iter(f"{svg}text")}
    assert {"a<b", "$c$", "t", "across", "up", "32", "64", "1", "10"} <= texts
    marks = [  # "C" of their outlines: circles, which ticks are not
        path.get("id") for path in root.iter(f"{svg}path") if "C" in path.get("d")
    ]
    drawn = [
        mark
        for mark in root.iter(f"{svg}use")
        if mark.get("{http://www.w3.org/1999/xlink}href")[1:] in marks
    ]
    assert len(drawn) == 3 + len(lines)  # and one a name in the legend


@pytest.mark.once
def test_gradient_charts_hold_every_method_and_yaw():
    pytest.importorskip("matplotlib")
    rows = [
        {"spacing": s, "yaw_deg": yaw, "method": m, "slope": slope, "noise": 0.1 * s}
        for s in (0.5, 1.0)
        for yaw in (0.0, 30.0)
        for m, slope in (("hard", 1.0), ("soft", -0.3))
    ]
    drawn = gradient_noise.draw_charts(rows)
    assert set(drawn) == {"noise_yaw0", "noise_yaw30", "bias_yaw0", "bias_yaw30"}
    assert all("hard" in svg and "soft" in svg for svg in drawn.values())


def test_documents_show_the_committed_tables():
    found = 0
    for path in doc_tables.documents(doc_tables.ROOT):
        text = path.read_text()
        made = doc_tables.filled(text, doc_tables.ROOT, path.parent)
        assert made == text, f"{path.name}: run python -m benchmarks.doc_tables"
        found += text.count("<!-- table: ")
    assert found >= 5


def test_a_table_in_a_document_is_replaced_and_the_text_around_it_is_kept(tmp_path):
    committed = doc_tables.ROOT / "benchmarks" / "results" / "table4_small_cpu.json"
    (tmp_path / "table.json").write_text(committed.read_text())
    before = "# Mine\n\n<!-- table: table.json -->\n"
    end = "<!-- table end -->\nAfter.\n"
    made = doc_tables.filled(f"{before}| old |\n{end}", tmp_path, tmp_path / "docs")
    assert made.startswith(before) and made.endswith(end) and "| old |" not in made
    assert "| Perturb, conf. |" in made and "Table 4: " not in made  # no heading
    assert "[All numbers](../table.json)" in made
    assert doc_tables.filled(made, tmp_path, tmp_path / "docs") == made


def test_a_table_that_cannot_be_shown_is_an_error(tmp_path):
    def fill(text):
        return doc_tables.filled(text, tmp_path, tmp_path)

    start, end = "<!-- table: t.json -->\n", "<!-- table end -->\n"
    with pytest.raises(OSError):
        fill(start + end)
    for text in (start, start + "Mine.\n" + start + end):  # would swallow prose
        with pytest.raises(ValueError, match="needs a"):
            fill(text)
    for record in ({"table": {}}, {"rows": {}, "complete": False}):
        (tmp_path / "t.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match="finished table"):
            fill(start + end)


def _part(name, program, *, least=0.0, most=60.0):
    return gpu_day.Part(name, [sys.executable, "-c", program], least, most)


def test_a_gpu_day_keeps_what_is_finished(monkeypatch, tmp_path, capsys):
    begun = [
        _part("good", "print('a number')"),
        _part("bad", "raise SystemExit('no such card')"),
        _part("endless", "import time; time.sleep(600)", most=1.0),
        _part("long", "print('never')", least=1e6),
        _part("unwanted", "print('never')"),
    ]
    monkeypatch.setattr(gpu_day, "parts", lambda flags: begun)
    flags = Namespace(
        output=tmp_path / "day", minutes=2.0, parts="good,bad,endless,long", tail=5
    )
    gpu_day.day(flags)
    rows = json.loads((tmp_path / "day" / "summary.json").read_text())
    assert [row["part"] for row in rows] == ["good", "bad", "endless"]
    assert [row["ending"] for row in rows[:2]] == ["status 0", "status 1"]
    assert "ended after" in rows[2]["ending"] and rows[2]["seconds"] < 60
    told = capsys.readouterr().out
    assert "a number" in told and "no such card" in told
    assert "long: skipped" in told and "never" not in told


def test_kernels_are_summed_by_where_they_come_from():
    text = (
        '%fusion.1 = f32[8]{0} fusion(x), metadata={op_name="pmap(step)/transpose('
        'jvp(depth))/conv/mul" source_file="a.py"}\n'
        '  ROOT %add.2 = f32[] add(y), metadata={op_name="pmap(step)/jvp(depth)/add"}'
    )
    scopes = kernels.scopes_of(text)
    events = [
        kernels.Event("gemm", "fusion.1", 0.0, 4.0),
        kernels.Event("gemm", "fusion.1", 10.0, 4.0),
        kernels.Event("add", "add.2", 12.0, 4.0),
        kernels.Event("copy", "", 20.0, 1.0),
    ]
    found = kernels.summary(events, scopes, 2)
    assert found["kernels_a_call"] == 2
    assert found["kernel_us_a_call"] == pytest.approx(6.5)
    assert found["busy_us_a_call"] == pytest.approx((4 + 6 + 1) / 2)
    assert found["kernels"][0]["us_a_call"] == pytest.approx(4.0)
    assert found["parts"] == {
        "step depth backward": pytest.approx(4.0),
        "step depth": pytest.approx(2.0),
        "?": pytest.approx(0.5),
    }
