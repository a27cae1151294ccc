"""The autoencoder: heads, flip, oracle, masks, options and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluate import random_params

from configs import default
from unsup3d_jax.formation import heads
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d import model, panel
from unsup3d_jax.unsup3d.options import loss_weights, options_from_config

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


@pytest.fixture(scope="module")
def setup():
    config = _config()
    options = options_from_config(config)
    return config, options, random_params(options)


@pytest.fixture(scope="module")
def factors(setup, images):
    _, options, params = setup
    return jax.jit(lambda p, x: model.decompose(p, x, options))(params, images)


def _total(params, batch, config, options):
    weights = loss_weights(config, 0)
    return jax.jit(lambda p, b: model.objective(p, {}, b, weights, options))(
        params, batch
    )


@pytest.fixture(scope="module")
def far(images):
    """As a function of how far the faces are moved: total, outputs, gradient."""
    config = _config(view__translation_xy_max=5.0)
    options, weights = options_from_config(config), loss_weights(config, 0)
    params = random_params(options)

    @jax.jit
    def gradient(params):
        return jax.value_and_grad(model.objective, has_aux=True)(
            params, {}, Batch(image=images), weights, options
        )

    def move(distance):
        view = params["view"]
        last = {"kernel": distance * view["Conv_4"]["kernel"]}
        (total, out), grads = gradient({**params, "view": {**view, "Conv_4": last}})
        return total, out, grads

    return move


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


@pytest.mark.once
def test_the_heads_get_the_numbers_of_the_config(images):
    """Raw outputs -> factors by the formulas, with every number changed."""
    config = _config(
        view__rotation_max_deg=30.0,
        view__translation_xy_max=0.2,
        view__translation_z_max=0.05,
        depth__min=0.8,
        depth__max=1.3,
        depth__border_columns=3,
        depth__border_depth=1.25,
        depth__bump_height=0.7,
        depth__bump_width=0.4,
        depth__output_gain=0.5,
        light__ambient_max=0.8,
        light__diffuse_min=0.3,
    )
    options = options_from_config(config)
    params = random_params(options)
    nets = model.build_networks(options)
    raw = {
        name: jax.jit(lambda p, x, net=net: net.apply({"params": p}, 2 * x - 1))(
            params[name], images
        )
        for name, net in nets.items()
    }
    found = jax.jit(lambda p, x: model.decompose(p, x, options))(params, images)
    offset = (np.arange(SIZE) - (SIZE - 1) / 2) / (0.4 * SIZE / 2)
    bump = np.exp(-0.5 * (offset[None] ** 2 + offset[:, None] ** 2))
    t = 0.5 * np.asarray(raw["depth"][..., 0], float) - 0.7 * bump
    t = np.tanh(t - t.mean((1, 2), keepdims=True)) / 2 + 0.5
    depth = 1.3 * t + 0.8 * (1 - t)
    np.testing.assert_allclose(found.raw_depth, depth, rtol=1e-5)
    depth[:, :, :3] = depth[:, :, -3:] = 1.25
    np.testing.assert_allclose(found.canon_depth, depth, rtol=1e-5)
    limits = np.array([np.pi / 6] * 3 + [0.2, 0.2, 0.05])
    np.testing.assert_allclose(found.view, limits * raw["view"], rtol=1e-5)
    np.testing.assert_allclose(
        found.light[:, 0], 0.4 + 0.4 * raw["light"][:, 0], rtol=1e-5
    )
    np.testing.assert_allclose(
        found.light[:, 1], 0.65 + 0.35 * raw["light"][:, 1], rtol=1e-5
    )


@pytest.mark.once
def test_surface_and_conditions_of_different_images(setup, images, factors):
    """Depth and albedo of the first image, viewpoint and light of both."""
    _, options, params = setup

    @jax.jit
    def apart(params, images):
        surface = model.read_surface(params, images[:1], options)
        return heads.compose(surface, model.read_conditions(params, images, options))

    found = apart(params, images)
    for field in ("raw_depth", "canon_depth", "canon_albedo", "conf_sigma_flip"):
        whole = getattr(factors, field)
        for row in getattr(found, field):
            np.testing.assert_allclose(
                row, whole[0], rtol=1e-5, atol=1e-6, err_msg=field
            )
    for field in ("view", "light"):
        np.testing.assert_allclose(getattr(found, field), getattr(factors, field))
        assert not np.array_equal(getattr(found, field)[0], getattr(found, field)[1])
    assert found.canon_shading is None


@pytest.mark.once
def test_pictures_of_a_view_warm_up_compile_once(monkeypatch):
    config = _config(view__warmup_steps=10)
    options = options_from_config(config)
    traced, plain = [], model.decompose

    def decompose(params, image, options, *, view_range=None):
        traced.append(view_range)
        return plain(params, image, options, view_range=view_range)

    monkeypatch.setattr(model, "decompose", decompose)
    params = random_params(options)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(1, SIZE, SIZE, 3)), jnp.float32)
    shown = [
        panel.panel(
            params, images, options, view_range=loss_weights(config, step).view_range
        )
        for step in (3, 6)
    ]
    assert len(traced) == 1 and isinstance(traced[0], jax.core.Tracer)
    assert (shown[0] != shown[1]).any()


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


def test_the_flip_weight_follows_its_schedule():
    config = _config(loss__flip=0.5, loss__flip_start=10)
    assert float(loss_weights(config, 9).flip) == 1.0
    assert float(loss_weights(config, 10).flip) == 0.5


@pytest.mark.once
def test_every_network_receives_a_finite_gradient(far):
    _, out, grads = far(0.01)
    assert out.reconstruction.plain.valid.any()
    for name, tree in grads.items():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        assert all(np.isfinite(leaf).all() for leaf in leaves), name
        assert any(np.abs(leaf).max() > 0 for leaf in leaves), name


def test_an_image_that_leaves_the_frame_gives_a_finite_loss_and_gradient(far):
    total, out, grads = far(1e4)  # 5 half widths
    assert (jnp.abs(out.factors.view[:, 3:5]) > 4).all()
    assert not out.reconstruction.plain.valid.any()
    assert float(total) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.once
def test_joint_mask_counts_only_pixels_valid_in_both_passes(images):
    view = jnp.tile(jnp.array([0, 0.7, 0, 0, 0, 0.0]), (2, 1))
    batch = Batch(image=images, view=view)
    totals = {}
    for joint in (True, False):
        config = _config(compat__joint_mask=joint, model__oracle_view=True)
        config.depth.bump_height = 1.5
        options = options_from_config(config)
        params = random_params(options)
        totals[joint], out = _total(params, batch, config, options)
    assert (out.reconstruction.plain.valid != out.reconstruction.flip.valid).any()
    assert float(totals[True]) != pytest.approx(float(totals[False]), rel=1e-6)


@pytest.mark.once
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


@pytest.mark.once
def test_supervision_trains_the_depth_net_alone(images):
    config = _config(model__supervision="depth")
    options = options_from_config(config)
    params = random_params(options)
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


@pytest.mark.once
def test_without_confidence_there_is_no_network_and_the_total_sums_the_terms(images):
    config = _config(
        model__use_confidence=False, loss__depth_smoothness=0.3, loss__flip=0.25
    )
    options = options_from_config(config)
    params = random_params(options)
    assert "conf" not in params
    total, out = _total(params, Batch(image=images), config, options)
    t = out.terms
    expected = t["photometric"] + 0.25 * t["photometric_flip"] + 0.3 * t["smoothness"]
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    error = 2 * np.abs(np.asarray(out.reconstruction.plain.image - images)).mean(-1)
    mask = np.asarray(out.reconstruction.plain.valid & out.reconstruction.flip.valid)
    assert float(t["photometric"]) == pytest.approx(error[mask].mean(), rel=1e-4)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model__supervision", "keypoints", "model.supervision"),
        ("model__compute_dtype", "float16", "model.compute_dtype"),
        ("model__width", 20, "model.width"),
        ("model__encoder_width", 12, "model.encoder_width .* of 8, got 12"),
        ("model__bottleneck", 0, "model.bottleneck .* from 1 to 65536, got 0"),
        ("model__confidence_bottleneck", 0, "model.confidence_bottleneck"),
        ("model__shading", "phong", "model.shading"),
        (
            "view__rotation_max_deg",
            -5.0,
            "view.rotation_max_deg .* from 0 to 180, got -5",
        ),
        ("view__translation_xy_max", -1.0, "view.translation_xy_max"),
        ("view__rotation_centre_depth", 0.0, "view.rotation_centre_depth"),
        ("depth__border_depth", 1.2, "depth.border_depth .* depth.max, 1.1, got 1.2"),
        ("loss__flip_start", -1, "loss.flip_start"),
        ("loss__perceptual_layer", "relu9", "loss.perceptual_layer"),
        ("loss__perceptual_layer", "relu4_3", "loss.perceptual_layer .*relu3_3"),
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
        options_from_config(_config(**{key: value}))


def test_images_of_another_size_are_refused(setup):
    _, options, params = setup
    with pytest.raises(ValueError, match="32"):
        model.decompose(params, jnp.zeros((1, 64, 64, 3)), options)
