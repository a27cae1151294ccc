"""The worthless minima of the image terms, and what keeps theta from them.

A face that shrinks to a spot, slides out of the image or turns away compares nothing
with nothing. No landmark and no prior is there to hold it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_people

from unsup3d_jax.data.batches import to_batch
from unsup3d_jax.stn3dmm import localiser, options
from unsup3d_jax.stn3dmm import objective as objectives

# Ten times what the recipes give the image terms.
WEIGHTS = {"loss__symmetry": 0.1, "loss__multi_view": 0.1, "loss__landmark": 0.0,
           "loss__shape": 0.0, "loss__prior": 0.0}  # fmt: skip
LIMIT = 0.7  # of |log s|, from which on `scale_range` costs
PEOPLE, VIEWS = 2, 2


def along(path, **changes):
    """(both image terms, total) of thetas on a way from the truth: rows of 6 numbers.

    Pictures are noise, in which the truth is as good as any other place of a face that
    is as large: what the image terms tell apart is size and visibility alone.
    """
    config = stn_people.config(**WEIGHTS, **changes)
    face = options.load_face(config)
    static = options.options_from_config(config, face)
    people = stn_people.dataset(config, count=PEOPLE)
    names = ("image", "latent")
    batch = to_batch({name: jnp.asarray(people.arrays[name]) for name in names})
    truth = batch.latent.reshape(PEOPLE * VIEWS, -1)
    grid = jax.tree.map(jnp.asarray, face.grid)

    @jax.jit
    def terms(move):
        theta = truth.at[:, :6].add(move)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(localiser, "localise", lambda *_: theta)
            # Nothing is asked of theta but by what is seen.
            unknown = dataclasses.replace(batch, latent=None)
            return objectives.objective({}, grid, unknown, static)[1].terms

    found = [terms(jnp.asarray(move, jnp.float32)) for move in path]
    images = [[float(x[name]) for name in ("symmetry", "multi_view")] for x in found]
    return np.array(images), np.array([float(x["total"]) for x in found])


def path_of(entry, numbers):
    return np.eye(6)[entry] * np.asarray(numbers)[:, None]


@pytest.fixture(scope="module")
def ways():
    steps = {"shrinks": path_of(5, [0.0, -0.35, -1.0, -2.0, -4.0, -7.0]),
             "slides": path_of(3, [0.0, 0.6, 1.0, 1.4, 2.0, 3.0])}  # fmt: skip
    images, total = along(np.concatenate(list(steps.values())))
    halves = zip(np.split(images, 2), np.split(total, 2), strict=True)
    return dict(zip(steps, halves, strict=True))


@pytest.mark.parametrize("way", ["shrinks", "slides"])
def test_image_terms_fall_to_nothing_where_a_face(ways, way):
    images, _ = ways[way]
    symmetry, views = images.T
    assert symmetry[0] > 0.03 and symmetry[-1] < 0.02 * symmetry[0]
    # The spots of two pictures are still of two colours.
    left = {"shrinks": 0.8, "slides": 0.02}[way]
    assert views[0] > 0.03 and views[-1] < left * views[0]


@pytest.mark.parametrize("way", ["shrinks", "slides"])
def test_the_safeguards_make_it_dear_that_a_face(ways, way):
    images, total = ways[way]
    # At the truth they say nothing.
    assert total[0] == pytest.approx(0.1 * images[0].sum(), abs=2e-3)
    assert (np.diff(total)[1:] > 0).all()
    assert (total[2:] > total[0]).all() and total[-1] > 10 * total[0]


@pytest.mark.once  # masks with a slope are drawn
def test_the_safeguards_make_it_dear_that_a_face_turns_away():
    about = path_of(1, [0.0, 1.5, 2.6, 3.1])
    _, total = along(about, visibility__train="soft")
    _, bare = along(about, visibility__train="soft", loss__visible=0.0)
    # What little is seen counts as much as all did, so that they fall by some.
    assert bare[-1] < 0.8 * bare[0] and total[-1] > 2 * total[0]
