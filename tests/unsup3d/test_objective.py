"""The objective puts each reconstruction together with its own mask and sigma.

The networks and the warp are replaced by fixed arrays, and VGG16 by an average
over 4 x 4 pixels, so that every term can be written down.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from unsup3d_jax.formation import losses
from unsup3d_jax.formation.types import (
    Batch,
    Canonical,
    Factors,
    Reconstruction,
    Warped,
)
from unsup3d_jax.nets import vgg16
from unsup3d_jax.unsup3d import model
from unsup3d_jax.unsup3d.options import loss_weights, options_from_config

SIZE, COUNT = 32, 2
FLIP, PERCEPTUAL = 0.5, 0.3


def averages(_, image, *, layer):
    assert layer == "relu3_3"
    cells = image.reshape(len(image), SIZE // 4, 4, SIZE // 4, 4, 3)
    return cells.mean((2, 4))


@pytest.fixture
def scene(monkeypatch):
    """Factors, reconstruction and image with nothing in common."""
    rng = np.random.default_rng(0)

    def maps(*shape, low=0.0, high=1.0):
        return jnp.asarray(rng.uniform(low, high, (COUNT, *shape)), jnp.float32)

    small = (SIZE // 4, SIZE // 4)
    factors = Factors(
        raw_depth=maps(SIZE, SIZE),
        canon_depth=maps(SIZE, SIZE),
        canon_albedo=maps(SIZE, SIZE, 3),
        light=maps(5),
        view=maps(6),
        conf_sigma=maps(SIZE, SIZE, low=0.1, high=0.2),
        conf_sigma_flip=maps(SIZE, SIZE, low=0.5, high=2.0),
        conf_sigma_perceptual=maps(*small, low=0.1, high=0.2),
        conf_sigma_perceptual_flip=maps(*small, low=0.5, high=2.0),
    )

    def warped():
        return Warped(
            depth=maps(SIZE, SIZE),
            valid=maps(SIZE, SIZE) > 0.3,
            image=maps(SIZE, SIZE, 3),
        )

    canonical = Canonical(
        normal=maps(SIZE, SIZE, 3), shading=maps(SIZE, SIZE), image=maps(SIZE, SIZE, 3)
    )
    reconstruction = Reconstruction(canonical, canonical, warped(), warped())
    monkeypatch.setattr(model, "decompose", lambda *_, **__: factors)
    monkeypatch.setattr(model, "reconstruct", lambda *_: reconstruction)
    monkeypatch.setattr(vgg16, "features", averages)
    return factors, reconstruction, Batch(image=maps(SIZE, SIZE, 3))


def terms_of(batch, **compat):
    config = default.get_config()
    config.data.image_size = SIZE
    config.loss.flip = FLIP
    config.loss.perceptual = PERCEPTUAL
    config.compat.update(compat)
    options = options_from_config(config)
    weights = loss_weights(config, 0)
    total, outputs = model.objective({}, {"vgg": []}, batch, weights, options)
    return total, outputs.terms


def expected(scene, masks):
    factors, made, batch = scene
    grey = [
        jnp.where(mask[..., None], part.image, 0.5)
        for part, mask in zip((made.plain, made.flip), masks, strict=True)
    ]
    target = averages(None, batch.image, layer="relu3_3")
    masks = [mask.astype(jnp.float32) for mask in masks]
    maps = {
        "photometric": losses.photometric(
            made.plain.image, batch.image, masks[0], factors.conf_sigma
        ),
        "photometric_flip": losses.photometric(
            made.flip.image, batch.image, masks[1], factors.conf_sigma_flip
        ),
        "perceptual": losses.perceptual(
            averages(None, grey[0], layer="relu3_3"),
            target,
            masks[0],
            factors.conf_sigma_perceptual,
        ),
        "perceptual_flip": losses.perceptual(
            averages(None, grey[1], layer="relu3_3"),
            target,
            masks[1],
            factors.conf_sigma_perceptual_flip,
        ),
    }
    return {name: losses.mean_share(loss) for name, loss in maps.items()}


@pytest.mark.once
@pytest.mark.parametrize("joint", [True, False])
def test_each_term_has_its_own_reconstruction_mask_and_sigma(scene, joint):
    _, made, batch = scene
    masks = [made.plain.valid, made.flip.valid]
    if joint:
        masks = [masks[0] & masks[1]] * 2
    total, terms = terms_of(batch, joint_mask=joint)
    want = expected(scene, masks)
    for name, value in want.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    weighted = (
        want["photometric"]
        + FLIP * want["photometric_flip"]
        + PERCEPTUAL * (want["perceptual"] + FLIP * want["perceptual_flip"])
    )
    np.testing.assert_allclose(total, weighted, rtol=1e-5)
    np.testing.assert_allclose(terms["total"], weighted, rtol=1e-5)
    # Otherwise a swap of any two would go unnoticed.
    assert len({round(float(v), 3) for v in want.values()}) == len(want)


def test_the_features_of_the_input_get_no_gradient(scene):
    _, _, batch = scene

    def perceptual_terms(image):
        terms = terms_of(Batch(image=image))[1]
        return terms["perceptual"] + terms["perceptual_flip"]

    np.testing.assert_array_equal(jax.grad(perceptual_terms)(batch.image), 0.0)
