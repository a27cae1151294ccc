"""ADA: what it does to images, and how its probability follows the discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.stylegan2 import augment
from unsup3d_jax.stylegan2.options import AdaOptions

pytestmark = pytest.mark.once

OPTIONS = AdaOptions(target=0.6, every=4, images=400, most=0.8)
STATE = {name: jnp.float32(0.0) for name in ("probability", "signs", "images")}


@jax.jit
def _augmented(images, probability):
    keys = jax.random.split(jax.random.key(0), len(images))
    return augment.augment(keys, images, probability)


def _images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(-1, 1, (64, 8, 8, 3)).astype(np.float32))


def test_with_probability_0_images_are_left_to_the_bit():
    images = _images()
    found = _augmented(images, jnp.float32(0.0))
    np.testing.assert_array_equal(found, images)


def test_more_of_them_change_with_the_probability():
    images = _images()
    shares = []
    for probability in (0.05, 0.5, 1.0):
        found = _augmented(images, jnp.float32(probability))
        same = np.abs(found - images).max((1, 2, 3)) < 1e-5
        shares.append(1.0 - same.mean())
    # Nine draws (a flip counts half): 1 - (1 - p)^8 (1 - p / 2), about.
    assert abs(shares[0] - 0.35) < 0.2 and shares[1] > 0.95 and shares[2] == 1.0


def test_one_matrix_moves_an_image_as_it_says():
    image = np.zeros((1, 5, 5, 3), np.float32)
    image[0, 1, 3] = 1.0
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    found = augment._moved(jnp.asarray(image), jnp.asarray(quarter)[None])
    # The place (x, y) shows what lay at (-y, x), about the middle: (1, -1) at (-1, -1).
    expected = np.zeros_like(image)
    expected[0, 1, 1] = 1.0
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_comes_in_is_the_image_in_a_mirror():
    place = jnp.array([-1.0, 0.0, 3.5, 4.0, 5.0, 9.0])
    np.testing.assert_allclose(
        augment._mirrored(place, 5), [1.0, 0.0, 3.5, 4.0, 3.0, 1.0]
    )


def test_colours_keep_grey_grey_and_brightness_apart_from_hue():
    draw = jax.jit(jax.vmap(lambda key: augment.colour_draw(key, jnp.float32(1.0))))
    found = np.asarray(draw(jax.random.split(jax.random.key(1), 16)))
    grey = found[:, :, :3] @ np.full(3, 0.5) + found[:, :, 3]
    np.testing.assert_allclose(grey - grey.mean(1, keepdims=True), 0.0, atol=1e-5)


def test_the_probability_rises_while_real_images_are_known_and_falls_else():
    adapt = jax.jit(
        lambda state, sign, step: augment.adapted(
            state, sign, jnp.float32(10.0), step, OPTIONS
        )
    )
    state, seen = STATE, []
    for step in range(16):
        sign = jnp.float32(1.0 if step < 8 else 0.0)
        state = adapt(state, sign, jnp.int32(step))
        seen.append(float(state["probability"]))
    # 40 images of 400 a change: a tenth.
    expected = [0] * 3 + [0.1] * 4 + [0.2] * 4 + [0.1] * 4 + [0.0]
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_it_never_passes_its_bounds_and_nothing_moves_without_a_target():
    state = STATE | {"probability": jnp.float32(0.79)}
    up = augment.adapted(
        state, jnp.float32(1.0), jnp.float32(99.0), jnp.int32(3), OPTIONS
    )
    assert float(up["probability"]) == np.float32(0.8)
    off = AdaOptions(target=0.0, every=4, images=400, most=0.8)
    args = (jnp.float32(1.0), jnp.float32(99.0), jnp.int32(3), off)
    assert augment.adapted(state, *args) == state
