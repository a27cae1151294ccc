"""Theta of open faces, against the camera that renders them."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.stn3dmm import default
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.open_face import model, scene
from unsup3d_jax.data.open_face.model import LANDMARK_FLIP
from unsup3d_jax.stn3dmm import layers, morphable, people
from unsup3d_jax.stn3dmm.options import Face

SIZE, COUNT = 64, 3


@pytest.fixture(scope="module")
def face():
    """The open model on a coarse grid, through the open faces' camera."""
    whole = morphable.load_model("open")
    grid = morphable.grid_model(whole, 6)
    camera = morphable.default_camera(grid, perspective=people.open_face_perspective())
    return Face("open", whole, grid, camera, np.arange(100))


@pytest.fixture(scope="module")
def heads():
    """Coefficients, scale and view of somebody, without a picture."""
    rng = np.random.default_rng(0)
    seeds = model.of_one_number(np.arange(COUNT))
    drawn = model.sample_people(model.load_model(), seeds, asymmetry=1.0)
    turn = rng.uniform(-0.8, 0.8, (COUNT, 3))
    shift = rng.uniform(-0.01, 0.01, (COUNT, 3))
    return {
        "coefficients": drawn.coefficients,
        "scale": rng.uniform(0.86, 0.99, COUNT).astype(np.float32),
        "view": np.concatenate([turn, shift], axis=1).astype(np.float32),
    }


def rendered_landmarks(heads):
    """(n, 68, 2) pixels, as `open_face.render` places heads; float64."""
    head = model.load_model()
    basis = model.basis(head, asymmetry=1.0)[:, head.landmarks].astype(float)
    points = head.mean[head.landmarks] + np.einsum(
        "nk,klc->nlc", heads["coefficients"], basis
    )
    turn = scene.rotation(heads["view"].astype(float))
    points = points * heads["scale"][:, None, None] * [1, -1, -1]
    points = np.einsum("nij,nlj->nli", turn, points) + heads["view"][:, None, 3:]
    points[..., 2] += scene.CENTRE_DEPTH
    half = (SIZE - 1) / 2
    focal = half / np.tan(np.radians(scene.FOV_DEG / 2))
    return half + focal * points[..., :2] / points[..., 2:]


@pytest.fixture(scope="module")
def dataset(face, heads):
    arrays = {"image": np.zeros((COUNT, 1, SIZE, SIZE, 3), np.uint8)}
    arrays |= {name: array[:, None] for name, array in heads.items()}
    plain = ds.Dataset(arrays, ds.Report("open_faces", "test", "", COUNT), "")
    return people.with_theta(plain, face, asymmetry=1.0)


@pytest.fixture(scope="module")
def project(face):
    def one(vector):
        return layers.project_landmarks(
            face.grid, layers.split(vector), face.camera, image_size=SIZE
        )

    return jax.jit(jax.vmap(one))


def test_theta_puts_landmarks_where_they_are_rendered(dataset, heads, project):
    theta = dataset.arrays["latent"][:, 0]
    found = project(theta)
    np.testing.assert_allclose(found, rendered_landmarks(heads), atol=2e-3)
    np.testing.assert_array_equal(theta, dataset.arrays["truth"][:, 0])


def test_theta_is_mirrored_with_its_image(dataset, project):
    theta = dataset.arrays["latent"][:, 0]
    mirrored = project(theta @ dataset.latent_mirror.T)
    expected = np.array(project(theta))[:, list(LANDMARK_FLIP)]
    expected[..., 0] = SIZE - 1 - expected[..., 0]
    # What expressions have of asymmetry is mirrored in the span of the others.
    np.testing.assert_allclose(mirrored, expected, atol=0.03)


def test_fewer_columns_are_the_first_of_each_kind(face, heads, dataset):
    columns = np.concatenate([np.arange(6 + 5), 6 + 70 + np.arange(2)])
    few = dataclasses.replace(
        face,
        columns=columns,
        grid=morphable.grid_model(face.model, 6, identity=5, expression=2),
    )
    arrays = {"image": dataset.arrays["image"]}
    arrays |= {name: array[:, None] for name, array in heads.items()}
    plain = ds.Dataset(arrays, ds.Report("open_faces", "test", "", COUNT), "")
    found = people.with_theta(plain, few, asymmetry=1.0)
    whole = dataset.arrays["truth"]
    np.testing.assert_array_equal(found.arrays["truth"], whole)
    np.testing.assert_array_equal(found.arrays["latent"], whole[..., columns])
    assert found.latent_mirror.shape == (13, 13)


def test_test_people_have_one_view_and_training_people_several(monkeypatch, face):
    calls = []

    def load_people(config, split, **options):
        calls.append((split, options))
        raise RuntimeError

    monkeypatch.setattr(people.open_face_load, "load_people", load_people)
    config = default.get_config()
    config.data.views, config.eval.views, config.eval.people = 3, 4, 2
    for load in (people.load_split, people.load_views):
        for split in ("train", "test"):
            with pytest.raises(RuntimeError):
                load(config, face, split)
    views = [(split, options["views"]) for split, options in calls]
    assert views == [("train", 3), ("test", 1), ("train", 4), ("test", 4)]
    assert "light" not in calls[-1][1]["vary"]
