"""A run's latents are searched once, and again when anything of them is another's."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs.gan2shape import default
from unsup3d_jax.configuration import changed
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import latents, offset
from unsup3d_jax.nets.stylegan2 import GanOptions, StyleGan
from unsup3d_jax.nets.stylegan2_inversion import Inverted

pytestmark = pytest.mark.once

IMAGES = np.linspace(0.0, 1.0, 3 * 32 * 32 * 3).reshape(3, 32, 32, 3).astype(np.float32)
MASKS = np.ones((3, 32, 32), np.float32)
GAN = StyleGan(
    mapping={"kernel": np.arange(4.0)},
    synthesis={},
    discriminator={},
    noise=(),
    mean_w=np.zeros(4, np.float32),
    options=GanOptions(image_size=8, channels=(4, 4), style=4),
)
LATENTS = np.arange(12.0, dtype=np.float32).reshape(3, 4)


@pytest.fixture()
def config():
    return changed(default.get_config(), {"data.image_size": 32})


@pytest.fixture()
def searches(monkeypatch):
    """The images of every search."""
    found = []

    def invert(config, gan, lpips, images, masks):
        found.append(images)
        n = len(images)
        error = jnp.full(n, 0.1)
        return Inverted(jnp.asarray(LATENTS), jnp.asarray(images), error, error, error)

    def project(gan, w, moved, size, crop):
        return jnp.ones((len(w), size, size, 3)) * w.sum(-1)[:, None, None, None]

    monkeypatch.setattr(latents, "invert", invert)
    monkeypatch.setattr(offset, "project", project)
    return found


def _find(config, tmp_path, images=IMAGES, gan=GAN):
    return latents.find(config, gan, None, images, MASKS, tmp_path)


def test_what_was_found_is_kept(config, searches, tmp_path, capsys):
    first = _find(config, tmp_path)
    assert "rms error on the object 0.100" in capsys.readouterr().err
    again = _find(config, tmp_path)
    assert len(searches) == 1
    for own in (first, again):
        np.testing.assert_array_equal(own.w, LATENTS)
        np.testing.assert_allclose(own.picture[:, 0, 0, 0], LATENTS.sum(1))


@pytest.mark.parametrize("what", ["image", "generator", "option", "damage", "cut"])
def test_what_was_made_of_something_else_is_not(config, searches, tmp_path, what):
    _find(config, tmp_path)
    images, gan = IMAGES, GAN
    if what == "image":
        images = 1.0 - IMAGES
    elif what == "generator":
        gan = dataclasses.replace(GAN, mapping={"kernel": np.ones(4)})
    elif what == "option":
        config = changed(config, {"invert.steps": 7})
    elif what == "damage":
        (tmp_path / latents.FILE).write_bytes(b"no zip")
    else:
        whole = (tmp_path / latents.FILE).read_bytes()
        (tmp_path / latents.FILE).write_bytes(whole[: len(whole) // 2])
    _find(config, tmp_path, images, gan)
    assert len(searches) == 2


def test_shuffled_latents_are_those_of_others(config, searches, tmp_path):
    own = _find(changed(config, {"broken.latents": True}), tmp_path)
    np.testing.assert_array_equal(own.w, LATENTS[[2, 0, 1]])


def test_a_generator_that_is_not_there_is_named(config, tmp_path):
    missing = str(tmp_path / "none.pt")
    with pytest.raises(UserError, match="none.pt"):
        latents.load_generator(changed(config, {"projection.generator": missing}))


def test_latents_that_are_known_are_read_by_name(monkeypatch, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.pt").write_bytes(b"")
    monkeypatch.setattr(
        latents,
        "read_latent",
        lambda path, style: np.full(style, ord(path.stem), np.float32),
    )
    found = latents.read(tmp_path, ["b.jpg", "a.png"], GAN)
    np.testing.assert_array_equal(found, [[98.0] * 4, [97.0] * 4])
    with pytest.raises(UserError, match=r"c\.pt does not exist; each image needs one"):
        latents.read(tmp_path, ["c.png"], GAN)
