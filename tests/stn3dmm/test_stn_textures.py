"""Flattened faces as textures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_faces

from unsup3d_jax.stn3dmm import layers, textures
from unsup3d_jax.stn3dmm.textures import GUESSED, MIRRORED, SEEN

GRID, SIZE = 24, 48


def ramp(count):
    """A texture whose colour tells the place: (u right, v down, 1/2)."""
    place = (np.arange(count, dtype=np.float32) + 0.5) / count
    u, v = np.meshgrid(place, place)
    return np.stack([u, v, np.full_like(u, 0.5)], axis=-1)


def test_a_mean_counts_each_texel_where_it_is_seen():
    rng = np.random.default_rng(0)
    faces, seen = rng.uniform(size=(3, 5, 5, 3)), rng.uniform(size=(3, 5, 5))
    seen[:, 0, 0] = 0.0
    mean, weight = textures.mean_flattened(zip(faces, seen, strict=True))
    expected = np.zeros((5, 5, 3))
    for i in range(5):
        for j in range(5):
            if seen[:, i, j].sum():
                expected[i, j] = seen[:, i, j] @ faces[:, i, j] / seen[:, i, j].sum()
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_allclose(weight, seen.sum(0), atol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        textures.mean_flattened([])


def test_holes_are_filled_from_the_other_half():
    """A symmetric face of which the right part is hidden comes out whole."""
    face = ramp(20)
    face[..., 0] = np.abs(face[..., 0] - 0.5)
    seen = np.ones((20, 20))
    seen[:, 14:] = 0.0
    hidden = np.where(seen[..., None] > 0, face, 9.0).astype(np.float32)
    found = textures.completed(hidden, seen)
    np.testing.assert_allclose(found.texture, face, atol=1e-6)
    assert (found.source[:, :14] == SEEN).all()
    assert (found.source[:, 14:] == MIRRORED).all()


def test_what_neither_half_shows_is_copied_from_beside_and_marked():
    face, seen = ramp(12), np.ones((12, 12))
    seen[:2] = 0.0
    found = textures.completed(np.where(seen[..., None] > 0, face, 0.0), seen)
    assert (found.source[:2] == GUESSED).all() and (found.source[2:] == SEEN).all()
    np.testing.assert_allclose(found.texture[:2], face[[2, 2]], atol=1e-6)
    nothing = textures.completed(face, np.zeros((12, 12)))
    assert (nothing.source == GUESSED).all() and not nothing.texture.any()


def test_no_edge_is_drawn_where_mirrored_texels_begin():
    """A face lit from the right, of which the far right is hidden."""
    face = np.full((100, 100, 3), 0.4, np.float32)
    face[:, 50:] = 0.6
    face[:, ::8] *= 0.9  # detail that is not symmetric stays where it was seen
    seen = np.ones((100, 100))
    seen[:, 70:] = 0.0
    dirty = np.where(seen[..., None] > 0, face, 0.0)
    dirty[:, 69] = 0.1  # some of what lies behind the face
    found = textures.completed(dirty, seen)
    np.testing.assert_array_equal(found.texture[:, :66], face[:, :66])
    assert (found.source[:, 69:] == MIRRORED).all()
    hidden = found.texture[50, 69:, 0]
    # The dark half's texels in the light of this one.
    assert 0.5 < hidden.min() and hidden.max() < 0.65
    light = textures._gain(face, face[:, ::-1], np.ones((100, 100), bool))
    np.testing.assert_allclose(light[50, [5, -5], 0], [2 / 3, 3 / 2], rtol=0.05)


@pytest.fixture(scope="module")
def turned():
    model = stn_faces.face(GRID, 2)
    vector = np.array([0.1, -0.5, 0.05, 0.03, -0.02, 0.1, 0.5, -0.5], np.float32)
    return model, layers.split(jnp.asarray(vector)), stn_faces.camera(0.0875)


def test_drawing_what_was_flattened_gives_the_photo_back(turned):
    """Where the face is drawn; and texels come from where the texture has them."""
    model, theta, camera = turned

    @jax.jit
    def there_and_back(photo):
        posed = layers.posed(model, theta, camera, image_size=SIZE)
        texture = textures.photo_texture(photo, posed.pixels, scale=3)
        picture, cover = textures.view_of(model, theta, camera, texture, size=SIZE)
        flat = layers.flatten_image(photo[None], posed.pixels[None], GRID)[0]
        return picture, cover, texture, flat

    photo = ramp(SIZE)
    picture, cover, texture, flat = map(np.asarray, there_and_back(photo))
    inside = cover == 1.0
    assert 0.2 < inside.mean() < 0.8
    # A turned nose hides texels, which do not matter here: what is drawn was seen.
    error = np.abs(picture - photo)[inside]
    assert np.median(error) < 1e-3 and np.quantile(error, 0.99) < 0.02
    # Vertices lie in the middle of each 3 x 3 texels.
    np.testing.assert_allclose(texture[1::3, 1::3], flat, atol=1e-5)


def test_texture_coordinates_are_those_of_the_flattened_picture(turned):
    model, theta, camera = turned
    uv = textures.texture_coordinates(4)
    np.testing.assert_allclose(uv[0], [1 / 8, 7 / 8])
    np.testing.assert_allclose(uv[3], [7 / 8, 7 / 8])
    np.testing.assert_allclose(uv[-1], [7 / 8, 1 / 8])
    # From the front the forehead is at the top, the first column at the left.
    front = textures.frontal(theta)
    picture, cover = textures.view_of(model, front, camera, ramp(GRID), size=SIZE)
    inside = np.asarray(cover) == 1.0
    rows, columns = np.nonzero(inside)
    u, v, _ = np.asarray(picture)[inside].T
    assert np.corrcoef(columns, u)[0, 1] > 0.95 and np.corrcoef(rows, v)[0, 1] > 0.95
