"""The example of the library page does what the page says."""

import jax.numpy as jnp
import numpy as np
import pytest

from rasterizer import fit_example


@pytest.mark.once
def test_the_example_finds_the_square():
    truth = fit_example.square(8.3, 6.1, 24.6, 20.7)
    target = fit_example.draw(truth, jnp.array([0.9, 0.5, 0.2]))
    start = fit_example.square(5.0, 9.0, 20.0, 26.0)
    (corners, colour), losses = fit_example.fit(target, start, jnp.full(3, 0.5))
    assert losses[-1] < 1e-3 * losses[0]
    # The sides are found; a corner may slide along a side that it shares.
    np.testing.assert_allclose(corners, truth, atol=0.3)
    np.testing.assert_allclose(colour, [0.9, 0.5, 0.2], atol=0.02)
