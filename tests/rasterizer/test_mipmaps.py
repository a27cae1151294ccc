"""Pyramids of textures, slopes of uv, and lookups with both: loops, laws, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rasterizer
from tests.rasterizer import scenes
from tests.rasterizer.test_gradients import numeric_gradient
from tests.rasterizer.test_primitives import slow_lookup

SIZE = (3, 4)


@pytest.fixture(autouse=True)
def optimised():
    """Not here: nothing of this depends on what a compiler makes of it."""


# --- the pyramid ------------------------------------------------------------------


def means(count):
    """(max(1, count // 2), count) shares of each value in each mean, by overlap."""
    half = max(1, count // 2)
    length = count / half
    return np.array(
        [
            [
                max(0.0, min((i + 1) * length, j + 1) - max(i * length, j)) / length
                for j in range(count)
            ]
            for i in range(half)
        ]
    )


@pytest.mark.parametrize("size", [(5, 7), (8, 4), (1, 6)])
def test_levels_are_means_over_areas(size):
    texture = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    levels = rasterizer.mip_pyramid(texture)
    assert levels[-1].shape == (2, 1, 1, 3)
    for above, below in zip(levels, levels[1:], strict=False):
        rows, columns = (means(n) for n in above.shape[-3:-1])
        expected = np.einsum("ij,kl,bjlc->bikc", rows, columns, above)
        np.testing.assert_allclose(below, expected, atol=1e-6)
    np.testing.assert_allclose(levels[-1][:, 0, 0], texture.mean((1, 2)), atol=1e-6)


# --- slopes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "parallel", [pytest.param(True, marks=[pytest.mark.once]), False]
)
def test_slopes_match_finite_differences_over_the_screen(parallel):
    vertices, faces = scenes.soup(4, count=8, size=(9, 10))
    attributes = np.random.default_rng(0).normal(size=(len(vertices), 2))
    with jax.enable_x64(True):
        vertices = vertices.astype(np.float64)
        draw = jax.jit(
            partial(
                rasterizer.rasterize,
                faces=faces,
                size=(9, 10),
                parallel=parallel,
                backend="xla",
            )
        )
        found = draw(vertices)
        got = rasterizer.slopes_at(
            attributes, vertices, faces, found, parallel=parallel
        )

        def at(x, y):
            where, _ = rasterizer.barycentrics_at(
                vertices,
                faces,
                found.face_index,
                pixel_offset=(x, y),
                parallel=parallel,
            )
            return rasterizer.interpolate(
                attributes, faces, found._replace(barycentrics=where)
            )

        h = 1e-5
        along_x = (at(h, 0.0) - at(-h, 0.0)) / (2 * h)
        along_y = (at(0.0, h) - at(0.0, -h)) / (2 * h)
    expected = np.stack([along_x, along_y], axis=-1)
    # At an outline weights are clipped, and have another slope.
    inside = np.asarray(found.barycentrics).min(axis=-1) > 1e-3
    assert inside.mean() > 0.3
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got[found.face_index < 0], 0.0)


@pytest.mark.once
def test_slopes_have_an_exact_gradient():
    vertices, faces = scenes.soup(4, count=5, size=SIZE)
    rng = np.random.default_rng(0)
    attributes, weight = rng.normal(size=(len(vertices), 2)), rng.normal(size=(2, 2))
    with jax.enable_x64(True):
        vertices = vertices.astype(np.float64)
        index = rasterizer.rasterize(vertices, faces, SIZE, backend="xla").face_index

        @jax.jit
        def total(v, a):
            where, depth = rasterizer.barycentrics_at(v, faces, index)
            found = rasterizer.Fragments(index, where, depth)
            return jnp.sum(weight * rasterizer.slopes_at(a, v, faces, found))

        gradients = jax.grad(total, argnums=(0, 1))(vertices, attributes)
        by_vertex = numeric_gradient(lambda v: total(v, attributes), vertices)
        by_attribute = numeric_gradient(lambda a: total(vertices, a), attributes)
    for got, numeric in zip(gradients, (by_vertex, by_attribute), strict=True):
        scale = np.abs(numeric).max()
        np.testing.assert_allclose(got, numeric, atol=1e-6 * scale)


# --- the lookup -------------------------------------------------------------------


def slow_level(levels, u, v, number, wrap):
    return slow_lookup(levels[number], u, v, "linear", wrap)


def slow_pyramid(levels, uv, slopes, taps, wrap):
    """One value, step by step."""
    size = np.array([levels[0].shape[1], levels[0].shape[0]])
    lengths = [np.linalg.norm(slopes[:, k] * size) for k in (0, 1)]
    longer, shorter = max(lengths), min(lengths)
    longer_way = slopes[:, int(np.argmax(lengths))]
    reach = max(longer if taps == 1 else max(shorter, longer / taps), 0.5)
    level = np.clip(np.log2(reach), 0, len(levels) - 1)
    low = int(min(np.floor(level), len(levels) - 2))
    total = 0.0
    for k in range(taps):
        place = ((k + 0.5) / taps - 0.5) * max(1 - reach / max(longer, 0.5), 0)
        u, v = uv + place * longer_way
        both = [slow_level(levels, u, v, low + n, wrap) for n in (0, 1)]
        total += both[0] * (1 - (level - low)) + both[1] * (level - low)
    return total / taps


def lookups(seed):
    """uv and slopes of 3 x 4 pixels, from a tenth of a texel to the whole texture."""
    rng = np.random.default_rng(seed)
    uv = rng.uniform(-0.3, 1.3, (*SIZE, 2))
    slopes = rng.normal(size=(*SIZE, 2, 2)) * np.exp(rng.uniform(-5, 0, (*SIZE, 1, 2)))
    return uv, slopes


@pytest.mark.parametrize("taps", [1, pytest.param(4, marks=[pytest.mark.once])])
@pytest.mark.parametrize(
    "wrap", ["clamp", pytest.param("repeat", marks=[pytest.mark.once])]
)
def test_lookups_match_a_loop_and_finite_differences(taps, wrap):
    rng = np.random.default_rng(0)
    texture = rng.normal(size=(6, 5, 2))
    weight = rng.normal(size=(*SIZE, 2))
    uv, slopes = lookups(1)
    with jax.enable_x64(True):
        look = jax.jit(partial(rasterizer.sample_texture, wrap=wrap, taps=taps))
        levels = rasterizer.mip_pyramid(texture)
        got = look(levels, uv, slopes=slopes)
        same = look(texture, uv, slopes=slopes)

        @jax.jit
        @partial(jax.grad, argnums=(0, 1, 2))
        def gradient(levels, uv, slopes):
            return jnp.sum(weight * look(levels, uv, slopes=slopes))

        gradients = gradient(levels, uv, slopes)
        whole = jax.jit(
            jax.grad(lambda t: jnp.sum(weight * look(t, uv, slopes=slopes)))
        )(texture)
        gradients, whole = jax.tree.map(np.asarray, (gradients, whole))
    levels = [np.asarray(t) for t in levels]

    def slow(levels, uv, slopes):
        return np.array(
            [
                [
                    slow_pyramid(levels, uv[i, j], slopes[i, j], taps, wrap)
                    for j in range(4)
                ]
                for i in range(3)
            ]
        )

    np.testing.assert_allclose(got, slow(levels, uv, slopes), atol=1e-9)
    np.testing.assert_allclose(same, got, atol=1e-12)
    for number, gradient in enumerate(gradients[0]):

        def by_level(t, number=number):
            return np.sum(
                weight * slow([*levels[:number], t, *levels[number + 1 :]], uv, slopes)
            )

        # Linear in the texture: one direction tells.
        way = rng.normal(size=levels[number].shape)
        slope = by_level(levels[number] + way) - by_level(levels[number])
        np.testing.assert_allclose(np.sum(gradient * way), slope, atol=1e-9)
    way = rng.normal(size=texture.shape)
    with jax.enable_x64(True):
        moved = [np.asarray(t) for t in rasterizer.mip_pyramid(texture + way)]
    slope = np.sum(weight * (slow(moved, uv, slopes) - slow(levels, uv, slopes)))
    np.testing.assert_allclose(np.sum(whole * way), slope, atol=1e-9)
    numeric = numeric_gradient(lambda q: np.sum(weight * slow(levels, q, slopes)), uv)
    np.testing.assert_allclose(gradients[1], numeric, atol=1e-6)
    numeric = numeric_gradient(lambda s: np.sum(weight * slow(levels, uv, s)), slopes)
    np.testing.assert_allclose(gradients[2], numeric, atol=1e-6)
    assert np.abs(numeric).max() > 0.1


LOOK = jax.jit(rasterizer.sample_texture, static_argnames="taps")


def test_texels_as_large_as_pixels_and_pixels_as_large_as_the_texture():
    texture = np.random.default_rng(0).normal(size=(4, 8, 1)).astype(np.float32)
    uv, _ = lookups(2)
    uv = uv.astype(np.float32)
    one = np.broadcast_to(np.diag([1 / 8, 1 / 4]).astype(np.float32), (*SIZE, 2, 2))
    plain = rasterizer.sample_texture(texture, uv)
    for taps in (1, 4):
        fine = LOOK(texture, uv, slopes=one, taps=taps)
        np.testing.assert_allclose(fine, plain, atol=1e-6)
        coarse = LOOK(texture, uv, slopes=9 * one, taps=taps)
        np.testing.assert_allclose(coarse, texture.mean() + 0 * plain, atol=1e-6)


@pytest.mark.once
def test_taps_tell_stripes_apart_along_a_slanted_view():
    # Stripes across u; pixels are 16 texels long along v, one along u.
    texture = np.tile(np.array([0.0, 0, 1, 1], np.float32), (64, 16))[..., None]
    x = (np.arange(4, dtype=np.float32) * 4 + 3) / 64  # between the texels of a stripe
    uv = np.stack(np.broadcast_arrays(x, np.full((3, 1), 0.5, np.float32)), -1)
    slopes = np.diag([1 / 64, 16 / 64]).astype(np.float32)
    slopes = np.broadcast_to(slopes, (3, 4, 2, 2))
    blurred = LOOK(texture, uv, slopes=slopes)
    sharp = LOOK(texture, uv, slopes=slopes, taps=16)
    np.testing.assert_allclose(sharp, 1.0, atol=1e-5)
    np.testing.assert_allclose(blurred, 0.5, atol=0.2)


@jax.jit
def pull(texture, uv, slopes):
    look = partial(rasterizer.sample_texture, taps=2)
    image, back = jax.vjp(lambda t, q, s: look(t, q, slopes=s), texture, uv, slopes)
    return image, back(jnp.ones_like(image))


@given(
    st.lists(
        st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e30, -1e18, 1e-30, 0.2]),
        min_size=6,
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_nasty_coordinates_and_slopes_stay_finite(values):
    texture = np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)
    uv, slopes = (v.astype(np.float32) for v in lookups(3))
    uv[0, 1] = values[:2]
    slopes[1, 2] = np.reshape(values[2:], (2, 2))
    image, gradients = pull(texture, uv, slopes)
    assert np.isfinite(image).all() and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.once
def test_one_texture_serves_a_batch_of_lookups():
    texture = np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)
    both = [
        np.stack(v).astype(np.float32) for v in zip(lookups(1), lookups(2), strict=True)
    ]
    together = LOOK(texture, both[0], slopes=both[1])
    for k in (0, 1):
        one = LOOK(texture, both[0][k], slopes=both[1][k])
        np.testing.assert_allclose(together[k], one, rtol=1e-5)


def test_bad_arguments_are_named():
    texture, uv = np.zeros((4, 4, 1), np.float32), np.zeros((2, 2, 2), np.float32)
    slopes = np.zeros((2, 2, 2, 2), np.float32)
    for arguments, options, message in (
        ((texture, uv), {"taps": 2}, "need slopes"),
        ((texture, uv), {"slopes": slopes, "taps": 0}, "taps"),
        ((texture, uv), {"slopes": slopes[0]}, "slopes"),
        (([texture], uv), {}, "looked up with slopes"),
        (([], uv), {"slopes": slopes}, "needs a texture"),
        (([texture, texture[..., :0]], uv), {"slopes": slopes}, "differ"),
    ):
        with pytest.raises(ValueError, match=message):
            rasterizer.sample_texture(*arguments, **options)
    with pytest.raises(ValueError, match="attributes"):
        rasterizer.slopes_at(uv, np.ones((3, 3), np.float32), [[0, 1, 2]], None)  # pyright: ignore
