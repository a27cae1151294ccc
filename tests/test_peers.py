"""Peers get our pixels in their own coordinates, and a GPU's figures are what they say.

The peers that need a GPU are modelled here in NumPy, by what their manuals and kernels
say of coordinates; so that what is handed to them is right is known without one.
"""

import json
import types
from contextlib import contextmanager

import numpy as np
import pytest

import rasterizer
from benchmarks import authors, rasterizer_gpu
from benchmarks.peers import Calls, Peer, Queue, scenes, torch_peers


def _ours(scene):
    drawn = rasterizer.render_depth(
        scene.vertices, scene.faces, scene.size, background=scene.background
    )
    return np.asarray(drawn.depth)


def _nvdiffrast(clip, faces, scene):
    """Its image of one mesh: weights at pixel centres by homogeneous edge functions.

    Row 0 is at y = -1; the nearest is the least z / w, linear on the screen.
    """
    height, width = scene.size
    x = (2 * np.arange(width) + 1) / width - 1
    y = (2 * np.arange(height) + 1) / height - 1
    pixel = np.stack([*np.meshgrid(x, y), np.ones(scene.size)], -1)
    corners = clip[faces][..., [0, 1, 3]]  # (F, 3, (x, y, w))
    nearest = np.full(scene.size, np.inf)
    depth = np.full(scene.size, scene.background)
    for corner, zw in zip(corners, clip[faces][..., 2:], strict=True):
        if abs(np.linalg.det(corner)) < 1e-12:
            continue
        weights = pixel @ np.linalg.inv(corner)  # sum to 1 / w
        ratio = (weights @ zw)[..., 0]  # z / w
        inside = (weights >= 0).all(-1) & (ratio < nearest)
        nearest[inside] = ratio[inside]
        depth[inside] = 1 / weights.sum(-1)[inside]
    return depth


def _neural_renderer(points, faces, scene):
    """Its image of one mesh: rows counted from below, then turned over; front faces."""
    size = scene.size[0]
    centre = (2 * np.arange(size) + 1 - size) / size
    px, py = np.meshgrid(centre, centre)
    depth = np.full(scene.size, 100.0)
    for a, b, c in points[faces]:
        edges = []
        for p, q in ((b, c), (c, a), (a, b)):
            edges.append((py - p[1]) * (q[0] - p[0]) - (px - p[0]) * (q[1] - p[1]))
        area = sum(edges)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = 1 / sum(e / area / v[2] for e, v in zip(edges, (a, b, c), strict=True))
        inside = (np.min(edges, axis=0) >= 0) & (area > 0) & (z < depth)
        depth[inside] = z[inside]
    return np.where(depth < 100.0, depth, scene.background)[::-1]


@pytest.mark.parametrize("scene", [scenes.grid_scene(14, 2), scenes.head_scene(12, 1)])
def test_nvdiffrast_draws_our_image_from_clip_coordinates(scene):
    z = scene.vertices[..., 2:]
    near, far = 0.9 * z.min(), 1.1 * z.max()
    matrix = torch_peers.clip_matrix(scene.size, near, far)
    rows = np.concatenate([scene.vertices[..., :2] * z, z, np.ones_like(z)], -1)
    clip = rows.astype(np.float64) @ matrix.T
    # Between near and far, and linear on the screen: in 1 / z.
    ratio, inverse = clip[..., 2] / clip[..., 3], 1 / z[..., 0]
    assert (np.abs(ratio) < 1).all()
    line = np.polyfit(inverse.ravel(), ratio.ravel(), 1)
    np.testing.assert_allclose(ratio, np.polyval(line, inverse), atol=1e-5)
    expected = _ours(scene)
    for k in range(scene.batch):
        depth = _nvdiffrast(clip[k], scene.faces, scene)
        assert (np.abs(depth - expected[k]) > 1e-3).mean() < 0.03
        shifted = np.roll(depth, 1, axis=1)  # a pixel off would be seen
        assert (np.abs(shifted - expected[k]) > 1e-3).mean() > 0.1


@pytest.mark.parametrize("scene", [scenes.grid_scene(14, 2), scenes.head_scene(12, 1)])
def test_neural_renderer_draws_our_image_from_its_screen(scene):
    points = torch_peers.ndc(scene.vertices, scene.size[0], lambda v: np.stack(v, -1))
    both = np.concatenate([scene.faces, scene.faces[:, ::-1]])
    expected = _ours(scene)
    for k in range(scene.batch):
        depth = _neural_renderer(points[k].astype(np.float64), both, scene)
        assert (np.abs(depth - expected[k]) > 1e-3).mean() < 0.03


def test_a_torch_peer_gives_gradients_in_our_coordinates():
    torch = pytest.importorskip("torch")
    scene = scenes.grid_scene(4, 2)

    def to_input(vertices):
        return vertices * torch.tensor([2.0, -1.0, 3.0])

    def draw(points):
        return points.sum(-1).reshape(2, 4, 4)

    calls = torch_peers._calls(torch, scene, "cpu", to_input, draw)
    assert calls.gradient is not None and calls.queue is None
    depth, gradient = calls.gradient()
    pull = scene.cotangent.reshape(2, 16, 1)
    np.testing.assert_allclose(gradient, pull * np.float32([2, -1, 3]), rtol=1e-6)
    np.testing.assert_allclose(depth, calls.forward())


def _peer(name, prepare):
    return Peer(name=name, version="1", device="none", prepare=prepare)


@pytest.mark.slow  # two renderers to compile
def test_a_gpus_figures_are_written_case_by_case(monkeypatch, tmp_path, capsys):
    def good(scene):
        depth, gradient = _ours(scene), np.zeros_like(scene.vertices)
        queue = Queue(lambda: None, lambda: None, lambda _: None)
        costs = dict.fromkeys(("compile_forward_s", "compile_gradient_s"), 1.0)
        costs["temp_gradient_mib"] = 2.0
        return Calls(lambda: depth, lambda: (depth, gradient), queue, costs)

    def bad(scene):
        raise RuntimeError("out of memory")

    found = [_peer("good", good), _peer("bad", bad)], {"x": "not installed"}
    monkeypatch.setattr(rasterizer_gpu.peers, "load_all", lambda names: found)
    path = tmp_path / "new" / "gpu.json"
    report = rasterizer_gpu.measure(
        cases=("grid:8:2", "head:8:1"),
        backends=("xla",),
        rounds=2,
        output=path,
        copy_mib=1,
    )
    assert json.loads(path.read_text()) == json.loads(json.dumps(report))
    names = [(row["scene"], row["renderer"]) for row in report["rows"]]
    assert names == [
        ("grid", "ours, grid, xla"),
        ("grid", "ours, mesh, xla"),
        ("grid", "good"),
        ("grid", "bad"),
        ("head", "ours, mesh, xla"),
        ("head", "good"),
        ("head", "bad"),
    ]
    first, mesh, other, failed = report["rows"][:4]
    assert failed["error"] == "RuntimeError: out of memory" and "forward" not in failed
    assert mesh["pixels_off"] == mesh["gradients_off"] == 0.0
    assert other["pixels_off"] == 0.0 and other["gradients_off"] > 0.1
    for what in ("forward", "gradient"):
        assert len(first[what]["ms_all"]) == 2
        assert first[what]["times_floor"] == pytest.approx(
            first[what]["ms"] / first[what]["floor_ms"]
        )
    assert report["missing_peers"] == {"x": "not installed"}
    assert "out of memory" in capsys.readouterr().out
    late = rasterizer_gpu.measure(cases=("grid:8:2",), seconds=0.0, copy_mib=1)
    assert late["left_out"] == ["grid:8:2"] and late["rows"] == []


def test_the_floor_counts_each_number_once():
    grid = scenes.grid_scene(8, 2)
    numbers = 2 * (64 * 3 + 64)
    assert rasterizer_gpu.floor_bytes(grid, "forward") == 4 * numbers
    assert rasterizer_gpu.floor_bytes(grid, "gradient") == 8 * numbers
    head = scenes.head_scene(8, 2)
    numbers = 2 * (3410 * 3 + 64) + 6772 * 3
    assert rasterizer_gpu.floor_bytes(head, "forward") == 4 * numbers


def test_calls_back_to_back_wait_once_and_slow_ones_are_not_repeated(monkeypatch):
    now, log = [0.0], []
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(rasterizer_gpu, "time", clock)

    def queue(name, seconds):
        def start():
            log.append(name)
            now[0] += seconds

        def wait(_):
            now[0] += 0.004

        return Queue(start, start, wait)

    times = rasterizer_gpu.time_in_turns(
        {"quick": queue("quick", 0.001), "slow": queue("slow", 2.0)}, rounds=3
    )
    found = times["quick", "forward"]
    np.testing.assert_allclose(found["single"], [0.005] * 12)  # 4 calls fill 0.02 s
    np.testing.assert_allclose(found["row"], [0.002] * 3)
    np.testing.assert_allclose(times["slow", "gradient"]["single"], [2.004])
    assert log.count("slow") == 2


@pytest.mark.parametrize("name", ["grid", "cube:8:1", "grid:a:1"])
def test_a_case_that_is_none_is_named(name):
    with pytest.raises(ValueError, match=name):
        rasterizer_gpu.make_case(name)


def test_the_authors_renderer_is_named_and_bfloat16_ends_at_the_networks():
    module, name = authors._renderer_module("cpu")
    assert "CUDA" in name
    renderer = module.Renderer(image_size=2, near=0.1)
    vertices = np.arange(12.0).reshape(1, 4, 3)
    expected = [[[2.0, 5.0], [8.0, 11.0]]]
    np.testing.assert_array_equal(renderer.render_depth(vertices, None), expected)

    entered = []

    @contextmanager
    def autocast(device, dtype):
        entered.append((device, dtype))
        yield
        entered.append("left")

    backends = types.SimpleNamespace(
        cudnn=types.SimpleNamespace(),
        cuda=types.SimpleNamespace(matmul=types.SimpleNamespace()),
    )
    torch = types.SimpleNamespace(
        autocast=autocast,
        bfloat16="bf16",
        backends=backends,
        device=lambda name: types.SimpleNamespace(type=name.split(":")[0]),
    )
    half = types.SimpleNamespace(float=lambda: "float32")
    theirs = types.SimpleNamespace(
        network_names=["net"],
        net=types.SimpleNamespace(forward=lambda x: (half, half)),
        PerceptualLoss=lambda x, mask: half,
    )
    authors._set_precision(torch, theirs, "tf32", "cuda:0")
    assert backends.cudnn.allow_tf32 and backends.cuda.matmul.allow_tf32
    assert theirs.net.forward(0) == (half, half) and not entered
    authors._set_precision(torch, theirs, "bfloat16", "cuda:0")
    assert not backends.cudnn.allow_tf32
    assert theirs.net.forward(0) == ("float32", "float32")
    assert entered == [("cuda", "bf16"), "left"]
    assert theirs.PerceptualLoss(0, mask=1) == "float32"
