"""Statistics against numpy, and one warning for each collapse."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_task import Outputs, Plain, Reconstruction

from unsup3d_jax.formation.types import Factors
from unsup3d_jax.unsup3d import watch

warnings = functools.partial(watch.warnings, depth_range=0.2)


HEALTHY = {
    "depth_std": 0.03,
    "depth_relief": 0.05,
    "hollow_share": 0.0,
    "view_std_x_deg": 3.0,
    "view_std_y_deg": 15.0,
    "view_std_z_deg": 2.0,
    "conf_sigma": 0.2,
    "coverage": 0.9,
    "grad_norm": 1.0,
    "learning_rate_depth": 1e-4,
}


def _outputs(depth, view, sigma=0.3):
    b, h, w = depth.shape
    factors = Factors(
        raw_depth=jnp.asarray(depth),
        canon_depth=jnp.asarray(depth),
        canon_albedo=jnp.zeros((b, h, w, 3)),
        light=jnp.tile(jnp.array([0.25, 0.75, 0.0, 0.0, 1.0]), (b, 1)),
        view=jnp.asarray(view),
        conf_sigma=jnp.full((b, h, w), sigma),
    )
    valid = jnp.ones((b, h, w), bool).at[:, : h // 2].set(False)
    return Outputs(factors, Reconstruction(Plain(valid)), {})


def test_statistics_are_those_of_the_whole_batch():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.9, 1.1, (6, 16, 16)).astype(np.float32)
    view = rng.normal(0, 0.3, (6, 6)).astype(np.float32)
    parts = [
        watch.moments(_outputs(depth[i : i + 2], view[i : i + 2])) for i in (0, 2, 4)
    ]
    sums = {k: sum(p[k] for p in parts) for k in parts[0]}
    found = watch.statistics(sums)
    np.testing.assert_allclose(found["depth_std"], depth.std((1, 2)).mean(), rtol=1e-5)
    spread = np.degrees(view.std(0))
    for i, axis in enumerate("xyz"):
        np.testing.assert_allclose(found[f"view_std_{axis}_deg"], spread[i], rtol=1e-4)
    np.testing.assert_allclose(found["conf_sigma"], 0.3, rtol=1e-5)
    np.testing.assert_allclose(found["light_diffuse"], 0.75, rtol=1e-6)
    np.testing.assert_allclose(found["coverage"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("sign, hollow", [(1.0, 0.0), (-1.0, 1.0)])
def test_relief_is_positive_towards_the_camera(sign, hollow):
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    bump = np.exp(-(x**2 + y**2) / 0.3)
    depth = np.stack([1.0 - sign * 0.1 * bump] * 2).astype(np.float32)
    outputs = _outputs(depth, np.zeros((2, 6), np.float32))
    found = watch.statistics(watch.moments(outputs))
    assert np.sign(found["depth_relief"]) == sign
    assert found["hollow_share"] == hollow


def test_a_healthy_run_is_left_alone():
    assert warnings(HEALTHY, [HEALTHY] * 20) == []
    assert warnings({}) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"depth_std": 1e-4}, "flat depth"),
        ({"hollow_share": 0.9, "depth_relief": -0.02}, "hollow faces"),
        (
            {"view_std_x_deg": 0.1, "view_std_y_deg": 0.3, "view_std_z_deg": 0.1},
            "viewpoint collapse",
        ),
        ({"conf_sigma": 5.0}, "saturated confidence"),
        ({"conf_sigma": 1e-6}, "saturated confidence"),
        ({"coverage": 0.1}, "lost object"),
        ({"grad_norm": 100.0}, "gradient explosion"),
    ],
)
def test_each_collapse_has_its_warning(changes, words):
    (text,) = warnings(HEALTHY | changes, [HEALTHY] * 20)
    assert text.startswith(words)


def test_no_view_warning_where_the_view_is_given():
    still = {f"view_std_{a}_deg": 0.0 for a in "xyz"}
    assert warnings(HEALTHY | still, learns_view=False) == []


def test_a_frozen_depth_is_not_called_flat():
    frozen = {"depth_std": 0.0, "hollow_share": 1.0, "learning_rate_depth": 0.0}
    assert warnings(HEALTHY | frozen) == []
