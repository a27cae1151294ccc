"""The layout on the square and the grid: laws, and slow obvious programs beside."""

import dataclasses

import numpy as np
import pytest
import stn_meshes
from PIL import Image

from unsup3d_jax.stn3dmm import embedding, grid, morphable, parts, surface, uv

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def open_face():
    return morphable.load_model("open")


@pytest.fixture(scope="module")
def bump():
    model = stn_meshes.model()
    layout, _ = embedding.embed(model.mean, model.faces, model.mirror)
    return dataclasses.replace(model, uv=layout)


def _check_layout(layout, faces, mirror):
    """All that a layout must satisfy in float32, as it is stored."""
    assert layout.dtype == np.float32
    areas = surface.areas(layout, faces)
    assert areas.min() > 0.0
    np.testing.assert_allclose(areas.sum(), 1.0, atol=1e-6)  # the square, all of it
    rim = surface.directed_edges(faces)[surface.boundary_edges(faces)][:, 0]
    assert ((layout[rim] == 0) | (layout[rim] == 1)).any(1).all()
    for corner in np.float32([[0, 0], [0, 1], [1, 0], [1, 1]]):
        assert (layout == corner).all(1).any()
    if mirror is not None:
        np.testing.assert_array_equal(layout[mirror, 0], np.float32(1) - layout[:, 0])
        np.testing.assert_array_equal(layout[mirror, 1], layout[:, 1])
        assert (layout[mirror == np.arange(len(mirror)), 0] == 0.5).all()


def _slow_layout(points, faces, mirror, kind):
    """Every vertex the weighted mean of its neighbours: angle by angle, dense."""
    count = len(points)
    loop = surface.outer_boundary(faces, count)
    weights = np.zeros((count, count))
    for face in faces:
        for k in range(3):
            a, b, c = np.roll(face, -k)
            u, v = points[b] - points[a], points[c] - points[a]
            lengths = np.linalg.norm(u), np.linalg.norm(v)
            angle = np.arccos(u @ v / lengths[0] / lengths[1])
            if kind == "mean_value":
                weights[a, b] += np.tan(angle / 2) / lengths[0]
                weights[a, c] += np.tan(angle / 2) / lengths[1]
            else:
                weights[b, c] += 0.5 / np.tan(angle)
                weights[c, b] += 0.5 / np.tan(angle)
    if kind == "clamped":
        weights = np.where(weights != 0, np.maximum(weights, 1e-3), 0)
    system, right = np.diag(weights.sum(1)) - weights, np.zeros((count, 2))
    border = embedding.boundary_positions(points, loop, mirror)
    for vertex, place in zip(loop, border, strict=True):
        system[vertex], right[vertex] = np.eye(count)[vertex], place
    return np.linalg.solve(system, right)


@pytest.mark.parametrize("kind", embedding.WEIGHTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_symmetric_mesh_is_laid_out_symmetrically(seed, kind):
    points, faces, mirror = stn_meshes.symmetric_disc(seed)
    layout, used = embedding.embed(points, faces, mirror, weights=kind)
    _check_layout(layout, faces, mirror)
    slow = _slow_layout(points, faces, mirror, used)
    np.testing.assert_allclose(layout, slow, atol=1e-6)


def test_without_a_mirror_all_is_solved_for():
    points, faces, _ = stn_meshes.symmetric_disc(3)
    points = points + 0.05 * np.sin(3 * points[:, [1, 2, 0]])
    layout, used = embedding.embed(points, faces)
    _check_layout(layout, faces, None)
    slow = _slow_layout(points, faces, None, used)
    np.testing.assert_allclose(layout, slow, atol=1e-6)


def test_where_cotangents_flip_a_triangle_positive_weights_are_taken():
    points, faces, mirror = stn_meshes.symmetric_disc(5, inner=80, stretch=6.0)
    assert (embedding.edge_weights(points, faces, "cotangent").data < 0).any()
    slow = _slow_layout(points, faces, mirror, "cotangent")
    assert surface.areas(slow, faces).min() <= 0.0
    layout, used = embedding.embed(points, faces, mirror)
    assert used != "cotangent"
    _check_layout(layout, faces, mirror)


def test_the_open_model_ships_with_a_layout(open_face):
    assert len(open_face.mean) == 2188 and len(open_face.faces) == 4286
    _check_layout(open_face.uv, open_face.faces, open_face.mirror)
    at = open_face.uv[open_face.landmarks["ibug68"].ids[:, 0]]
    # Right way up and round: chin, nose, brows; image left first.
    assert at[8, 1] < at[30, 1] < at[27, 1] < at[19, 1]
    assert at[0, 0] < at[36, 0] < at[39, 0] < 0.5 < at[42, 0]
    # Nearly conformal: areas differ by far less than they would by chance.
    ratio = surface.areas(open_face.uv, open_face.faces)
    ratio = ratio / np.linalg.norm(
        surface.normals(open_face.mean, open_face.faces), axis=1
    )
    low, high = np.percentile(ratio / np.median(ratio), [1, 99])
    assert low > 0.15 and high < 3.0


@pytest.mark.parametrize("size", [2, 7, 16, 33])
@pytest.mark.parametrize("which", ["open", "bump"])
def test_a_linear_function_of_uv_comes_out_at_every_node(which, size, open_face, bump):
    model = open_face if which == "open" else bump
    weights = grid.node_weights(model, size)
    j, i = np.meshgrid(np.arange(size), np.arange(size))
    nodes = np.stack([j.ravel(), size - 1 - i.ravel()], 1) / (size - 1)
    np.testing.assert_allclose(weights @ model.uv.astype(float), nodes, atol=1e-7)
    np.testing.assert_allclose(np.asarray(weights.sum(1)).ravel(), 1.0, atol=1e-12)
    assert weights.data.min() >= 0.0


@pytest.mark.parametrize("size", [16, 17])
def test_a_mirror_reverses_the_columns(size, open_face):
    mean = morphable.grid_model(open_face, size, identity=1, expression=0).mean
    mean = mean.reshape(size, size, 3)
    np.testing.assert_array_equal(mean[:, ::-1] * np.float32([-1, 1, 1]), mean)
    # Upright, the nose forward, triangles outward, as the layers take it.
    assert mean[0, :, 1].min() > mean[-1, size // 2, 1]
    assert mean[size // 2, -1, 0] > 0 > mean[size // 2, 0, 0]


def test_halves_that_are_cut_differently_are_made_alike(bump):
    """A quad of one half cut the other way changes nothing: weights are mirrored."""
    expected = grid.node_weights(bump, 9).toarray()
    left = (bump.uv[bump.faces, 0] < 0.5).any(1)
    spoilt = dataclasses.replace(bump, faces=bump.faces[~left])
    np.testing.assert_allclose(grid.node_weights(spoilt, 9).toarray(), expected)


def _slow_locate(layout, faces, point):
    best = (-np.inf, None, None)
    for face in faces:
        a, b, c = layout[face]
        system = np.array([[*a, 1], [*b, 1], [*c, 1]]).T
        weights = np.linalg.solve(system, [*point, 1])
        if weights.min() > best[0]:
            best = (weights.min(), face, weights)
    return best


def test_points_are_found_as_by_trying_every_triangle(bump):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (60, 2))
    layout = bump.uv.astype(float)
    ids, weights = grid.locate(layout, bump.faces, points)
    for point, found, weight in zip(points, ids, weights, strict=True):
        _, face, expected = _slow_locate(layout, bump.faces, point)
        order = np.argsort(found)
        np.testing.assert_array_equal(found[order], np.sort(face))
        np.testing.assert_allclose(weight[order], expected[np.argsort(face)], atol=1e-9)


def test_points_outside_take_the_nearest_of_the_boundary(bump):
    layout = bump.uv.astype(float)
    points = np.array([[-0.2, 0.4], [0.3, 1.7], [1.5, 1.5], [1.1, -0.1]])
    ids, weights = grid.locate(layout, bump.faces, points)
    there = (layout[ids] * weights[..., None]).sum(1)
    np.testing.assert_allclose(there, points.clip(0, 1), atol=1e-12)


def test_many_candidates_are_looked_at_in_parts(bump, monkeypatch):
    points = np.random.default_rng(1).uniform(0, 1, (200, 2))
    expected = grid.locate(bump.uv.astype(float), bump.faces, points)
    monkeypatch.setattr(grid, "_CANDIDATES", 37)
    found = grid.locate(bump.uv.astype(float), bump.faces, points)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def _hole(faces, vertex):
    return faces[~(faces == vertex).any(1)]


def test_what_is_no_disc_is_refused_by_how():
    points, faces, mirror = stn_meshes.symmetric_disc()
    inner = np.setdiff1d(
        np.arange(len(points)), surface.outer_boundary(faces, len(points))
    )
    deep = inner[np.hypot(points[inner, 0] - 0.3, points[inner, 1]).argmin()]
    ring = _hole(faces, deep)
    used = np.unique(ring)
    renumbered = np.searchsorted(used, ring).astype(np.int32)
    twice = np.concatenate([faces, faces + len(points)]).astype(np.int32)
    turned = faces.copy()
    turned[0] = turned[0, [0, 2, 1]]
    for vertices, triangles, words in (
        (points[used], renumbered, "2 boundaries"),
        (points, ring, "1 vertices have no triangle"),
        (np.concatenate([points, points]), twice, "2 pieces"),
        (points, turned, "winding"),
    ):
        with pytest.raises(ValueError, match=words):
            embedding.embed(vertices, triangles)
    nowhere = np.arange(len(points), dtype=np.int32)
    with pytest.raises(ValueError, match="meet the boundary in two"):
        embedding.embed(points, faces, nowhere)
    with pytest.raises(ValueError, match="weights must be one of"):
        embedding.embed(points, faces, mirror, weights="uniform")


def test_holes_are_closed_by_what_is_linear():
    model = stn_meshes.model()
    rim = surface.outer_boundary(model.faces, len(model.mean))
    inner = np.setdiff1d(np.arange(len(model.mean)), rim)
    off = [
        v
        for v in inner
        if model.mirror[v] != v
        and not np.isin(
            model.faces[(model.faces == v).any(1)], [*rim, model.mirror[v]]
        ).any()
    ][:1]
    pair = [off[0], model.mirror[off[0]]]
    keep = ~np.isin(model.faces, pair).any(1)
    open_mesh = parts.restricted(model, keep)
    disc = parts.as_disc(open_mesh)
    assert len(disc.mean) == len(open_mesh.mean) + 2
    assert disc.mirror is not None
    np.testing.assert_allclose(
        disc.mean[disc.mirror] * [-1, 1, 1], disc.mean, atol=1e-6
    )
    alpha = np.random.default_rng(0).normal(size=len(disc.basis))
    shape = disc.mean + np.einsum("d,dnc->nc", alpha, disc.basis)
    for middle in (-1, -2):
        ring = np.unique(disc.faces[(disc.faces == len(disc.mean) + middle).any(1)])
        np.testing.assert_allclose(shape[middle], shape[ring[:-1]].mean(0), atol=1e-6)
    laid, _ = uv.laid_out(open_mesh)
    _check_layout(laid.uv, laid.faces, laid.mirror)


def test_the_command_writes_a_layout_and_a_picture(tmp_path, capsys):
    path = tmp_path / "face.npz"
    morphable.save_model(path, stn_meshes.model())
    assert uv.main([str(path)]) == 0
    assert "least area" in capsys.readouterr().out
    model = morphable.load_model(path)
    _check_layout(model.uv, model.faces, model.mirror)
    with Image.open(tmp_path / "face.uv.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (1024, 1024, 3)
    # The square is covered, and every landmark has its dot.
    assert (pixels.astype(int).sum(2) > 90).mean() > 0.99
    # A red or a blue dot for each landmark, at its place.
    spots = model.landmarks["three"].of(np.pad(model.uv, ((0, 0), (0, 1))))
    for u, v, _ in np.clip(spots, 0.002, 0.998):
        r, g, b = pixels[int((1 - v) * 1023), int(u * 1023)].astype(int)
        assert b > 1.5 * r


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    words = tmp_path / "ids.txt"
    path = tmp_path / "face.npz"
    morphable.save_model(path, stn_meshes.model())
    for text, expected in (
        ("1 2 3", "has 3 words"),
        ("x " * 68, "whole numbers"),
        ("9999 " * 21, "must be vertices from 0 to"),
    ):
        words.write_text(text)
        assert uv.main([str(path), "--landmarks", str(words)]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and expected in line
        assert line.count("\n") == 1
    assert uv.main([str(tmp_path / "none.npz")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_landmarks_may_come_from_a_file(tmp_path):
    path, words = tmp_path / "face.npz", tmp_path / "ids.txt"
    morphable.save_model(path, stn_meshes.model())
    words.write_text("\n".join(str(k) for k in range(21)))
    assert uv.main([str(path), "--landmarks", str(words)]) == 0
    sets = morphable.load_model(path).landmarks
    assert sets["aflw21"].ids[:, 0].tolist() == list(range(21))
    assert set(sets) == {"aflw21", "three"}
