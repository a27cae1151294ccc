"""Eqs. (3) and (7) by the definition, masks, and shares over devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from unsup3d_jax.formation import losses


# One program each: op by op they would compile for long.
@functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("drop_constants", "sigma_squared", "depth_range"),
)
def _mean(loss, *args, **static):
    return losses.mean_share(loss(*args, **static))


def _data(shape=(2, 4, 4)):
    rng = np.random.default_rng(0)
    recon, image = rng.uniform(size=(2, *shape, 3))
    mask = (rng.uniform(size=shape) > 0.4).astype(float)
    sigma = rng.uniform(0.1, 2.0, shape)
    return (jnp.asarray(a, jnp.float32) for a in (recon, image, mask, sigma))


@pytest.mark.parametrize("drop", [True, False])
def test_photometric_is_the_laplacian_likelihood(drop):
    recon, image, mask, sigma = _data()
    got = _mean(losses.photometric, recon, image, mask, sigma, drop_constants=drop)
    error = np.abs(2 * np.asarray(recon, float) - 2 * np.asarray(image, float))
    s = np.asarray(sigma, float)[..., None]
    density = np.exp(-math.sqrt(2) * error / s) / (math.sqrt(2) * s)
    nll = -np.log(density) - (0.5 * math.log(2) if drop else 0.0)
    weight = np.broadcast_to(np.asarray(mask)[..., None], nll.shape)
    assert float(got) == pytest.approx((nll * weight).sum() / weight.sum(), rel=1e-5)


def test_photometric_without_confidence_is_plain_l1():
    recon, image, mask, _ = _data()
    got = _mean(losses.photometric, recon, image, jnp.ones_like(mask), None)
    assert float(got) == pytest.approx(
        float(2 * jnp.abs(recon - image).mean()), rel=1e-5
    )


@pytest.mark.parametrize(
    "drop, squared", [(True, False), (False, False), (False, True)]
)
def test_perceptual_is_the_gaussian_likelihood(drop, squared):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 2, 2, 2, 5))
    sigma = rng.uniform(0.3, 2.0, (2, 2, 2))
    mask = (rng.uniform(size=(2, 8, 8)) > 0.3).astype(float)
    got = _mean(
        losses.perceptual,
        *(jnp.asarray(x, jnp.float32) for x in (a, b, mask, sigma)),
        drop_constants=drop,
        sigma_squared=squared,
    )
    s = sigma[..., None]
    norm = math.sqrt(2 * math.pi) * s ** (2 if squared else 1)
    nll = -np.log(np.exp(-((a - b) ** 2) / (2 * s**2)) / norm)
    nll -= 0.5 * math.log(2 * math.pi) if drop else 0.0
    weight = mask.reshape(2, 2, 4, 2, 4).mean((2, 4))[..., None]
    expected = (nll * weight).sum() / (weight * np.ones(5)).sum()
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_confidence_is_repeated_for_finer_layers():
    a, b = jnp.zeros((1, 4, 4, 2)), jnp.ones((1, 4, 4, 2))
    sigma = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    got = _mean(losses.perceptual, a, b, jnp.ones((1, 8, 8)), sigma)
    s = np.array([1.0, 2.0, 3.0, 4.0])
    assert float(got) == pytest.approx((0.5 / s**2 + np.log(s)).mean(), rel=1e-5)


def test_the_best_sigma_is_the_residual_scale():
    # d/dsigma of sqrt(2) e / sigma + ln sigma vanishes at sigma = sqrt(2) e.
    recon, image = jnp.full((1, 2, 2, 3), 0.6), jnp.full((1, 2, 2, 3), 0.5)
    best = jnp.full((1, 2, 2), math.sqrt(2) * 0.2)
    ones = jnp.ones((1, 2, 2))
    slope = jax.jit(
        jax.grad(lambda s: _mean(losses.photometric, recon, image, ones, s))
    )
    np.testing.assert_allclose(slope(best), 0.0, atol=1e-4)
    assert (slope(0.5 * best) < 0).all() and (slope(2 * best) > 0).all()


def test_an_empty_mask_gives_zero_loss_and_zero_gradient():
    recon, image, mask, sigma = _data()

    def loss(recon, sigma):
        return _mean(losses.photometric, recon, image, 0 * mask, sigma)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(recon, sigma)
    assert float(value) == 0.0
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_shares_of_two_devices_add_up_to_the_whole():
    recon, image, mask, sigma = _data((4, 4, 4))
    whole = _mean(losses.photometric, recon, image, mask, sigma)

    def share(*arrays):
        loss = losses.photometric(*arrays)
        return losses.mean_share(loss, axis_name="device")

    halves = [a.reshape(2, 2, *a.shape[1:]) for a in (recon, image, mask, sigma)]
    shares = jax.jit(jax.vmap(share, axis_name="device"))(*halves)
    assert float(shares.sum()) == pytest.approx(float(whole), rel=1e-6)


def test_smoothness_by_the_definition():
    depth = jnp.asarray(np.random.default_rng(0).uniform(0.9, 1.1, (2, 4, 5)))
    got = _mean(losses.depth_smoothness, depth, depth_range=0.2)
    d = np.asarray(depth)
    expected = (
        np.abs(np.diff(d, axis=1)).mean() + np.abs(np.diff(d, axis=2)).mean()
    ) / 0.2
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_several_maps_is_the_sum_of_their_means_on_any_devices():
    depth = jnp.asarray(np.random.default_rng(0).uniform(0.9, 1.1, (4, 4, 5)))
    whole = _mean(losses.second_differences, depth)

    def share(depth):
        return losses.mean_share(losses.second_differences(depth), axis_name="device")

    each = jax.jit(jax.vmap(share, axis_name="device"))
    shares = each(depth.reshape(2, 2, 4, 5))
    assert float(shares.sum()) == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 5, 4), (2, 4, 5, 3)])
def test_second_differences_by_the_definition(shape):
    x = np.random.default_rng(1).normal(size=shape)
    terms = {"xx": [], "xy": [], "yx": [], "yy": []}
    b, h, w = shape[:3]
    step = {"x": (0, 1), "y": (1, 0)}
    for i, row, column in np.ndindex(b, h, w):
        for (first, second), values in terms.items():
            (dv, du), (ev, eu) = step[first], step[second]
            if row + dv + ev >= h or column + du + eu >= w:
                continue

            def difference(v, u, i=i, dv=dv, du=du):
                return x[i, v + dv, u + du] - x[i, v, u]

            after = difference(row + ev, column + eu)
            values.append(np.abs(after - difference(row, column)))
    expected = sum(np.mean(values) for values in terms.values())
    got = _mean(losses.second_differences, jnp.asarray(x, jnp.float32))
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_second_differences_leave_a_plane_alone_and_pull_a_bump_down():
    v, u = np.mgrid[:5, :6]
    plane = jnp.asarray(2.0 * u - 3.0 * v + 1.0, jnp.float32)[None]
    assert float(_mean(losses.second_differences, plane)) == 0.0
    bump = plane.at[0, 2, 3].add(0.5)
    slope = jax.jit(jax.grad(lambda x: _mean(losses.second_differences, x)))(bump)
    # In xx and yy the place counts once twice and twice once; in xy, yx four times.
    expected = 4 / (5 * 4) + 4 / (3 * 6) + 2 * 4 / (4 * 5)
    np.testing.assert_allclose(slope[0, 2, 3], expected, rtol=1e-6)


def test_the_gradient_of_second_differences_is_right():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 5)))
        check_grads(
            lambda x: _mean(losses.second_differences, jnp.asarray(x)),
            (x,),
            order=1,
            modes=["fwd", "rev"],
        )


def test_feature_l1_sums_the_layers_masked_means():
    """Of each layer sum(m |difference|) / sum(m), m averaged over its cells."""
    rng = np.random.default_rng(3)
    mask = (rng.uniform(size=(2, 8, 8)) > 0.4).astype(np.float32)
    layers = [rng.normal(size=(2, 2, side, side, 5)) for side in (4, 2)]
    expected = 0.0
    for (a, b), side in zip(layers, (4, 2), strict=True):
        total = weight = 0.0
        for n, i, j in np.ndindex(2, side, side):
            cell = 8 // side
            m = mask[n, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean()
            total += m * np.abs(a[n, i, j] - b[n, i, j]).mean()
            weight += m
        expected += total / weight
    a, b = (tuple(jnp.asarray(x[k], jnp.float32) for x in layers) for k in (0, 1))
    got = _mean(losses.feature_l1, a, b, jnp.asarray(mask))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
