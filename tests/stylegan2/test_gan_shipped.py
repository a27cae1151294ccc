"""A trained generator on its way into the package and out of it."""

import gan_toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.gan2shape import gan_faces_wide
from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import stylegan2 as nets
from unsup3d_jax.nets.stylegan2_files import read_stylegan2, write_stylegan2
from unsup3d_jax.stylegan2 import held_out, sample, shipped
from unsup3d_jax.stylegan2.options import gan_options

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def parts():
    options = gan_options(gan_toy.config())
    return {
        "ema": nets.init_generator(jax.random.key(0), options),
        "discriminator": nets.init_discriminator(jax.random.key(1), options),
    }


def test_what_is_shipped_is_what_was_trained_in_half_precision(parts, tmp_path):
    config, path = gan_toy.config(), tmp_path / "gan.safetensors"
    gan = shipped.gan_of(parts, config)
    write_stylegan2(path, gan, np.float16, {"about": "a toy"})
    found = shipped.load(config, path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        found,
        parts,
    )
    again = read_stylegan2(path)
    for a, b in zip(again.noise, gan.noise, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    z = np.random.default_rng(0).normal(size=(4096, 4)).astype(np.float32)
    mapped = nets.map_latent(parts["ema"]["mapping"], jnp.asarray(z), gan.options)
    mean = mapped.mean(0)
    np.testing.assert_allclose(again.mean_w, mean, atol=0.05)


def test_a_config_of_another_generator_is_refused(parts, tmp_path):
    path = tmp_path / "gan.safetensors"
    write_stylegan2(path, shipped.gan_of(parts, gan_toy.config()))
    with pytest.raises(UserError, match="style 4, expected 5"):
        shipped.load(gan_toy.config(gan__style=5), path)
    with pytest.raises(UserError, match="does not exist; train first"):
        shipped.load(gan_toy.config(), tmp_path / "other.safetensors")


def test_the_generator_that_ships_is_the_recipes():
    if not shipped.PATH.exists():
        pytest.skip("not trained yet")
    found = shipped.load(gan_faces_wide.get_config())
    assert shipped.PATH.stat().st_size < 3 * 2**20
    card = shipped.PATH.with_suffix(".md").read_text(encoding="utf-8")
    assert "gan_faces_wide.py" in card and set(found) == {"ema", "discriminator"}


def test_mode_sample_leaves_three_pictures(parts, tmp_path):
    config = gan_toy.config(log__picture_count=6)
    paths = sample.write(parts, config, tmp_path / "out")
    sizes = {path.name: Image.open(path).size for path in paths}
    assert sizes == {
        "samples.png": (3 * 8, 2 * 8),
        "truncated.png": (3 * 8, 2 * 8),
        "between.png": (8 * 8, 8 * 8),
    }
    drawn = np.asarray(Image.open(paths[0]), np.float32)
    assert drawn.std() > 1.0
    latents = sample.between(parts["ema"], gan_options(config), 0)
    np.testing.assert_allclose(
        np.diff(latents[:8], axis=0)[0], np.diff(latents[:8], axis=0)[-1], atol=1e-5
    )


def test_the_nearest_training_image_is_nearest_on_the_face():
    rng = np.random.default_rng(0)
    images, training = (rng.integers(0, 256, (n, 4, 4, 3), np.uint8) for n in (3, 9))
    masks = rng.random((3, 4, 4)) < 0.5
    found = held_out.nearest_on_face(images, masks, training)
    for image, mask, error in zip(images, masks, found, strict=True):
        away = (image[mask] / 127.5)[None] - training[:, mask] / 127.5
        expected = np.sqrt(np.square(away).mean((1, 2)).min())
        np.testing.assert_allclose(error, expected, rtol=1e-4)
