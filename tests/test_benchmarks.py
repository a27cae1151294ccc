"""Benchmarks measure what they say they measure."""

import json

import numpy as np
import pytest

from benchmarks import charts, gradient_noise, rasterizer, train_step
from benchmarks.peers import Calls, Peer, scenes
from configs import default


@pytest.mark.slow  # every part is a program to compile
def test_parts_of_a_small_step_add_up_to_the_step():
    config = default.get_config()
    config.data.image_size = 32
    config.model.width = 16
    config.train.batch_size = 2
    config.train.devices = 1
    config.loss.perceptual = 0.0
    report = train_step.measure(config, rounds=2, authors=None, with_parts=True)
    assert report["ours"]["images_per_s"] > 0
    assert report["ours"]["gflop_per_s"] is None  # known for the full size only
    names = set(report["parts"])
    assert {"network depth", "shading, rasterizer, sampling", "optimizer"} <= names
    assert sum(p["share"] for p in report["parts"].values()) == pytest.approx(1.0)
    assert report["parts"]["network depth"]["gflop"] > 0


def test_a_peer_is_drawn_beside_ours_and_compared(monkeypatch, tmp_path, capsys):
    scene = scenes.grid_scene(8, 2)
    ours = rasterizer._ours("ours", rasterizer._draw_grid, {}).prepare(scene)
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
    own = {"ours, grid": rasterizer._draw_grid}
    monkeypatch.setattr(rasterizer, "_own_renderers", lambda scene, full: own)
    monkeypatch.setattr(rasterizer.peers, "load_all", lambda: ([peer], {"x": "none"}))
    path = tmp_path / "r.json"
    rasterizer.measure(full=False, rounds=1, output=path)
    report = json.loads(path.read_text())
    row = report["rows"][-1]
    assert row["renderer"] == "peer" and row["gradients_off"] == 0.0
    assert row["pixels_off"] == pytest.approx(1 / 128)
    assert report["missing_peers"] == {"x": "none"}
    assert (tmp_path / "r_throughput.svg").read_text().startswith("<svg")
    assert "peer" in capsys.readouterr().out


def test_a_chart_escapes_names_and_draws_every_point():
    chart = charts.line_chart(
        {"a<b": [(32, 1.0), (64, 10.0)]}, title="t", x_label="x", y_label="y"
    )
    assert "a&lt;b" in chart and chart.count('r="3.5"') == 2


def test_gradient_charts_hold_every_method_and_yaw():
    rows = [
        {"spacing": s, "yaw_deg": yaw, "method": m, "slope": slope, "noise": 0.1 * s}
        for s in (0.5, 1.0)
        for yaw in (0.0, 30.0)
        for m, slope in (("hard", 1.0), ("soft", -0.3))
    ]
    drawn = gradient_noise.draw_charts(rows)
    assert set(drawn) == {"noise_yaw0", "noise_yaw30", "bias_yaw0", "bias_yaw30"}
    assert all("hard" in svg and "soft" in svg for svg in drawn.values())
