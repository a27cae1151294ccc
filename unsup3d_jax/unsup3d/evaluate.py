"""How this method's outputs become scores, beside the baselines of Table 2.

Losses, factors and reconstructions of every image by itself; what scores and rows
are is said in `unsup3d_jax.evaluation`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.evaluation import appearance, confidence, masks, summary
from unsup3d_jax.evaluation.baselines import BASELINES, baseline_row
from unsup3d_jax.evaluation.scores import (
    ImageScores,
    Limits,
    collect,
    has_depth,
    score_depth,
)
from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import AnyArray, Batch, Factors, Reconstruction, Truth
from unsup3d_jax.unsup3d import model, watch
from unsup3d_jax.unsup3d.options import LossWeights, ModelOptions

# Baselines that need no training.
DESCRIPTIONS = BASELINES | {
    "untrained": "the model at initialisation, with whatever prior that holds",
}


def evaluate(
    params: dict,
    dataset: Dataset,
    options: ModelOptions,
    *,
    limits: Limits,
    constants: dict | None = None,
    weights: LossWeights | None = None,
    name: str = "ours",
    shared: Bool[AnyArray, "n h w"] | None = None,
) -> dict:
    """Scores a model on a data set: a row of `score_images`.

    Raises:
        ValueError: if the data set is empty or the oracle's truth is missing.
    """
    scores = score_images(
        params,
        dataset,
        options,
        limits=limits,
        constants=constants,
        weights=weights,
        name=name,
        shared=shared,
    )
    return row_of(name, scores)


def row_of(name: str, scores: ImageScores) -> dict:
    """A row, as of `summary.row_of`, of what a model scores."""
    return summary.row_of(name, scores, watch.statistics)


def score_images(
    params: dict,
    dataset: Dataset,
    options: ModelOptions,
    *,
    limits: Limits,
    constants: dict | None = None,
    weights: LossWeights | None = None,
    name: str = "ours",
    shared: Bool[AnyArray, "n h w"] | None = None,
) -> ImageScores:
    """Scores every image of a data set.

    Args:
        params: of `model.init_params`.
        dataset: of `data.load.load_split`.
        options: static options; oracle switches take effect here too.
        limits: how many images.
        constants: of `model.load_constants`. Without, perceptual terms are left
            out of the losses.
        weights: scheduled loss weights of the step; None: flip weight 1.
        name: of the row in a table.
        shared: see `scores.collect`.

    Raises:
        ValueError: if the data set is empty or the oracle's truth is missing.
    """
    constants = constants or {}
    if "vgg" not in constants:
        options = _without_perceptual(options)
    if weights is None:
        weights = LossWeights(flip=jnp.ones(()))

    def score(batch: Batch, truth: Truth, part: AnyArray | None) -> ImageScores:
        return _score_model(params, constants, batch, truth, part, weights, options)

    return collect(name, score, dataset, limits, shared=shared)


def baselines(
    dataset: Dataset,
    options: ModelOptions,
    *,
    names: Sequence[str],
    limits: Limits,
    initial_params: dict | None = None,
    shared: Bool[AnyArray, "n h w"] | None = None,
) -> list[dict]:
    """Scores the rows of Table 2 that need no training.

    Args:
        dataset: of `data.load.load_split`, with true depth.
        options: of the model; baselines use its camera.
        names: any of `DESCRIPTIONS`.
        limits: how many images.
        initial_params: parameters before training; needed for "untrained".
        shared: see `scores.collect`.

    Returns:
        Rows as of `evaluate`, in the order of `names`; none if the data set has no
        true depth, as there is nothing to compare.

    Raises:
        ValueError: if a name is unknown or "untrained" lacks `initial_params`.
    """
    if unknown := [name for name in names if name not in DESCRIPTIONS]:
        raise ValueError(f"baselines {unknown} are none of {', '.join(DESCRIPTIONS)}.")
    if "untrained" in names and initial_params is None:
        raise ValueError("the untrained baseline needs initial_params.")
    if not has_depth(dataset):
        return []
    rows = []
    for name in names:
        if name == "untrained" and initial_params is not None:
            row = evaluate(
                initial_params,
                dataset,
                options,
                limits=limits,
                name=name,
                shared=shared,
            )
            rows.append(row | {"description": DESCRIPTIONS[name]})
        else:
            rows.append(
                baseline_row(name, dataset, options.scene, limits, shared=shared)
            )
    return rows


def _without_perceptual(options: ModelOptions) -> ModelOptions:
    loss = dataclasses.replace(options.loss, perceptual=0.0)
    return dataclasses.replace(options, loss=loss)


def _score_model(
    params: dict,
    constants: dict,
    batch: Batch,
    truth: Truth,
    shared: Bool[AnyArray, "b h w"] | None,
    weights: LossWeights,
    options: ModelOptions,
) -> ImageScores:
    # The compiled forward pass is the same whatever else the data set knows.
    seen = Batch(image=batch.image)
    if options.oracle_view or options.oracle_light:
        seen = dataclasses.replace(seen, view=batch.view, light=batch.light)
    if options.supervised:
        seen = dataclasses.replace(seen, depth=batch.depth, mask=batch.mask)
    factors, reconstruction, losses, moments = _forward(
        params, constants, seen, weights, options
    )
    plain = reconstruction.plain
    scores = score_depth(
        plain.depth, plain.valid, batch, truth, shared, fov_deg=options.scene.fov_deg
    )
    scores = dataclasses.replace(scores, losses=losses)
    if options.supervised:  # which has neither a viewpoint nor a picture
        return scores
    return dataclasses.replace(
        scores,
        view=factors.view,
        true_view=batch.view,
        moments=moments,
        **_reconstruction_errors(reconstruction, batch.image),
        **_factor_scores(factors, reconstruction, batch, truth, options),
    )


@jax.jit
def _reconstruction_errors(
    reconstruction: Reconstruction, image: Float[Array, "b h w 3"]
) -> dict[str, Array]:
    errors = {}
    for key, warped in (
        ("recon_l1", reconstruction.plain),
        ("recon_l1_flip", reconstruction.flip),
    ):
        error = jnp.mean(jnp.abs(warped.image - image), axis=-1)
        errors[key] = jax.vmap(masks.masked_mean)(error, warped.valid)
    errors["valid_share"] = jnp.mean(reconstruction.plain.valid, axis=(1, 2))
    return errors


@functools.partial(jax.jit, static_argnames="options")
def _factor_scores(
    factors: Factors,
    reconstruction: Reconstruction,
    batch: Batch,
    truth: Truth,
    options: ModelOptions,
) -> dict[str, Array]:
    """Errors of albedo, light and confidence, as far as the truth is known."""
    plain, flip, scene = reconstruction.plain, reconstruction.flip, options.scene
    result: dict[str, Array] = {}
    # A predicted shading map leaves no light to compare.
    if batch.light is not None and options.factors.shading == "lambert":
        result["light_deg"], result["light_share"] = jax.vmap(appearance.light_errors)(
            factors.light, factors.view, batch.light
        )
    if truth.albedo is not None and batch.depth is not None:
        seen = reprojection.sample_canonical(
            factors.canon_albedo, plain.depth, factors.view, scene
        )
        scored = jax.vmap(masks.scored_mask)(
            plain.depth, batch.depth, plain.valid, masks.object_mask(batch)
        )
        result["albedo"] = jax.vmap(appearance.albedo_error)(seen, truth.albedo, scored)
    if factors.conf_sigma is None or factors.conf_sigma_flip is None:
        return result
    valid = plain.valid & flip.valid
    for name, sigma, warped in (
        ("reliability", factors.conf_sigma, plain),
        ("reliability_flip", factors.conf_sigma_flip, flip),
    ):
        residual = 2.0 * jnp.mean(jnp.abs(warped.image - batch.image), axis=-1)
        result[name] = jax.vmap(confidence.reliability_bins)(sigma, residual, valid)
    known = (truth.perturb, batch.depth, batch.view)
    if any(x is None for x in known):
        return result
    patch, depth, view = (jnp.asarray(x) for x in known)
    mirrored = jax.vmap(
        functools.partial(
            confidence.mirrored_mask,
            fov_deg=scene.fov_deg,
            centre_depth=scene.centre_depth,
        )
    )(patch, depth, view)
    pixels = valid & masks.object_mask(batch)
    area = jax.vmap(confidence.auroc)
    sigma = factors.conf_sigma_flip
    result["auroc_patch"], defined = area(sigma, patch, pixels)
    result["auroc_asymmetric"], both = area(sigma, patch | mirrored, pixels)
    result["auroc_defined"] = defined & both
    return result


@functools.partial(jax.jit, static_argnames="options")
def _forward(
    params: dict,
    constants: dict,
    batch: Batch,
    weights: LossWeights,
    options: ModelOptions,
) -> tuple[Factors, Reconstruction, dict[str, Array], dict[str, Array]]:
    """Factors, reconstruction, loss terms and moments of each image of a batch."""

    def one(single: Batch) -> tuple[Factors, Reconstruction, dict, dict]:
        # A batch of one: its loss terms are those of this image alone, so their
        # average does not depend on how images share batches or on padding.
        single = jax.tree.map(lambda a: a[None], single)
        outputs = model.objective(params, constants, single, weights, options)[1]
        factors, reconstruction = jax.tree.map(
            lambda a: a[0], (outputs.factors, outputs.reconstruction)
        )
        return factors, reconstruction, outputs.terms, watch.moments(outputs)

    return jax.vmap(one)(batch)
