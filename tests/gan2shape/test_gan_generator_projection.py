"""Step 2: what the encoder is trained by.

Generator and discriminator are stand-ins, as the real ones take long to compile: a
picture of a latent is a product, features are means of cells. Mapping network, offset
rule and encoder are the real ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unsup3d_jax.gan2shape import generator_projection as gp
from unsup3d_jax.gan2shape.generator_projection import GeneratorProjection, Own
from unsup3d_jax.gan2shape.projection import Pseudo
from unsup3d_jax.nets import stylegan2

pytestmark = pytest.mark.once

SIZE, STYLE = 32, 8
OPTIONS = stylegan2.GanOptions(
    image_size=SIZE, channels=(8, 4, 4, 4), style=STYLE, mapping_layers=3, noise=False
)
PROJECTION = GeneratorProjection(
    size=SIZE,
    crop=0,
    layers=2,
    regularised=True,
    relative=True,
    style=STYLE,
    width=4,
    features=0.5,
    offset=0.02,
)


def _picture(gan, w, offset, size, crop):
    assert crop is None
    flat = jnp.tanh((w + offset) @ gan.synthesis["linear"])
    return flat.reshape(-1, size, size, 3)


def _means(params, signed, options, count):
    b = len(signed)
    cells = (signed.reshape(b, n, SIZE // n, n, SIZE // n, 3) for n in (16, 4))
    return tuple(params["gain"] * x.mean((2, 4)) for x in cells)


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gp.offsets, "project", _picture)
        patch.setattr(gp, "discriminator_features", _means)
        yield


@pytest.fixture(scope="module")
def gan():
    keys = jax.random.split(jax.random.key(0), 2)
    return stylegan2.StyleGan(
        mapping=stylegan2.init_generator(keys[0], OPTIONS)["mapping"],
        synthesis={"linear": 0.3 * jax.random.normal(keys[1], (STYLE, SIZE**2 * 3))},
        discriminator={"gain": jnp.float32(1.5)},
        noise=(),
        mean_w=jnp.zeros(STYLE),
        options=OPTIONS,
    )


@pytest.fixture(scope="module")
def made(gan):
    """Latents of an image and of another, and what the generator makes of them."""
    z = jnp.stack([jnp.ones(STYLE), jnp.linspace(-1.0, 1.0, STYLE)])
    w = stylegan2.map_latent(gan.mapping, z, OPTIONS)
    return w, _picture(gan, w, 0.0, SIZE, None)


@pytest.fixture(scope="module")
def own(made):
    w, pictures = made
    return Own(w=w[0], picture=pictures[0])


@pytest.fixture(scope="module")
def pseudo(made):
    """Two samples: the image itself, and the other; a mask with holes."""
    image = (made[1] + 1.0) / 2.0
    mask = jax.random.uniform(jax.random.key(3), (2, SIZE, SIZE)) > 0.3
    return Pseudo(
        image=image,
        mask=mask,
        view=jnp.zeros((2, 6)),
        light=jnp.zeros((2, 5)),
        image_view=jnp.zeros(6),
    )


@pytest.fixture(scope="module")
def encoder():
    return PROJECTION.init_encoder(jax.random.key(2))


@pytest.fixture(scope="module")
def evaluated(encoder, pseudo, gan, own):
    """Projected samples and the loss, after some steps of Adam: one program."""
    adam = optax.adam(1e-2)

    @jax.jit
    def after(steps):
        def step(_, carry):
            encoder, moments = carry
            grads = jax.grad(PROJECTION.loss)(encoder, pseudo, gan, own)
            updates, moments = adam.update(grads, moments)
            return optax.apply_updates(encoder, updates), moments

        start = (encoder, adam.init(encoder))
        trained, _ = jax.lax.fori_loop(0, steps, step, start)
        projected = PROJECTION.project(trained, pseudo, gan, own)
        return projected, PROJECTION.loss(trained, pseudo, gan, own)

    return after


def test_the_sample_that_is_the_image_stays_where_it_is(evaluated, own):
    """Relative encoding: e(G(w)) - e(G(w)) = 0, for which the offset is 0."""
    projected, _ = evaluated(0)
    np.testing.assert_allclose(projected.offset[0], 0.0, atol=1e-6)
    assert np.abs(projected.offset[1]).max() > 1e-3
    np.testing.assert_allclose(projected.image[0], (own.picture + 1.0) / 2.0, atol=1e-5)


def test_the_loss_is_that_of_the_definition(evaluated, pseudo, gan):
    """Pan et al., ICLR 2021, Sec. 3.2: pixels, features, offset; float64."""
    projected, loss = evaluated(0)
    a, b = (2.0 * np.asarray(x.image, np.float64) - 1.0 for x in (projected, pseudo))
    mask = np.asarray(pseudo.mask, np.float64)
    expected = (np.abs(a - b).mean(-1) * mask).sum() / mask.sum()
    for side in (16, 4):
        cell = SIZE // side
        weight = mask.reshape(2, side, cell, side, cell).mean((2, 4))
        one, other = (
            1.5 * x.reshape(2, side, cell, side, cell, 3).mean((2, 4)) for x in (a, b)
        )
        apart = np.abs(one - other).mean(-1)
        expected += 0.5 * (apart * weight).sum() / weight.sum()
    expected += 0.02 * np.square(np.float64(projected.offset)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_encoder_learns(evaluated):
    _, before = evaluated(0)
    projected, after = evaluated(120)
    assert after < 0.8 * before
    # However it has learnt.
    np.testing.assert_allclose(projected.offset[0], 0.0, atol=1e-5)


def test_a_lesson_is_that_of_the_definition(encoder, gan):
    """Pair by pair, float64."""
    key = jax.random.key(5)
    found = jax.jit(PROJECTION.lesson)(encoder, key, gan)
    keys = jax.random.split(key, 3)
    normal = [jax.random.normal(k, (gp.PAIRS, STYLE)) for k in keys[:2]]
    one, other = (stylegan2.map_latent(gan.mapping, z, OPTIONS) for z in normal)
    u = np.asarray(jax.random.uniform(keys[2], (gp.PAIRS, 1)))
    assert (u < 0.5).any() and (u > 0.5).any()
    errors = lengths = 0.0
    for i in range(gp.PAIRS):
        share = 2.0 * u[i, 0] if u[i, 0] < 0.5 else 1.0
        step = share * (np.asarray(other[i]) - np.asarray(one[i]))
        pictures = [
            _picture(gan, one[i : i + 1] + x, 0.0, SIZE, None) for x in (0, step)
        ]
        before, after = (PROJECTION._encode(encoder, p) for p in pictures)
        said = gp.offsets.latent_offset(gan, after, 2, True, before)[0]
        errors += np.square(np.asarray(said, np.float64) - step).sum()
        lengths += np.square(step.astype(np.float64)).sum()
    np.testing.assert_allclose(found, errors / lengths, rtol=1e-4)


def test_an_encoder_learns_from_lessons(encoder, gan):
    """To read a step that it has not seen, better than to say nothing: 1."""
    adam = optax.adam(3e-3)

    @jax.jit
    def taught():
        def step(i, carry):
            encoder, moments = carry
            key = jax.random.fold_in(jax.random.key(6), i)
            grads = jax.grad(PROJECTION.lesson)(encoder, key, gan)
            updates, moments = adam.update(grads, moments)
            return optax.apply_updates(encoder, updates), moments

        trained, _ = jax.lax.fori_loop(0, 40, step, (encoder, adam.init(encoder)))
        return PROJECTION.lesson(trained, jax.random.key(7), gan)

    assert taught() < 0.8 < PROJECTION.lesson(encoder, jax.random.key(7), gan)
