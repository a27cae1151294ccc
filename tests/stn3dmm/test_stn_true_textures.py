"""Flattened open faces against their true colours: data, camera, model, layout."""

import numpy as np
import pytest

from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.data.open_face import model as open_face
from unsup3d_jax.data.open_face import truth, uv_texture
from unsup3d_jax.data.open_face.generate import Options
from unsup3d_jax.data.open_face.uv_texture import Light
from unsup3d_jax.stn3dmm import export, morphable, people, true_textures

GRID, SIZE, COUNT = 48, 64, 3


@pytest.fixture(scope="module")
def faces():
    """Three pictures, and what theta says of them."""
    numbers = open_faces.split_seeds("test", count=COUNT, seed=7)
    pictures = open_faces.generate(numbers, image_size=SIZE, pose="natural")
    seeds = open_face.of_one_number(numbers)
    known = truth.truth_of(seeds, Options(SIZE, "natural", 1.0, False))
    model = morphable.grid_model(morphable.load_model("open"), GRID)
    kappa = people.open_face_perspective()
    camera = morphable.default_camera(model, perspective=kappa)
    pose = people.pose_of(known["scale"], known["view"], camera=camera)
    theta = np.concatenate([pose, morphable.alpha_of(known["coefficients"])], axis=1)
    return seeds, pictures, theta, model, camera


def flattened(images, theta, model, camera):
    options = export.ExportOptions(SIZE, "zbuffer", 1)
    return [
        export.flatten(model, vector, image.astype(np.float32) / 255, camera, options)
        for image, vector in zip(images, theta, strict=True)
    ]


@pytest.mark.once
def test_flattened_pictures_show_the_true_texture(faces):
    """Albedo and shaded: nothing is fitted, so everything must agree.

    What remains is the resolution of the picture (a texel of the eye is smaller than
    a pixel), rounding to 8 bits, and hair, which stands off the model.
    """
    seeds, pictures, theta, model, camera = faces
    lit = Light(pictures["view"], pictures["light"])
    for name, light in (("albedo", None), ("image", lit)):
        true = true_textures.true_textures(seeds, GRID, asymmetry=1.0, lit=light)
        found = flattened(pictures[name], theta, model, camera)
        for texture, one in zip(true, found, strict=True):
            seen = np.asarray(one.visibility) > 0.5
            assert 0.4 < seen.mean() <= 1.0
            error = np.abs(np.asarray(one.flattened) - texture).mean(-1)[seen]
            assert np.median(error) < 0.012 and error.mean() < 0.025
            # Beside itself moved by a texel, or mirrored, it is clearly off.
            for wrong in (texture[:, ::-1], np.roll(texture, 2, axis=0)):
                off = np.abs(np.asarray(one.flattened) - wrong).mean(-1)[seen]
                assert off.mean() > 1.4 * error.mean()


def test_texture_of_a_person_is_the_same_from_every_side():
    people_of = open_faces.split_seeds("test", count=1, seed=7)
    seeds = open_faces.view_seeds(people_of, views=3, vary=("pose", "light"))
    albedo = true_textures.true_textures(seeds, GRID, asymmetry=1.0)
    np.testing.assert_array_equal(albedo[0], albedo[1])
    np.testing.assert_array_equal(albedo[0], albedo[2])


def test_a_symmetric_person_has_a_symmetric_texture():
    numbers = open_faces.split_seeds("test", count=COUNT, seed=8)
    seeds = open_face.of_one_number(numbers)
    textures = true_textures.true_textures(seeds, GRID, asymmetry=0.0)
    error = np.abs(textures - textures[:, :, ::-1])
    # Quads of the two halves of the mesh may be cut differently.
    assert np.median(error) < 1e-5 and np.quantile(error, 0.98) < 0.03


def test_points_know_eyes_and_mouth():
    points = true_textures.grid_points(48)
    shape = open_face.load_model()
    assert set(points.labels.tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(points.weights.sum(1), 1.0, atol=1e-6)
    rest = (shape.rest[points.corners] * points.weights[..., None]).sum(1)
    # Left eye of the subject at x > 0, forehead first.
    assert rest[points.labels == 1, 0].min() > 0 > rest[points.labels == 2, 0].max()
    assert rest[:48, 1].min() > rest[-48:, 1].max()
    with pytest.raises(ValueError, match=r"no triangle \[0, 1, 3000\]"):
        uv_texture.points_of(shape, np.array([[0, 1, 3000]]), np.ones((1, 3)) / 3)


def test_angles_are_those_of_the_view(faces):
    _, pictures, theta, *_ = faces
    for vector, view in zip(theta, pictures["view"], strict=True):
        found = export.angles_deg(vector[:3])
        np.testing.assert_allclose(found, np.degrees(view[:3]), atol=1e-3)
