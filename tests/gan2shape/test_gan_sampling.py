"""Views and lights of pseudo samples, and where their statistics are from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.errors import UserError
from unsup3d_jax.formation import heads
from unsup3d_jax.gan2shape import sampling, statistics
from unsup3d_jax.gan2shape.networks import STRENGTHS
from unsup3d_jax.gan2shape.options import LightRange

REACH = heads.ViewReach(60.0, 0.1, 0.0)
RANGE = LightRange((-1.0, 1.0), (-0.2, 0.8), (-0.1, 0.6), -0.6)


def test_views_have_the_mean_and_covariance_asked_for_and_a_wider_yaw():
    rng = np.random.default_rng(0)
    matrix = 0.2 * rng.normal(size=(6, 6))
    moments = {
        "view_mean": rng.normal(size=6) * 0.1,
        "view_covariance": matrix @ matrix.T,
        "light_mean": np.zeros(4),
    }
    given = sampling.from_moments(moments)
    draw = jax.jit(
        lambda key: sampling.sample_views(key, 40000, given, reach=REACH, yaw_scale=1.2)
    )
    view = np.asarray(draw(jax.random.key(0)))
    units = np.array([np.radians(60.0)] * 3 + [0.1] * 2)
    scale = np.array([1.0, 1.2, 1.0, 1.0, 1.0])
    raw = view[:, :5] / units / scale
    covariance = moments["view_covariance"][:5, :5]
    np.testing.assert_allclose(raw.mean(0), moments["view_mean"][:5], atol=0.02)
    np.testing.assert_allclose(np.cov(raw.T), covariance, atol=0.02)
    assert (view[:, 5] == 0).all()


def test_lights_are_uniform_and_get_darker_where_diffuse_light_grows():
    image = jnp.asarray([0.5, 0.4, 0.0, 0.0, 1.0])
    light = np.asarray(
        sampling.sample_lights(jax.random.key(1), 5000, image, RANGE), np.float64
    )
    more = light[:, 1] - 0.4
    np.testing.assert_allclose(light[:, 0], 0.5 - 0.6 * more, atol=1e-6)
    slopes = light[:, 2:4] / light[:, 4:]
    for values, (low, high) in zip(
        (slopes[:, 0], slopes[:, 1], more),
        (RANGE.x, RANGE.y, RANGE.diffuse),
        strict=True,
    ):
        assert low - 1e-5 <= values.min() and values.max() <= high + 1e-5
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03)
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.05)
    np.testing.assert_allclose(np.linalg.norm(light[:, 2:], axis=1), 1.0, rtol=1e-5)


def test_raw_numbers_are_what_the_heads_take_back():
    rng = np.random.default_rng(2)
    view = rng.normal(size=(5, 6)) * [0.3, 0.4, 0.2, 0.01, 0.01, 0.0]
    direction = rng.normal(size=(5, 3)) * [0.3, 0.3, 0.0] + [0, 0, 1]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    light = np.concatenate([rng.random((5, 2)), direction], axis=1)
    raw_view, raw_light = statistics.raw_of_true(view, light)
    found = heads.view_from_raw(jnp.asarray(raw_view, jnp.float32), REACH)
    np.testing.assert_allclose(found, view, atol=1e-6)
    found = heads.light_from_raw(
        jnp.asarray(raw_light, jnp.float32),
        ambient_range=STRENGTHS,
        diffuse_range=STRENGTHS,
    )
    np.testing.assert_allclose(found, light, atol=1e-6)


def test_the_file_that_ships_is_that_of_the_open_faces():
    stored = json.loads(sampling.SHIPPED.read_text())
    made = statistics.of_open_faces("natural", 200)
    for name in ("view_mean", "light_mean"):
        np.testing.assert_allclose(made[name], stored[name], atol=0.1)
    given = sampling.load("")
    assert np.asarray(given.view_root)[1, 1] == pytest.approx(20 / 60, rel=0.1)


@pytest.mark.parametrize(
    "content, word",
    [
        ("", "holds no statistics"),
        ("[]", "holds no statistics"),
        ('{"view_mean": [1, 2]}', "holds no statistics"),
    ],
)
def test_other_files_are_refused(tmp_path, content, word):
    file = tmp_path / "s.json"
    file.write_text(content)
    with pytest.raises(UserError, match=word):
        sampling.load(str(file))
    with pytest.raises(UserError, match="cannot read"):
        sampling.load(str(tmp_path / "none.json"))
