import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.nets import convolution

# size, stride, padding, inputs, outputs, image: one case for each form of the gradient.
CASES = [
    (5, 1, 2, 16, 32, 16),  # rows
    (3, 1, 1, 32, 16, 12),
    (2, 1, 1, 16, 64, 12),
    (5, 1, 2, 16, 3, 10),  # few outputs
    (3, 1, 1, 16, 2, 6),
    (2, 1, 1, 32, 64, 4),  # patches
    (3, 1, 1, 32, 32, 4),
    (4, 1, 1, 3, 16, 8),  # XLA
    (3, 2, 1, 3, 8, 26),  # strided
    (3, 2, 1, 4, 8, 7),
    (5, 3, 0, 4, 3, 11),
]


@pytest.mark.parametrize("size, stride, padding, inputs, outputs, image", CASES)
def test_gradients_are_those_of_the_plain_convolution(
    size, stride, padding, inputs, outputs, image
):
    rng = np.random.default_rng(size)
    x, kernel, weight = (
        rng.normal(size=shape).astype(np.float32)
        for shape in (
            (3, image, image + 1, inputs),
            (size, size, inputs, outputs),
            (
                3,
                *((n + 2 * padding - size) // stride + 1 for n in (image, image + 1)),
                outputs,
            ),
        )
    )

    def value(convolve, x, kernel):
        y = convolve(x, kernel, stride, padding)
        return jnp.sum(y * weight), y

    (found, ours), (expected, plain) = (
        jax.jit(jax.grad(partial(value, f), argnums=(0, 1), has_aux=True))(x, kernel)
        for f in (convolution.convolve, convolution.plain_convolve)
    )
    np.testing.assert_array_equal(ours, plain)
    for ours, plain in zip(found, expected, strict=True):
        scale = float(jnp.abs(plain).max())
        np.testing.assert_allclose(ours, plain, atol=2e-6 * scale)


def test_strided_gradient_and_bfloat16():
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 16, 16, 16), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (4, 4, 16, 32), jnp.bfloat16)
    for stride, size in ((2, 4), (1, 3), (2, 3)):
        k = kernel[:size, :size]

        def total(f, x, k, stride=stride):
            return jnp.sum(f(x, k, stride, 1).astype(jnp.float32))

        ours, plain = (
            jax.jit(jax.grad(partial(total, f), argnums=1))(x, k)
            for f in (convolution.convolve, convolution.plain_convolve)
        )
        assert ours.dtype == jnp.bfloat16
        scale = float(jnp.abs(plain).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32), plain.astype(jnp.float32), atol=0.02 * scale
        )


@pytest.mark.parametrize("size, inputs, outputs, image", [(3, 5, 4, 6), (5, 2, 3, 9)])
def test_derivatives_of_any_order_are_those_of_the_plain_convolution(
    size, inputs, outputs, image
):
    keys = jax.random.split(jax.random.key(size), 3)
    x = jax.random.normal(keys[0], (3, image, image + 1, inputs))
    kernel = jax.random.normal(keys[1], (size, size, inputs, outputs))
    weight = jax.random.normal(keys[2], (3, image, image + 1, outputs))

    def lengths(f, x, kernel):
        """Of the gradients, as R1 and path lengths have them."""

        def value(x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel)) * weight)

        return sum(
            jnp.sum(jnp.square(g)) for g in jax.grad(value, argnums=(0, 1))(x, kernel)
        )

    def plain(x, kernel):
        return convolution.plain_convolve(x, kernel, 1, size // 2)

    np.testing.assert_array_equal(
        convolution.same_convolve(x, kernel), plain(x, kernel)
    )
    for derive in (lambda f: f, lambda f: lambda x, k: jnp.sum(jax.grad(f)(x, k))):
        found, expected = (
            jax.jit(jax.value_and_grad(derive(partial(lengths, f)), argnums=(0, 1)))(
                x, kernel
            )
            for f in (convolution.same_convolve, plain)
        )
        for ours, theirs in zip(
            jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
        ):
            scale = float(jnp.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, atol=3e-6 * scale)


def test_derivatives_in_a_branch_have_the_layout_that_is_fast_on_cpus():
    # XLA:CPU brings a convolution into this layout, but not in loops and branches,
    # where any other is run 20 times as slowly.
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))

    def penalty(kernel):
        def value(x):
            return jnp.sum(jnp.sin(convolution.same_convolve(x, kernel)))

        return jnp.sum(jnp.square(jax.grad(value)(x)))

    def step(due, kernel):
        return jax.lax.cond(due, jax.grad(penalty), lambda k: k, kernel)

    program = jax.jit(step).lower(True, kernel).compile().as_text()
    layouts = re.findall(r" convolution\(.*dim_labels=(\S+?)[,}\s]", program)
    assert len(layouts) >= 3
    assert set(layouts) == {"b01f_01io->b01f"}
