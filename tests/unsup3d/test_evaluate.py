"""Scores of a split: against the parts they are made of, and their file."""

import dataclasses
import functools

import balls
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balls import dataset_of

from configs import default
from unsup3d_jax.evaluation import report
from unsup3d_jax.evaluation.depth import depth_scores
from unsup3d_jax.evaluation.scores import Limits
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d import evaluate, model
from unsup3d_jax.unsup3d.options import options_from_config

pytestmark = pytest.mark.once

SIZE = 32
COUNT = 5
BATCH = 3  # one for all tests, to compile once; the last batch is padded
LIMITS = Limits(BATCH, max_images=0)

baselines = functools.partial(evaluate.baselines, limits=LIMITS)


@pytest.fixture(scope="module")
def options():
    config = default.get_config()
    config.data.image_size = SIZE
    config.model.width = 16
    config.model.encoder_width = 16
    config.model.bottleneck = config.model.confidence_bottleneck = 16
    config.model.use_confidence = False  # less to compile
    config.loss.perceptual = 0.0
    config.depth.bump_height = 0.8
    config.raster.supersample = 1
    return options_from_config(config)


def random_params(options):
    """Like `model.init_params`, whose jitted random numbers compile for long."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, 1 / np.sqrt(fan_in), leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key == "scale", np.float32)

    shapes = jax.eval_shape(lambda k: model.init_params(k, options), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def params(options):
    return random_params(options)


@pytest.fixture(scope="module")
def outputs(params, arrays, options):
    """Factors and reconstruction of all images, without `evaluate`."""

    @jax.jit
    def run(params, images):
        factors = model.decompose(params, images, options)
        return factors, model.reconstruct(factors, options).plain

    return run(params, images_of(arrays))


def images_of(arrays):
    return jnp.asarray(arrays["image"], jnp.float32) / 255.0


@pytest.fixture(scope="module")
def arrays():
    return balls.make(COUNT, SIZE)


@pytest.fixture(scope="module")
def row(params, arrays, options):
    return evaluate.evaluate(params, dataset_of(arrays), options, limits=LIMITS)


def test_row_is_the_mean_of_what_single_images_score(row, outputs, arrays):
    plain = outputs[1]
    scores = [
        depth_scores(
            plain.depth[i],
            arrays["depth"][i],
            plain.valid[i],
            arrays["mask"][i],
            fov_deg=10.0,
        )
        for i in range(COUNT)
    ]
    for key in ("side", "mad_deg", "mad_authors_deg", "mae", "coverage"):
        values = np.array([getattr(s, key) for s in scores])
        np.testing.assert_allclose(row[key]["mean"], values.mean(), rtol=1e-3)
        np.testing.assert_allclose(row[key]["std"], values.std(ddof=1), rtol=5e-3)
        assert row[key]["n"] == COUNT
    values = np.array([s.pearson for s in scores])
    np.testing.assert_allclose(row["depth_pearson"]["mean"], values.mean(), atol=1e-4)
    error = np.abs(plain.image - images_of(arrays)).mean(-1)
    expected = [error[i][np.asarray(plain.valid[i])].mean() for i in range(COUNT)]
    np.testing.assert_allclose(row["recon_l1"]["mean"], np.mean(expected), rtol=1e-4)
    assert row["images"] == row["scored_images"] == COUNT and row["ground_truth"]


def test_view_statistics_belong_to_their_angles(row, outputs, arrays):
    view = np.asarray(outputs[0].view)
    for axis, angle in enumerate(("pitch", "yaw", "roll")):
        truth = arrays["view"][:, axis]
        expected = np.corrcoef(view[:, axis], truth)[0, 1]
        np.testing.assert_allclose(row["view"][angle]["pearson"], expected, atol=1e-3)
        slope = np.polyfit(truth, view[:, axis], 1)[0]
        np.testing.assert_allclose(row["view"][angle]["slope"], slope, atol=1e-3)


def test_scores_do_not_depend_on_which_images_share_a_batch(
    row, params, arrays, options
):
    backwards = dataset_of({k: v[::-1] for k, v in arrays.items()})
    other = evaluate.evaluate(params, backwards, options, limits=LIMITS)
    flat, _ = jax.tree.flatten(row)
    for a, b in zip(flat, jax.tree.leaves(other), strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)


def test_model_scored_on_its_own_reconstructions_is_perfect(
    outputs, params, arrays, options
):
    factors, plain = outputs
    view = np.array(factors.view) * [1, 1, -1, 1, 1, 1]
    truth = {
        "depth": np.asarray(plain.depth),
        "mask": np.asarray(plain.valid),
        "view": view.astype(np.float32),
    }
    got = evaluate.evaluate(params, dataset_of(arrays, **truth), options, limits=LIMITS)
    assert got["side"]["mean"] < 1e-5 and got["mad_deg"]["mean"] < 0.05
    slopes = [got["view"][angle]["slope"] for angle in ("pitch", "yaw", "roll")]
    np.testing.assert_allclose(slopes, [1.0, 1.0, -1.0], rtol=1e-2)


def test_the_model_sees_the_true_view_only_if_it_is_an_oracle(
    params, arrays, options, monkeypatch
):
    forward, seen = evaluate._forward, []

    def spy(params, constants, batch, weights, _options):
        seen.append(batch)
        return forward(params, constants, Batch(batch.image), weights, options)

    monkeypatch.setattr(evaluate, "_forward", spy)
    data = dataset_of(arrays)
    evaluate.evaluate(params, data, options, limits=LIMITS)
    assert all(batch.view is None and batch.light is None for batch in seen)
    oracle = dataclasses.replace(options, oracle_view=True)
    evaluate.evaluate(params, data, oracle, limits=LIMITS)
    np.testing.assert_array_equal(seen[2].view, arrays["view"][:BATCH])


@pytest.mark.once
def test_image_with_empty_mask_is_left_out_and_counted(params, arrays, options):
    mask = arrays["mask"].copy()
    mask[1] = False
    got = evaluate.evaluate(
        params, dataset_of(arrays, mask=mask), options, limits=LIMITS
    )
    rest = np.delete(np.arange(COUNT), 1)
    without = dataset_of({k: v[rest] for k, v in arrays.items()})
    expected = evaluate.evaluate(params, without, options, limits=LIMITS)
    assert (got["images"], got["scored_images"]) == (COUNT, COUNT - 1)
    np.testing.assert_allclose(got["side"]["mean"], expected["side"]["mean"], rtol=1e-3)
    assert f"{COUNT - 1} of {COUNT}" in report.format_table([got])


def test_without_true_depth_there_are_only_reconstruction_errors(
    params, arrays, options
):
    photos = dataset_of({"image": arrays["image"]})
    got = evaluate.evaluate(params, photos, options, limits=LIMITS)
    assert not got["ground_truth"] and "no true depth" in got["note"]
    assert "side" not in got and "view" not in got and got["recon_l1"]["mean"] > 0
    text = report.format_table([got])
    assert "No true depth" in text and " - " not in text
    hollow, spread = (
        f"{got['shape'][k]:.{n}f}"
        for k, n in (("hollow_share", 3), ("view_std_y_deg", 2))
    )
    assert hollow in text and spread in text
    assert baselines(photos, options, names=("constant",)) == []


@pytest.mark.once
def test_max_images_takes_the_first(params, arrays, options):
    got = evaluate.evaluate(
        params, dataset_of(arrays), options, limits=Limits(BATCH, 3)
    )
    first = dataset_of({k: v[:3] for k, v in arrays.items()})
    expected = evaluate.evaluate(params, first, options, limits=LIMITS)
    assert got["images"] == 3
    np.testing.assert_allclose(got["side"]["mean"], expected["side"]["mean"], rtol=1e-3)


def test_unknown_baseline_is_an_error(arrays, options):
    with pytest.raises(ValueError, match="oracle"):
        evaluate.baselines(
            dataset_of(arrays), options, names=("oracle",), limits=LIMITS
        )


def test_average_beats_constant_and_untrained_is_the_model(
    row, params, arrays, options
):
    constant, average, untrained = baselines(
        dataset_of(arrays),
        options,
        names=("constant", "average", "untrained"),
        initial_params=params,
    )
    assert average["side"]["mean"] < constant["side"]["mean"]
    assert average["mad_deg"]["mean"] < constant["mad_deg"]["mean"]
    assert untrained["name"] == "untrained"
    np.testing.assert_allclose(
        untrained["side"]["mean"], row["side"]["mean"], rtol=1e-5
    )
    with pytest.raises(ValueError, match="initial_params"):
        evaluate.baselines(
            dataset_of(arrays), options, names=("untrained",), limits=LIMITS
        )


def test_baselines_are_scored_on_the_pixels_of_the_model(row, params, arrays, options):
    data = dataset_of(arrays)
    scores = evaluate.score_images(params, data, options, limits=LIMITS)
    assert evaluate.row_of("ours", scores) == row
    names, others = ("constant", "untrained"), {"initial_params": params}
    constant, same = baselines(
        data, options, names=names, shared=scores.usable, **others
    )
    # The plane covers all pixels, so it is scored on the model's, no more, no fewer.
    assert constant["shared_pixels"]["coverage"] == row["coverage"]
    assert same["shared_pixels"]["side"] == same["side"] == row["side"]
    left = scores.usable & (np.arange(SIZE) < SIZE // 2)
    found = baselines(data, options, names=names, shared=left, **others)
    for one, before in zip(found, (constant, same), strict=True):
        assert one["side"] == before["side"]
        share = one["shared_pixels"]["coverage"]["mean"] / one["coverage"]["mean"]
        assert 0.3 < share < 0.7


@pytest.mark.once
def test_supervised_model_is_scored_in_the_input_view(arrays, options):
    options = dataclasses.replace(options, supervised=True)
    params = random_params(options)
    got = evaluate.evaluate(params, dataset_of(arrays), options, limits=LIMITS)
    assert "view" not in got and "recon_l1" not in got
    decompose = jax.jit(model.decompose, static_argnames="options")
    depth = decompose(params, images_of(arrays), options=options).canon_depth
    expected = [
        depth_scores(
            depth[i],
            arrays["depth"][i],
            jnp.ones((SIZE, SIZE), bool),
            arrays["mask"][i],
            fov_deg=10.0,
        ).side
        for i in range(COUNT)
    ]
    np.testing.assert_allclose(got["side"]["mean"], np.mean(expected), rtol=1e-3)


def test_empty_data_set_is_an_error(params, arrays, options):
    empty = dataset_of({k: v[:0] for k, v in arrays.items()})
    with pytest.raises(ValueError, match="no images"):
        evaluate.evaluate(params, empty, options, limits=LIMITS)
