"""Raw outputs -> factors, by the formulas of the two papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.formation import heads
from unsup3d_jax.formation.types import Conditions, Surface

LIMITS = (0.9, 1.1)


def _raw(*shape, seed=0, limit=0.9):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-limit, limit, shape), jnp.float32)


def test_depth_by_the_definition():
    raw = np.asarray(_raw(2, 5, 6), float)
    bump = heads.InitialBump(height=0.5, width=0.55, gain=0.03)
    found = heads.depth_from_raw(_raw(2, 5, 6), limits=LIMITS, centre=True, bump=bump)
    x = (np.arange(6) - 2.5) / (0.55 * 3.0)
    y = (np.arange(5) - 2.0) / (0.55 * 2.5)
    start = 0.03 * raw - 0.5 * np.exp(-0.5 * (x[None] ** 2 + y[:, None] ** 2))
    d = np.tanh(start - start.mean((1, 2), keepdims=True))
    np.testing.assert_allclose(found, (1 + d) / 2 * 1.1 + (1 - d) / 2 * 0.9, rtol=1e-6)


def test_depth_without_bump_and_centring_is_the_networks_alone():
    raw = _raw(2, 4, 4) + 0.3
    found = heads.depth_from_raw(raw, limits=LIMITS, centre=False)
    np.testing.assert_allclose(found, 1.0 + 0.1 * np.tanh(raw), rtol=1e-6)
    quiet = heads.InitialBump(height=0.0, width=0.5, gain=1.0)
    same = heads.depth_from_raw(raw, limits=LIMITS, centre=False, bump=quiet)
    np.testing.assert_array_equal(same, found)


def test_raw_depth_is_centred_before_tanh():
    raw = jax.random.normal(jax.random.key(0), (2, 32, 32)) + 7.0
    depth = heads.depth_from_raw(raw, limits=LIMITS, centre=True)
    t = np.arctanh((np.asarray(depth, float) - 1.0) / 0.1)
    np.testing.assert_allclose(t.mean((1, 2)), 0.0, atol=1e-2)


def test_the_initial_bump_is_nearest_in_the_middle():
    bump = heads.InitialBump(height=1.5, width=0.55, gain=0.03)
    raw = jnp.zeros((1, 32, 32))
    depth = heads.depth_from_raw(raw, limits=LIMITS, centre=True, bump=bump)[0]
    assert jnp.argmin(depth) // 32 in (15, 16) and float(depth.min()) < 0.94
    assert float(depth[0, 0]) > 1.02


def test_only_the_outer_columns_are_clamped():
    depth = jnp.full((1, 6, 8), 0.95)
    out = heads.clamp_border(depth, columns=2, value=1.04)[0]
    np.testing.assert_array_equal(out[:, 2:-2], depth[0, :, 2:-2])
    for column in (0, 1, 6, 7):
        np.testing.assert_array_equal(out[:, column], np.float32(1.04))


@pytest.mark.parametrize("weight", [0.5, 1.02])
def test_a_border_with_a_weight_is_pulled_not_fixed(weight):
    depth = 1.0 + 0.1 * _raw(2, 4, 7)
    out = heads.clamp_border(depth, columns=2, value=1.04, weight=weight)
    np.testing.assert_array_equal(out[:, :, 2:-2], depth[:, :, 2:-2])
    edge = np.asarray(depth, float)[:, :, [0, 1, 5, 6]]
    expected = edge * (1 - weight) + 1.04 * weight
    np.testing.assert_allclose(out[:, :, jnp.array([0, 1, 5, 6])], expected, rtol=1e-6)
    # The depth under the border keeps a gradient: the authors' is negative.
    slope = jax.grad(
        lambda d: heads.clamp_border(d, columns=2, value=1.04, weight=weight).sum()
    )(depth)
    np.testing.assert_allclose(slope[:, :, 0], 1 - weight, atol=1e-6)
    np.testing.assert_array_equal(slope[:, :, 3], 1.0)


def test_a_weight_of_one_is_the_plain_clamp():
    depth = 1.0 + 0.1 * _raw(2, 4, 7)

    def program(**weight):
        clamp = jax.jit(
            lambda d: heads.clamp_border(d, columns=2, value=1.04, **weight)
        )
        return clamp.lower(depth).as_text()

    assert program(weight=1.0) == program()
    assert program(weight=1.02) != program()


def test_light_by_the_definition():
    raw = np.asarray(_raw(3, 4), float)
    found = heads.light_from_raw(
        _raw(3, 4), ambient_range=(0.0, 1.0), diffuse_range=(0.5, 0.7)
    )
    direction = np.stack([raw[:, 2], raw[:, 3], np.ones(3)], axis=1)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, 0], raw[:, 0] / 2 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], 0.6 + 0.1 * raw[:, 1], rtol=1e-6)
    np.testing.assert_allclose(found[:, 2:], direction, rtol=1e-6)


def test_the_view_stays_in_its_reach_and_a_share_of_it():
    reach = heads.ViewReach(60.0, 0.1, 0.02)
    limits = np.array([np.pi / 3] * 3 + [0.1, 0.1, 0.02])
    raw = _raw(3, 6)
    whole = heads.view_from_raw(raw, reach)
    np.testing.assert_allclose(whole, raw * limits, rtol=1e-6)
    part = heads.view_from_raw(raw, reach, share=jnp.float32(0.25))
    np.testing.assert_allclose(part, 0.25 * raw * limits, rtol=1e-6)
    all_of_it = heads.view_from_raw(raw, reach, share=jnp.ones(()))
    np.testing.assert_array_equal(all_of_it, whole)


def test_albedo_and_shading_span_their_ranges():
    raw = _raw(2, 3, 3, 3, limit=3.0)
    np.testing.assert_allclose(
        heads.albedo_from_raw(raw), np.tanh(raw) / 2 + 0.5, atol=1e-6
    )
    shading = heads.shading_from_raw(raw[..., 0], limits=(0.2, 1.7))
    np.testing.assert_allclose(shading, 0.95 + 0.75 * np.tanh(raw[..., 0]), rtol=1e-5)


def test_one_surface_is_shared_by_many_views_and_two_by_three_are_refused():
    def surface(count):
        return Surface(
            raw_depth=_raw(count, 4, 4),
            canon_depth=_raw(count, 4, 4, seed=1),
            canon_albedo=_raw(count, 4, 4, 3, seed=2),
        )

    conditions = Conditions(light=_raw(3, 5), view=_raw(3, 6))
    factors = heads.compose(surface(1), conditions)
    assert factors.conf_sigma is None
    for row in range(3):
        np.testing.assert_array_equal(
            factors.canon_depth[row], surface(1).canon_depth[0]
        )
        np.testing.assert_array_equal(
            factors.canon_albedo[row], surface(1).canon_albedo[0]
        )
    np.testing.assert_array_equal(factors.view, conditions.view)
    slope = jax.grad(lambda s: heads.compose(s, conditions).canon_depth.sum())(
        surface(1)
    )
    np.testing.assert_array_equal(slope.canon_depth, 3.0)
    with pytest.raises(ValueError, match="need 1 or 3 surfaces"):
        heads.compose(surface(2), conditions)
