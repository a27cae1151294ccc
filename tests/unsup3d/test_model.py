"""The autoencoder: heads, flip, oracle, masks, options and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d import model

SIZE = 32


def _config(**changes):
    config = default.get_config()
    config.data.image_size = SIZE
    config.model.width = 16
    config.model.encoder_width = 16
    config.raster.supersample = 1
    config.loss.perceptual = 0.0
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(3), (2, SIZE, SIZE, 3))


def _init(options):
    return model.init_params(jax.random.key(0), options)


@pytest.fixture(scope="module")
def setup():
    config = _config()
    options = model.options_from_config(config)
    return config, options, _init(options)


@pytest.fixture(scope="module")
def factors(setup, images):
    _, options, params = setup
    return jax.jit(lambda p, x: model.decompose(p, x, options))(params, images)


def _total(params, batch, config, options):
    weights = model.loss_weights(config, 0)
    return jax.jit(lambda p, b: model.objective(p, {}, b, weights, options))(
        params, batch
    )


def _gradient(params, batch, config, options):
    weights = model.loss_weights(config, 0)
    (total, out), gradient = jax.jit(
        lambda p, b: jax.value_and_grad(model.objective, has_aux=True)(
            p, {}, b, weights, options
        )
    )(params, batch)
    return total, out, gradient


def test_factors_lie_in_their_ranges(factors):
    assert (factors.canon_depth >= 0.9).all() and (factors.canon_depth <= 1.1).all()
    assert (factors.canon_albedo >= 0).all() and (factors.canon_albedo <= 1).all()
    np.testing.assert_allclose(
        jnp.linalg.norm(factors.light[:, 2:], axis=1), 1, atol=1e-6
    )
    assert (factors.light[:, 4] > 0.57).all()
    assert (jnp.abs(factors.view[:, :3]) <= np.pi / 3).all()
    assert (factors.view[:, 5] == 0).all()  # translation_z_max is 0
    assert (factors.conf_sigma > 0).all()


def test_raw_depth_is_centred_before_tanh(setup):
    _, options, _ = setup
    raw = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE)) + 7.0
    depth = model.depth_from_raw(raw, options)
    t = np.arctanh((np.asarray(depth, float) - 1.0) / 0.1)
    np.testing.assert_allclose(t.mean((1, 2)), 0.0, atol=1e-2)


def test_the_initial_bump_is_nearest_in_the_middle():
    options = model.options_from_config(_config(depth__bump_height=1.5))
    depth = model.depth_from_raw(jnp.zeros((1, SIZE, SIZE)), options)[0]
    assert jnp.argmin(depth) // SIZE in (15, 16) and float(depth.min()) < 0.94
    assert float(depth[0, 0]) > 1.02


def test_only_the_outer_columns_are_clamped():
    depth = jnp.full((1, 6, 8), 0.95)
    out = model.clamp_border(depth, columns=2, value=1.04)[0]
    np.testing.assert_array_equal(out[:, 2:-2], depth[0, :, 2:-2])
    for column in (0, 1, 6, 7):
        np.testing.assert_allclose(out[:, column], 1.04)


def test_the_flipped_pass_mirrors_depth_and_albedo_only(setup, factors):
    _, options, _ = setup
    factors = factors.replace(view=jnp.zeros((2, 6)))
    out = jax.jit(lambda f: model.reconstruct(f, options))(factors)
    np.testing.assert_allclose(out.flip.depth, out.plain.depth[:, :, ::-1], atol=2e-6)
    # Light is not mirrored: a mirrored normal meets the same light.
    normal = out.canonical.normal[:, :, ::-1] * jnp.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(out.canonical_flip.normal, normal, atol=1e-4)
    direction = factors.light[:, None, None, 2:]
    shading = jnp.maximum(0, (normal * direction).sum(-1))
    np.testing.assert_allclose(out.canonical_flip.shading, shading, atol=1e-4)


def test_the_total_is_the_weighted_sum_of_its_terms(images):
    config = _config(loss__depth_smoothness=0.3, loss__flip=0.25)
    options = model.options_from_config(config)
    params = _init(options)
    total, out = _total(params, Batch(image=images), config, options)
    t = out.terms
    expected = t["photometric"] + 0.25 * t["photometric_flip"] + 0.3 * t["smoothness"]
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


def test_the_flip_weight_follows_its_schedule():
    config = _config(loss__flip=0.5, loss__flip_start=10)
    assert float(model.loss_weights(config, 9).flip) == 1.0
    assert float(model.loss_weights(config, 10).flip) == 0.5


def test_every_network_receives_a_finite_gradient(setup, images):
    config, options, params = setup
    _, _, grads = _gradient(params, Batch(image=images), config, options)
    for name, tree in grads.items():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        assert all(np.isfinite(leaf).all() for leaf in leaves), name
        assert any(np.abs(leaf).max() > 0 for leaf in leaves), name


def test_an_image_that_leaves_the_frame_gives_a_finite_loss_and_gradient(setup, images):
    config, options, params = setup
    gone = jnp.tile(jnp.array([0.0, 0, 0, 5.0, 0, 0]), (2, 1))
    options = dataclasses.replace(options, oracle_view=True)
    batch = Batch(image=images, view=gone)
    total, out, grads = _gradient(params, batch, config, options)
    assert not out.reconstruction.plain.valid.any()
    assert float(total) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_joint_mask_counts_only_pixels_valid_in_both_passes(images):
    view = jnp.tile(jnp.array([0, 0.7, 0, 0, 0, 0.0]), (2, 1))
    batch = Batch(image=images, view=view)
    totals = {}
    for joint in (True, False):
        config = _config(compat__joint_mask=joint, model__oracle_view=True)
        config.depth.bump_height = 1.5
        options = model.options_from_config(config)
        params = _init(options)
        totals[joint], out = _total(params, batch, config, options)
    assert (out.reconstruction.plain.valid != out.reconstruction.flip.valid).any()
    assert float(totals[True]) != pytest.approx(float(totals[False]), rel=1e-6)


def test_oracles_take_view_and_light_from_the_batch(setup, factors, images):
    _, options, _ = setup
    view = jnp.tile(jnp.array([0.1, 0.3, 0.0, 0.01, 0.0, 0.0]), (2, 1))
    light = jnp.tile(jnp.array([0.4, 0.5, 0.0, 0.0, 1.0]), (2, 1))
    batch = Batch(image=images, view=view, light=light)
    options = dataclasses.replace(options, oracle_view=True, oracle_light=True)
    taken = model.apply_oracle(factors, batch, options)
    np.testing.assert_array_equal(taken.view, view)
    assert taken.light[0, 2] < -0.2  # the camera's axis as the turned face sees it
    with pytest.raises(ValueError, match="oracle_view"):
        model.apply_oracle(factors, Batch(image=images), options)


def test_supervision_trains_the_depth_net_alone(images):
    config = _config(model__supervision="depth")
    options = model.options_from_config(config)
    params = _init(options)
    assert set(params) == {"depth"}
    truth = jnp.full((2, SIZE, SIZE), 0.95)
    mask = jnp.ones((2, SIZE, SIZE), bool).at[:, :8].set(False)
    batch = Batch(image=images, depth=truth, mask=mask)
    total, out = _total(params, batch, config, options)
    error = np.abs(np.asarray(out.factors.canon_depth) - 0.95)[:, 8:]
    assert float(total) == pytest.approx(error.mean(), rel=1e-5)
    np.testing.assert_array_equal(
        out.reconstruction.plain.depth, out.factors.canon_depth
    )


def test_without_confidence_there_is_no_network_for_it(images):
    config = _config(model__use_confidence=False)
    options = model.options_from_config(config)
    params = _init(options)
    assert "conf" not in params
    _, out = _total(params, Batch(image=images), config, options)
    error = 2 * np.abs(np.asarray(out.reconstruction.plain.image - images)).mean(-1)
    mask = np.asarray(out.reconstruction.plain.valid & out.reconstruction.flip.valid)
    assert float(out.terms["photometric"]) == pytest.approx(
        error[mask].mean(), rel=1e-4
    )


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model__supervision", "keypoints", "model.supervision"),
        ("model__compute_dtype", "float16", "model.compute_dtype"),
        ("model__width", 20, "model.width"),
        ("model__encoder_width", 8, "model.encoder_width .* of 16, got 8"),
        ("model__bottleneck", 0, "model.bottleneck .* at least 1, got 0"),
        ("model__confidence_bottleneck", 0, "model.confidence_bottleneck"),
        ("model__shading", "phong", "model.shading"),
        ("view__rotation_max_deg", -5.0, "view.rotation_max_deg .* 0 or more, got -5"),
        ("view__translation_xy_max", -1.0, "view.translation_xy_max"),
        ("view__rotation_centre_depth", 0.0, "view.rotation_centre_depth"),
        ("depth__border_depth", 1.2, "depth.border_depth .* depth.max, 1.1, got 1.2"),
        ("loss__flip_start", -1, "loss.flip_start"),
        ("loss__perceptual_layer", "relu9", "loss.perceptual_layer"),
        ("view__fov_deg", 0.0, "view.fov_deg"),
        ("depth__max", 0.8, "depth.max .* greater than depth.min"),
        ("depth__border_columns", 16, "depth.border_columns"),
        ("raster__supersample", 0, "raster.supersample"),
        ("raster__sigma", 0.5, "raster.gamma"),
        ("loss__perceptual", -1.0, "loss.perceptual"),
    ],
)
def test_impossible_options_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        model.options_from_config(_config(**{key: value}))


def test_images_of_another_size_are_refused(setup):
    _, options, params = setup
    with pytest.raises(ValueError, match="32"):
        model.decompose(params, jnp.zeros((1, 64, 64, 3)), options)
