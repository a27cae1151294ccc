"""The switches of Table 3: what each removes, and that the default has all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bust import config_of, make
from test_evaluate import random_params

from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import Warped
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import options_from_config

SIZE = 32
# Each switch compiles a model of its own.
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def head():
    factors, options = make(SIZE)
    # Something asymmetric in either map.
    albedo = factors.canon_albedo.at[:, :, : SIZE // 3].multiply(0.5)
    depth = factors.canon_depth.at[:, 8:16, 6:12].add(-0.01)
    return dataclasses.replace(factors, canon_albedo=albedo, canon_depth=depth), options


@pytest.fixture(autouse=True)
def flat_warp(monkeypatch):
    """Reprojection without rasterizing: the picture stays, its depth is kept."""

    def stay(image, depth, view, scene):
        return Warped(image=image, depth=depth, valid=jnp.ones(depth.shape, bool))

    monkeypatch.setattr(reprojection, "reproject", stay)


@pytest.mark.parametrize(
    "albedo_flip, depth_flip",
    [(True, True), (False, True), (True, False), (False, False)],
)
def test_each_flip_mirrors_its_own_map_only(head, albedo_flip, depth_flip):
    factors, options = head
    options = dataclasses.replace(
        options, albedo_flip=albedo_flip, depth_flip=depth_flip
    )
    found = model.reconstruct(factors, options)
    albedo, depth = factors.canon_albedo, factors.canon_depth
    albedo = albedo[:, :, ::-1] if albedo_flip else albedo
    depth = depth[:, :, ::-1] if depth_flip else depth
    expected = reprojection.shade_canonical(albedo, depth, factors.light, options.scene)
    np.testing.assert_allclose(found.canonical_flip.image, expected.image, atol=1e-6)
    np.testing.assert_allclose(found.flip.image, expected.image, atol=1e-6)
    np.testing.assert_array_equal(found.flip.depth, depth)
    same = np.allclose(found.flip.image, found.plain.image, atol=1e-5)
    assert same == (not albedo_flip and not depth_flip)


def test_a_predicted_shading_replaces_light_and_is_not_mirrored(head):
    factors, options = head
    shading = jax.random.uniform(jax.random.key(0), (2, SIZE, SIZE))
    mapped = dataclasses.replace(factors, canon_shading=shading)
    found = model.reconstruct(mapped, options)
    expected = factors.canon_albedo * shading[..., None]
    np.testing.assert_allclose(found.canonical.image, expected, atol=1e-6)
    expected = factors.canon_albedo[:, :, ::-1] * shading[..., None]
    np.testing.assert_allclose(found.canonical_flip.image, expected, atol=1e-6)
    # and no other light changes anything
    dark = dataclasses.replace(mapped, light=0 * mapped.light)
    other = model.reconstruct(dark, options)
    np.testing.assert_array_equal(other.plain.image, found.plain.image)


def test_the_light_net_predicts_the_map_in_the_range_of_light():
    config = config_of(SIZE)
    config.model.shading = "map"
    config.model.use_confidence = False
    config.light.ambient_min, config.light.diffuse_max = 0.1, 0.7
    options = options_from_config(config)
    params = random_params(options)
    assert "scale" in str(jax.tree.structure(params["light"]))  # an encoder-decoder
    image = jax.random.uniform(jax.random.key(1), (2, SIZE, SIZE, 3))
    decompose = jax.jit(model.decompose, static_argnames="options")
    factors = decompose(params, image, options=options)
    assert factors.canon_shading.shape == (2, SIZE, SIZE)
    assert 0.1 <= float(factors.canon_shading.min())
    assert float(factors.canon_shading.max()) <= 1.7
    assert float(factors.canon_shading.std()) > 0.0
    np.testing.assert_array_equal(factors.light, [[0, 1, 0, 0, 1]] * 2)


def test_wrong_options_are_named():
    config = config_of(SIZE)
    config.model.shading = "phong"
    with pytest.raises(ValueError, match="model.shading must be"):
        options_from_config(config)
    config.model.shading, config.model.oracle_light = "map", True
    with pytest.raises(ValueError, match="oracle_light"):
        options_from_config(config)
