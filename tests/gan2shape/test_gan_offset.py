"""The offset rule and the framing of projections, against PyTorch's numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.gan2shape import offset
from unsup3d_jax.nets import stylegan2, stylegan2_files

NETS = Path(__file__).parents[1] / "nets" / "data"


def _normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def gan():
    return stylegan2_files.read_stylegan2(NETS / "tiny_stylegan2.pt")


@pytest.mark.parametrize("d", [2, 4, 8])
def test_offsets_are_those_of_pytorch(gan, d):
    e, reference = jnp.asarray(_normal(14, 3, 8)), jnp.asarray(_normal(15, 1, 8))
    with np.load(NETS / "tiny_stylegan2.npz") as wanted:
        for name, code in ((f"offset_{d}", None), (f"offset_{d}_relative", reference)):
            found = offset.latent_offset(gan, e, d, reference=code)
            atol = 1e-4 * np.abs(wanted[name]).max()
            np.testing.assert_allclose(found, wanted[name], rtol=0, atol=atol)


@pytest.mark.parametrize("d", [0, 2, 8])
def test_the_view_that_is_the_image_does_not_move_the_latent(gan, d):
    e = jnp.asarray(_normal(14, 3, 8))
    moved = offset.latent_offset(gan, e, d, reference=e)
    np.testing.assert_allclose(moved, 0.0, atol=1e-5)


def test_without_the_regulariser_the_code_is_the_offset(gan):
    e, reference = jnp.asarray(_normal(14, 3, 8)), jnp.asarray(_normal(15, 1, 8))
    plain = offset.latent_offset(gan, e, 2, regularised=False)
    np.testing.assert_array_equal(plain, e)
    plain = offset.latent_offset(gan, e, 2, regularised=False, reference=reference)
    np.testing.assert_array_equal(plain, e - reference)


def test_d_out_of_range_is_refused(gan):
    with pytest.raises(ValueError, match="d must be 0 to 8, got 9"):
        offset.latent_offset(gan, jnp.zeros((1, 8)), 9)


def test_resizing_is_that_of_pytorch():
    images = jnp.asarray(_normal(7, 1, 3, 20, 20).transpose(0, 2, 3, 1))
    with np.load(Path(__file__).with_name("authors_networks.npz")) as wanted:
        for size in (7, 10, 33):
            found = offset.resize(images, size)
            np.testing.assert_allclose(found, wanted[f"resize_{size}"], atol=2e-6)
    np.testing.assert_array_equal(offset.resize(images, 20), images)


def test_a_projection_is_clamped_then_framed(gan):
    w, shift = jnp.asarray(_normal(16, 1, 8)), jnp.asarray(_normal(17, 2, 8))
    found = jax.jit(offset.project, static_argnums=(3, 4, 5))(gan, w, shift, 16, 48, 64)
    plain = jnp.clip(jax.jit(stylegan2.generate)(gan, w + shift), -1.0, 1.0)
    large = offset.resize(plain, 64)[:, 8:-8, 8:-8]
    wanted = large.reshape(2, 16, 3, 16, 3, 3).mean((2, 4))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert jnp.abs(found).max() <= 1.0
    with pytest.raises(ValueError, match="crop must be 1 to 32"):
        offset.reframe(plain, 16, 40)
