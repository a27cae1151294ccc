import numpy as np

from unsup3d_jax.gan2shape import view_control
from unsup3d_jax.gan2shape.view_control import YAWS_DEG, summarise


def test_a_generator_that_obeys_and_one_that_does_not():
    asked = list(YAWS_DEG)
    exact = np.array(asked)
    person = np.arange(3.0)[:, None, None] * np.ones((3, len(asked), 4))
    good = summarise(np.stack([0.6 * exact + 2.0] * 3), person, asked)
    np.testing.assert_allclose([good.spearman, good.slope], [1.0, 0.6], rtol=1e-6)
    assert good.same == 0.0
    # |0 - 2|, |1 - 0|, |2 - 1|: the image before it.
    np.testing.assert_allclose(good.other, 4.0 / 3.0)
    noise = np.array([3.0, -1.0, 2.0, 0.0, -2.0, 1.0, -3.0])
    bad = summarise(np.stack([noise, -noise]), person[:2], asked)
    np.testing.assert_allclose([bad.spearman, bad.slope], 0.0, atol=1e-12)


def test_every_image_has_the_networks_of_its_group():
    two = {"encoder": {"kernel": np.array([[1.0], [2.0]])}}
    found = view_control._of_each(two, 4)["encoder"]["kernel"]
    np.testing.assert_array_equal(found, [[1.0], [1.0], [2.0], [2.0]])
    joint = {"encoder": {"kernel": np.array([[3.0, 4.0]])}}
    found = view_control._of_each(joint, 3)["encoder"]["kernel"]
    np.testing.assert_array_equal(found, [[3.0, 4.0]] * 3)
