"""Shape is learnt from shading where viewpoint and light are known.

No network: one canonical depth map that all faces share and an albedo for each, on
coarse grids, are fitted to rendered faces through the whole image formation. Each of
its stages has laws of its own, tested elsewhere; a sign or an axis that two of them
understand differently shows only here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.evaluation.depth import depth_scores
from unsup3d_jax.formation import heads, losses
from unsup3d_jax.formation.types import Batch, Factors
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import options_from_config

SIZE, COUNT, STEPS = 32, 8, 80
DEPTH_GRID, ALBEDO_GRID = 8, 16


@pytest.fixture(scope="module")
def batch():
    faces = open_faces.load("train", image_size=SIZE, count=COUNT, pose="mixed")
    return Batch(
        image=jnp.asarray(faces["image"], jnp.float32) / 255.0,
        **{k: jnp.asarray(faces[k]) for k in ("depth", "mask", "view", "light")},
    )


@functools.cache
def _options():
    config = default.get_config()
    default.use_papers_start(config)  # a plane, and no help from a bump
    config.data.image_size = SIZE
    config.raster.supersample = 1
    config.model.oracle_view = config.model.oracle_light = True
    return options_from_config(config)


def _reconstruct(grids, batch):
    def enlarged(grid):
        return jax.image.resize(grid, (len(grid), SIZE, SIZE, *grid.shape[3:]), "cubic")

    options = _options()
    limits, scene = options.factors, options.scene
    raw_depth = heads.depth_from_raw(
        jnp.repeat(enlarged(grids["depth"]), COUNT, axis=0),
        limits=(scene.depth_min, scene.depth_max),
        centre=limits.centre_depth,
        bump=limits.bump,
    )
    factors = Factors(
        raw_depth=raw_depth,
        canon_depth=heads.clamp_border(
            raw_depth, columns=limits.border_columns, value=limits.border_depth
        ),
        canon_albedo=jax.nn.sigmoid(enlarged(grids["albedo"])),
        light=jnp.zeros((COUNT, 5)),
        view=jnp.zeros((COUNT, 6)),
    )
    factors = model.apply_oracle(factors, batch, options)
    return model.reconstruct(factors, options)


@jax.jit
def _fit(batch):
    """Fitted grids, the loss at the start, and at the end."""

    def loss(grids):
        both = _reconstruct(grids, batch)
        return sum(
            losses.mean_share(
                losses.photometric(
                    part.image, batch.image, part.valid.astype(jnp.float32), None
                )
            )
            for part in (both.plain, both.flip)
        )

    def update(carry, _):
        grids, state = carry
        value, gradient = jax.value_and_grad(loss)(grids)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(grids, updates), state), value

    optimizer = optax.adam(0.1)
    flat = {
        "depth": jnp.zeros((1, DEPTH_GRID, DEPTH_GRID)),
        "albedo": jnp.zeros((COUNT, ALBEDO_GRID, ALBEDO_GRID, 3)),
    }
    start = (flat, optimizer.init(flat))
    (grids, _), values = jax.lax.scan(update, start, None, STEPS)
    return grids, values[0], values[-1]


@jax.jit
def _scores(grids, batch):
    warped = _reconstruct(grids, batch).plain
    score = functools.partial(depth_scores, fov_deg=_options().scene.fov_deg)
    found = jax.vmap(score)(warped.depth, batch.depth, warped.valid, batch.mask)
    return {name: jnp.mean(value) for name, value in vars(found).items()}


@pytest.mark.slow
def test_the_face_is_found_and_a_mirrored_truth_explains_it_worse(batch):
    grids, start, end = _fit(batch)
    plane = _scores(jax.tree.map(jnp.zeros_like, grids), batch)
    found = _scores(grids, batch)
    assert end < 0.4 * start
    assert found["pearson"] > 0.6 and plane["pearson"] < 0.2
    assert found["mad_deg"] < 0.65 * plane["mad_deg"]
    assert found["side"] < 0.8 * plane["side"]
    for mirrored in (  # left and right: symmetry tells these apart
        {"view": batch.view * np.float32([1, -1, 1, 1, 1, 1])},
        {"light": batch.light * np.float32([1, 1, -1, 1, 1])},
    ):
        _, _, other = _fit(dataclasses.replace(batch, **mirrored))
        assert end < 0.95 * other
