"""The normalised mean error of landmarks."""

import jax
import jax.numpy as jnp
import numpy as np

from unsup3d_jax.evaluation.landmarks import box_size, mean_error

TRUE = jnp.array([[0.0, 0.0], [4.0, 9.0], [2.0, 3.0], [jnp.nan, jnp.nan]])
COUNTS = jnp.array([True, True, True, False])


def test_it_is_the_mean_distance_over_the_root_of_the_box():
    size = box_size(TRUE, COUNTS)
    assert size == 6.0
    found = TRUE + jnp.array([3.0, 4.0])
    assert mean_error(found, TRUE, COUNTS, size) == np.float32(5 / 6)
    # What is not known does not count, wherever it is put.
    some = COUNTS.at[1].set(False)
    far = found.at[1].set(99.0).at[3].set(-99.0)
    assert mean_error(far, TRUE, some, size) == np.float32(5 / 6)
    assert mean_error(TRUE, TRUE, COUNTS, size) == 0.0


def test_an_image_of_which_nothing_is_known_has_no_error():
    none = jnp.zeros(4, bool)
    for counts in (none, none.at[0].set(True)):
        assert box_size(TRUE, counts) == 0.0
        assert jnp.isnan(mean_error(TRUE, TRUE, counts, box_size(TRUE, counts)))
    assert jnp.isnan(mean_error(TRUE, TRUE, none, jnp.array(1.0)))
    sizes = jax.vmap(box_size)(jnp.stack([TRUE, 2 * TRUE]), jnp.stack([COUNTS] * 2))
    np.testing.assert_array_equal(sizes, [6.0, 12.0])
