"""The oracle draws what the true depth, in the network's own frame, must explain."""

import gan_shape_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from unsup3d_jax.formation import reprojection
from unsup3d_jax.gan2shape import scenes
from unsup3d_jax.gan2shape.options import check_config
from unsup3d_jax.gan2shape.projection import OracleProjection, Pseudo

# Compiled programs of seconds each.
pytestmark = pytest.mark.once

SIZE = 32
OWN = jnp.asarray([0.05, 0.3, -0.04, 0.01, -0.005, 0.0])  # V's view of the image
SAMPLE = jnp.asarray(
    [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1, -0.25, 0.05, 0.006, 0.0, 0.0]]
)


def pseudo(view, light):
    b = len(view)
    return Pseudo(
        image=jnp.zeros((b, SIZE, SIZE, 3)),
        mask=jnp.ones((b, SIZE, SIZE), bool),
        view=view,
        light=light,
        image_view=OWN,
    )


@pytest.fixture(scope="module")
def drawn():
    """The person as taken, at two sampled views, and at the image's own view."""
    config = samples.config(data__name="open_faces", data__pose="natural")
    mesh, people = scenes.load(config, "test", 1)
    person = jax.tree.map(lambda x: x[0], people)
    oracle = OracleProjection(SIZE)
    light = jnp.tile(jnp.asarray([0.4, 0.5, 0.3, 0.1, 0.9]), (2, 1))
    pictures = jax.jit(oracle.pictures)
    sampled = pictures(pseudo(SAMPLE, light), mesh, person)
    own = pictures(pseudo(jnp.tile(OWN, (2, 1)), light), mesh, person)
    taken = scenes.as_taken(mesh, people, size=SIZE)
    return check_config(config), taken, sampled, own


def test_at_its_own_view_the_sample_is_the_image(drawn):
    _, taken, _, own = drawn
    # To the rounding of a rotation forth and back: a silhouette may move.
    same = np.asarray(own.mask[0]) == np.asarray(taken.mask[0])
    assert same.mean() > 0.995
    both = np.asarray(own.mask[0]) & np.asarray(taken.mask[0])
    close = np.abs(np.asarray(own.depth[0]) - np.asarray(taken.depth[0]))[both]
    assert np.median(close) < 1e-5 and np.quantile(close, 0.98) < 1e-3


def test_true_depth_of_the_canonical_frame_explains_the_sampled_depth(drawn):
    options, _, sampled, _ = drawn
    # The first sample's view is 0: it shows the canonical frame itself.
    canonical, mask = sampled.depth[:1], np.asarray(sampled.mask[0])
    warped, valid = reprojection.warp_depth(canonical, SAMPLE[1:], options.scene)
    inside = np.asarray(valid[0]) & np.asarray(sampled.mask[1])
    error = np.abs(np.asarray(warped[0]) - np.asarray(sampled.depth[1]))[inside]
    # But for what the canonical view does not see, and the cells of its silhouette.
    assert inside.sum() > 0.6 * mask.sum()
    assert np.median(error) < 1e-3
    assert np.quantile(error, 0.8) < 3e-3


def test_a_light_of_the_canonical_frame_turns_with_the_view(drawn):
    _, _, sampled, own = drawn
    # Normals of the same head, each in its own camera; the light's directions differ
    # by the same rotation, so that brightness hangs on the place of the head alone.
    first, second = (
        np.asarray(p.image[0])[np.asarray(p.mask[0])].mean() for p in (sampled, own)
    )
    assert abs(first - second) < 0.06


def test_the_backdrop_is_plain(drawn):
    _, taken, _, _ = drawn
    # A pixel of the outline shows a part of the head.
    near = scipy.ndimage.binary_dilation(np.asarray(taken.mask[0]), iterations=2)
    backdrop = np.asarray(taken.image[0])[~near]
    assert len(backdrop) > 20
    np.testing.assert_allclose(backdrop, scenes.BACKDROP, atol=1e-5)
