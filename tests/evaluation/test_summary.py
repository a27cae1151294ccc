"""Means and spreads of what counts."""

import jax.numpy as jnp

from unsup3d_jax.evaluation.summary import mean_std


def test_mean_std_leaves_out_what_does_not_count():
    got = mean_std(
        jnp.array([1.0, 99.0, 3.0, 5.0]), jnp.array([True, False, True, True])
    )
    assert (got.mean, got.std, got.count) == (3.0, 2.0, 3)
    none = mean_std(jnp.array([1.0]), jnp.array([False]))
    assert (none.mean, none.std, none.count) == (0.0, 0.0, 0)
