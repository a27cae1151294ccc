"""The optimizer and the learning rates, against hand-written formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from unsup3d_jax.engine import optimizer as optimizers


def _config(**keys):
    config = default.get_config()
    for key, value in keys.items():
        config.train[key] = value
    return config


def _adam_l2(w, grads, *, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """Adam as PyTorch writes it, unit rate: decay enters before the moments."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        g = g + decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        update = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        w = w - 0.1 * update
    return w


def test_weight_decay_is_l2_in_the_gradient_of_adam():
    optimizer = optimizers.make_optimizer(_config(weight_decay=0.3))
    w = jnp.array([1.0, -2.0, 0.5])
    grads = np.array([[0.1, 0.4, -0.2], [0.3, -0.1, 0.2], [-0.2, 0.2, 0.1]])
    state = optimizer.init(w)
    for g in grads:
        update, state = optimizer.update(jnp.asarray(g, jnp.float32), state, w)
        w = w - 0.1 * update
    expected = _adam_l2(np.array([1.0, -2.0, 0.5]), grads, decay=0.3)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    without = _adam_l2(np.array([1.0, -2.0, 0.5]), grads, decay=0.0)
    assert np.abs(without - expected).max() > 1e-2  # the test can tell


def test_sgd_has_momentum_and_the_penalty_in_its_gradient():
    """v = beta v + g + decay w; w = w - rate v: the release of Bas et al., 2017."""
    optimizer = optimizers.make_optimizer(
        _config(optimizer="sgd", beta1=0.9, weight_decay=0.3)
    )
    w, v, expected = jnp.array([1.0, -2.0]), 0.0, np.array([1.0, -2.0])
    state = optimizer.init(w)
    for g in np.array([[0.1, 0.4], [0.3, -0.1], [-0.2, 0.2]]):
        update, state = optimizer.update(jnp.asarray(g, jnp.float32), state, w)
        w = w - 0.1 * update
        v = 0.9 * v + g + 0.3 * expected
        expected = expected - 0.1 * v
    np.testing.assert_allclose(w, expected, rtol=1e-5)


def test_clipping_bounds_the_gradient_of_the_loss_and_not_the_penalty():
    optimizer = optimizers.make_optimizer(_config(clip_norm=1.0, weight_decay=0.5))
    w, g = jnp.array([3.0, 4.0]), jnp.array([30.0, 40.0])
    _, state = optimizer.update(g, optimizer.init(w), w)
    first_moment = next(s for s in jax.tree.leaves(state) if s.shape == (2,))
    expected = 0.1 * (g / 50.0 + 0.5 * w)
    np.testing.assert_allclose(first_moment, expected, rtol=1e-6)


def _muon_update(params, grads):
    optimizer = optimizers.make_optimizer(_config(optimizer="muon", weight_decay=0.0))
    update, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    return update


@pytest.mark.parametrize("shape", [(4, 4, 3, 8), (3, 3, 16, 16), (4, 4, 2, 64)])
def test_muon_makes_the_singular_values_of_a_kernel_alike(shape):
    grad = jax.random.normal(jax.random.key(0), shape)
    grad = grad * jnp.logspace(-1.5, 1.5, shape[-1])
    update = _muon_update({"k": jnp.zeros(shape)}, {"k": grad})["k"]
    matrix = np.asarray(grad, np.float64).reshape(-1, shape[-1])
    u, before, vt = np.linalg.svd(matrix, full_matrices=False)
    assert before.max() > 50 * before.min()
    found = np.asarray(update).reshape(matrix.shape)
    found = found / (optimizers.MUON_RMS * np.sqrt(max(matrix.shape)))
    after = np.linalg.svd(found, compute_uv=False)
    assert 0.3 < after.min() and after.max() < 1.4
    # To be subtracted: along every singular direction of the gradient.
    assert np.diag(u.T @ found @ vt.T).min() > 0.2


def test_muon_leaves_what_is_no_kernel_to_adam_and_zero_gradients_alone():
    params = {"k": jnp.ones((3, 3, 2, 4)), "scale": jnp.ones(4)}
    grads = {"k": jnp.zeros((3, 3, 2, 4)), "scale": jnp.array([1e-3, -2.0, 0.5, 9.0])}
    update = _muon_update(params, grads)
    np.testing.assert_array_equal(update["k"], 0.0)
    magnitude = np.abs(update["scale"])
    np.testing.assert_allclose(magnitude, magnitude[0], rtol=1e-4)
    np.testing.assert_array_equal(np.sign(update["scale"]), np.sign(grads["scale"]))


@pytest.mark.parametrize("rank, least, most", [(32, 10, 100), (4, 100, 1000)])
def test_muon_amplifies_rounding_where_a_gradient_has_few_directions(rank, least, most):
    """What docs/clusters.md says of runs on other devices: Adam passes it on as it is.

    Of the directions that a small batch has not, the momentum holds but rounding, and
    they are to become as long as the others.
    """
    rng = np.random.default_rng(0)
    shape = (4, 4, 16, 32)
    grad = rng.normal(size=(256, rank)) @ rng.normal(size=(rank, 32))
    grad = 1e-3 * grad.reshape(shape)
    rounded = grad * (1.0 + 1.2e-7 * rng.normal(size=shape))
    for optimizer, low, high in (("muon", least, most), ("adam", 0.3, 3)):
        transform = optimizers.make_optimizer(
            _config(optimizer=optimizer, weight_decay=0.0)
        )
        a, b = (
            transform.update(
                {"k": jnp.asarray(g, jnp.float32)},
                transform.init({"k": jnp.zeros(shape)}),
                {"k": jnp.zeros(shape)},
            )[0]["k"]
            for g in (grad, rounded)
        )
        given = np.linalg.norm(np.float32(rounded) - np.float32(grad))
        given /= np.linalg.norm(grad)
        growth = np.linalg.norm(a - b) / np.linalg.norm(a) / given
        assert low < growth < high, optimizer


def test_muon_treats_each_of_stacked_seeds_alone():
    grads = jax.random.normal(jax.random.key(1), (2, 4, 4, 3, 8))
    grads = grads * jnp.array([1.0, 100.0])[:, None, None, None, None]
    start = {"k": jnp.zeros_like(grads)}
    stacked = jax.vmap(_muon_update)(start, {"k": grads})["k"]
    for one, grad in zip(stacked, grads, strict=True):
        alone = _muon_update({"k": jnp.zeros_like(grad)}, {"k": grad})["k"]
        np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-6)


def _rate(step, **keys):
    config = _config(learning_rate=2.0, **keys)
    schedule = optimizers.schedule_from_config(config, ramps={})
    return float(optimizers.learning_rate(schedule, jnp.int32(step)))


def test_warmup_rises_linearly_to_the_peak():
    rates = [_rate(s, warmup_steps=4) for s in range(6)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_constant_rate_stays():
    assert {_rate(s) for s in (0, 1, 10**6)} == {2.0}


def test_cosine_is_constant_and_then_falls_to_zero():
    keys = dict(schedule="cosine", steps=100, constant_fraction=0.6)
    rates = [_rate(s, **keys) for s in (0, 60, 80, 100, 200)]
    np.testing.assert_allclose(rates, [2.0, 2.0, 1.0, 0.0, 0.0], atol=1e-6)
    assert 0.0 < _rate(99, **keys) < 0.01


@pytest.mark.parametrize("constant_fraction", [0.0, 1.0])
def test_cosine_is_finite_at_the_ends(constant_fraction):
    keys = dict(schedule="cosine", steps=10, constant_fraction=constant_fraction)
    rates = [_rate(s, **keys) for s in range(10)]
    assert np.isfinite(rates).all() and rates[0] == 2.0


def _factors(start, full):
    ramps = {"depth": (start, full)}
    schedule = optimizers.schedule_from_config(_config(learning_rate=1.0), ramps=ramps)
    rates = [optimizers.network_rates(schedule, jnp.int32(s)) for s in range(7)]
    assert {float(rate["view"]) for rate in rates} == {1.0}
    return [float(rate["depth"]) for rate in rates]


def test_a_network_is_frozen_then_ramped_in():
    np.testing.assert_allclose(_factors(3, 5), [0, 0, 0, 0.5, 1, 1, 1])


def test_a_ramp_of_no_steps_is_off():
    assert _factors(0, 0) == [1.0] * 7


def test_each_network_has_its_rate():
    config = _config(learning_rate=2.0)
    config.train.lr_scale.view, config.train.lr_scale.depth = 3.0, 0.5
    schedule = optimizers.schedule_from_config(config, ramps={})
    rates = optimizers.network_rates(schedule, jnp.int32(0))
    assert float(rates["view"]) == 6.0
    assert float(rates["depth"]) == 1.0
    assert float(rates["albedo"]) == 2.0
