"""Photos in, folders out: what is in them, and that the numbers hang together."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_faces
import trimesh
from PIL import Image

from unsup3d_jax.stn3dmm import export, layers, reconstruct_files, textures
from unsup3d_jax.stn3dmm.export import ExportOptions

pytestmark = pytest.mark.once

GRID, SEEN, SIZE = 12, 32, 64
OPTIONS = ExportOptions(photo_size=SIZE, visibility="zbuffer", texture_scale=2)
CAMERA = stn_faces.camera()
THETA = np.array([0.05, -0.4, 0.1, 0.04, -0.02, 0.1, 0.5, -0.3, 0.2, 0.4], np.float32)


@pytest.fixture(scope="module")
def model():
    return stn_faces.face(GRID)


def photo(path, seed=0):
    """A square of smooth colours beside two strips of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    square = Image.fromarray(coarse).resize((100, 100), Image.Resampling.BICUBIC)
    wide = np.random.default_rng(9).integers(0, 256, (100, 140, 3), np.uint8)
    wide[:, 20:120] = np.asarray(square)
    Image.fromarray(wide).save(path)
    return square


def localise(params, images):
    assert images.shape[1:] == (SEEN, SEEN, 3)
    return jnp.tile(params["theta"], (len(images), 1))


def run(tmp_path, model, theta=THETA, options=OPTIONS, **more):
    return reconstruct_files.reconstruct_folder(
        localise,
        {"theta": theta},
        SEEN,
        model,
        CAMERA,
        options,
        tmp_path / "in",
        tmp_path / "out",
        **more,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory, model):
    place = tmp_path_factory.mktemp("photos")
    squares = [
        photo(place / "in" / f"{name}.png", seed=i) for i, name in enumerate("ab")
    ]
    (place / "in" / "c.png").write_bytes(b"no photo")
    return place, squares, run(place, model)


def test_each_photo_gets_its_folder_and_broken_ones_are_named(written):
    place, _, result = written
    assert [folder.name for _, folder in result.written] == ["a", "b"]
    assert [file.name for file, _ in result.broken] == ["c.png"]
    names = {path.name for path in (place / "out" / "a").iterdir()}
    pictures = "input flattened visibility overlay landmarks frontal frontal_marked"
    expected = {f"{name}.png" for name in (*pictures.split(), "panel", "mesh")}
    expected |= {"factors.npz", "record.json", "mesh.glb", "mesh.obj", "mesh.mtl"}
    expected |= {"viewer.html"}
    assert names == expected


def test_arrays_are_what_theta_says_of_this_photo(written, model):
    place, squares, _ = written
    for square, name in zip(squares, "ab", strict=True):
        with np.load(place / "out" / name / "factors.npz") as arrays:
            found = dict(arrays)
        image = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255
        # Cut out of the photo: the largest centred square, at the size of the output.
        np.testing.assert_allclose(found["input"], image, atol=1e-6)
        np.testing.assert_array_equal(found["theta"], THETA)
        posed = layers.posed(model, layers.split(THETA), CAMERA, image_size=SIZE)
        pixels = np.asarray(posed.pixels).reshape(GRID, GRID, 2)
        np.testing.assert_allclose(found["pixels"], pixels, atol=1e-3)
        np.testing.assert_allclose(found["landmarks"], posed.landmarks, atol=1e-3)
        u, v = np.clip(np.rint(pixels).astype(int), 0, SIZE - 1).T
        near = image[v.T, u.T]
        seen = found["visibility"] > 0
        assert seen.mean() > 0.5
        assert np.abs(found["flattened"] - near)[seen].mean() < 0.03
        shape, _ = layers.shape(model, THETA[6:])
        assert found["vertices"].shape == (GRID, GRID, 3)
        np.testing.assert_allclose(found["vertices"].reshape(-1, 3), shape, atol=1e-6)
        assert all(array.dtype == np.float32 for array in found.values())


def test_record_tells_theta_and_pose(written):
    place, _, _ = written
    record = json.loads((place / "out" / "a" / "record.json").read_text())
    np.testing.assert_allclose(record["theta"], THETA, rtol=1e-6)
    pose = record["pose"]
    # A nose turned to the image's left, by about the second angle.
    assert 18 < pose["yaw_deg"] < 28 and abs(pose["pitch_deg"]) < 10
    np.testing.assert_allclose(pose["scale"], np.exp(0.1), rtol=1e-6)
    with np.load(place / "out" / "a" / "factors.npz") as arrays:
        assert record["visible"] == pytest.approx(arrays["visibility"].mean())


def test_mesh_is_textured_with_the_flattened_face(written, model):
    place, _, _ = written
    folder = place / "out" / "a"
    mesh: Any = trimesh.load(folder / "mesh.glb", force="mesh", process=False)
    shape, _ = layers.shape(model, THETA[6:])
    np.testing.assert_allclose(mesh.vertices, model.unit * np.asarray(shape), atol=1e-6)
    assert mesh.face_normals[:, 2].mean() > 0.3  # outward, towards the viewer
    texture = np.asarray(Image.open(folder / "mesh.png"), np.float32) / 255
    assert texture.shape == (2 * GRID, 2 * GRID, 3)
    with np.load(folder / "factors.npz") as arrays:
        flat, seen = arrays["flattened"], arrays["visibility"] > 0
    u, v = mesh.visual.uv.T
    column, row = u * 2 * GRID - 0.5, (1 - v) * 2 * GRID - 0.5
    # Half-way between four texels.
    around = [
        texture[(row + i).astype(int), (column + j).astype(int)]
        for i in (0, 1)
        for j in (0, 1)
    ]
    at = np.mean(around, axis=0).reshape(GRID, GRID, 3)
    inner = seen & np.roll(seen, 1, 1) & np.roll(seen, -1, 1)
    assert np.abs(at - flat)[inner].mean() < 0.03


def test_mean_of_several_is_written_and_follows_new_photos(tmp_path, model, written):
    place, _, _ = written
    arrays = [np.load(place / "out" / name / "factors.npz") for name in "ab"]
    mean, _ = textures.mean_flattened(
        [(one["flattened"], one["visibility"]) for one in arrays]
    )
    shown = np.asarray(Image.open(place / "out" / reconstruct_files.MEAN)) / 255
    np.testing.assert_allclose(shown, mean, atol=0.003)
    photo(tmp_path / "in" / "a.png")
    run(tmp_path, model, batch_size=2)
    assert not (tmp_path / "out" / reconstruct_files.MEAN).exists()  # of one photo


def test_what_is_current_is_kept_and_another_theta_or_model_is_not(
    tmp_path, model, monkeypatch
):
    made = []
    blank = SimpleNamespace(
        flattened=np.ones((2, 2, 3), np.float32), visibility=np.ones((2, 2), np.float32)
    )
    means = []

    def write(folder, *rest):
        made.append(rest)
        arrays = {k: 0 * v for k, v in vars(blank).items()}
        np.savez(folder / export.ARRAYS, **arrays)
        return {}, blank

    def write_mean(path, mean):
        means.append((mean.count, mean.result()[0].mean()))

    monkeypatch.setattr(export, "export", write)
    monkeypatch.setattr(reconstruct_files, "_write_mean", write_mean)
    for i, name in enumerate("ab"):
        photo(tmp_path / "in" / f"{name}.png", seed=i)
    assert len(run(tmp_path, model).written) == 2
    assert not run(tmp_path, model).written and len(made) == 2
    assert len(run(tmp_path, model, theta=THETA + 0.01).written) == 2
    finer = ExportOptions(photo_size=SIZE, visibility="facing", texture_scale=2)
    assert len(run(tmp_path, model, theta=THETA + 0.01, options=finer).written) == 2
    other = model.replace(mean=model.mean + 0.001)
    assert len(run(tmp_path, other, theta=THETA + 0.01, options=finer).written) == 2
    assert len(run(tmp_path, other, theta=THETA + 0.01, options=finer).kept) == 2
    # What was just made is not read again, what was kept is: there it says 0.
    assert means == [(2, 1.0), (2, 0.0), (2, 1.0), (2, 1.0), (2, 1.0), (2, 0.0)]


def test_frontal_view_is_turned_back_and_tells_what_it_made_up(written):
    place, _, _ = written
    folder = place / "out" / "a"
    plain, marked = (
        np.asarray(Image.open(folder / f"{name}.png"), np.float32) / 255
        for name in ("frontal", "frontal_marked")
    )
    cover = plain.max(-1) > 0
    columns = np.nonzero(cover)[1]
    assert 0.15 < cover.mean() < 0.9
    # The bump is symmetric but for its random columns: its middle is the photo's.
    assert abs(columns.mean() - (SIZE - 1) / 2) < 0.1 * SIZE
    tinted = np.abs(marked - plain).max(-1) > 0.05
    assert 0 < tinted.mean() < 0.6 * cover.mean()


def test_what_is_seen_flatly_is_not_used(model):
    image = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    found = jax.device_get(export.flatten(model, THETA, image, CAMERA, OPTIONS))
    seen, used = found.visibility > 0, export.usable(found) > 0
    assert (found.cosine[seen] >= 0).all() and found.cosine.max() > 0.95
    assert used.any() and not (used & ~seen).any()
    np.testing.assert_array_equal(used, seen & (found.cosine > 0.3))


def test_a_photo_of_another_size_is_refused(model, unchecked):
    with pytest.raises(ValueError, match="need a photo of 64 x 64"):
        jax.eval_shape(
            lambda image: export.flatten(model, THETA, image, CAMERA, OPTIONS),
            jax.ShapeDtypeStruct((32, 32, 3), np.float32),
        )
