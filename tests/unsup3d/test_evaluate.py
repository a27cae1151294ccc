"""Scores of a split: against the parts they are made of, and their file."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from unsup3d_jax.data.dataset import Dataset, Report
from unsup3d_jax.engine import log
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import metrics
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.unsup3d import evaluate, model
from unsup3d_jax.unsup3d.options import options_from_config

SIZE = 32
COUNT = 5
BATCH = 3  # one for all tests, to compile once; the last batch is padded


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


@pytest.fixture(scope="module")
def arrays():
    """Balls of different place, size and depth on a background at 1.1."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:SIZE, :SIZE]
    depth, mask = [], []
    for _ in range(COUNT):
        row, column, radius = (
            rng.uniform(13, 18),
            rng.uniform(13, 18),
            rng.uniform(9, 12),
        )
        height = 1 - ((v - row) ** 2 + (u - column) ** 2) / radius**2
        mask.append(height > 0)
        near = rng.uniform(0.02, 0.08)
        depth.append(
            np.where(mask[-1], 1.0 - near * np.sqrt(np.maximum(height, 0)), 1.1)
        )
    return {
        "image": rng.integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8),
        "depth": np.stack(depth).astype(np.float32),
        "mask": np.stack(mask),
        "view": rng.uniform(-0.5, 0.5, (COUNT, 6)).astype(np.float32),
        "light": np.tile(np.float32([0.5, 0.5, 0, 0, 1]), (COUNT, 1)),
    }


def dataset_of(arrays, **changes):
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    return Dataset(arrays, Report("balls", "test", "", len(arrays["image"])), "digest")


def images_of(arrays):
    return jnp.asarray(arrays["image"], jnp.float32) / 255.0


@pytest.fixture(scope="module")
def row(params, arrays, options):
    return evaluate.evaluate(params, dataset_of(arrays), options, batch_size=BATCH)


def test_row_is_the_mean_of_what_single_images_score(row, outputs, arrays):
    plain = outputs[1]
    scores = [
        metrics.depth_scores(
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
    other = evaluate.evaluate(params, backwards, options, batch_size=BATCH)
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
    got = evaluate.evaluate(
        params, dataset_of(arrays, **truth), options, batch_size=BATCH
    )
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
    evaluate.evaluate(params, data, options, batch_size=BATCH)
    assert all(batch.view is None and batch.light is None for batch in seen)
    oracle = dataclasses.replace(options, oracle_view=True)
    evaluate.evaluate(params, data, oracle, batch_size=BATCH)
    np.testing.assert_array_equal(seen[2].view, arrays["view"][:BATCH])


def test_image_with_empty_mask_is_left_out_and_counted(params, arrays, options):
    mask = arrays["mask"].copy()
    mask[1] = False
    got = evaluate.evaluate(
        params, dataset_of(arrays, mask=mask), options, batch_size=BATCH
    )
    rest = np.delete(np.arange(COUNT), 1)
    without = dataset_of({k: v[rest] for k, v in arrays.items()})
    expected = evaluate.evaluate(params, without, options, batch_size=BATCH)
    assert (got["images"], got["scored_images"]) == (COUNT, COUNT - 1)
    np.testing.assert_allclose(got["side"]["mean"], expected["side"]["mean"], rtol=1e-3)
    assert f"{COUNT - 1} of {COUNT}" in evaluate.format_table([got])


def test_without_true_depth_there_are_only_reconstruction_errors(
    params, arrays, options
):
    photos = dataset_of({"image": arrays["image"]})
    got = evaluate.evaluate(params, photos, options, batch_size=BATCH)
    assert not got["ground_truth"] and "no true depth" in got["note"]
    assert "side" not in got and "view" not in got and got["recon_l1"]["mean"] > 0
    assert "No true depth" in evaluate.format_table([got])
    assert evaluate.baselines(photos, options, names=("constant",)) == []


def test_max_images_takes_the_first(params, arrays, options):
    got = evaluate.evaluate(
        params, dataset_of(arrays), options, batch_size=BATCH, max_images=3
    )
    first = dataset_of({k: v[:3] for k, v in arrays.items()})
    expected = evaluate.evaluate(params, first, options, batch_size=BATCH)
    assert got["images"] == 3
    np.testing.assert_allclose(got["side"]["mean"], expected["side"]["mean"], rtol=1e-3)


def test_constant_baseline_is_the_spread_of_the_true_log_depth(arrays, options):
    (got,) = evaluate.baselines(dataset_of(arrays), options, names=("constant",))
    expected = []
    for depth, mask in zip(arrays["depth"], arrays["mask"], strict=True):
        scored = np.asarray(metrics.erode(jnp.asarray(mask)))
        expected.append(np.log(depth[scored]).std())
    np.testing.assert_allclose(got["side"]["mean"], np.mean(expected), rtol=1e-3)
    assert got["name"] == "constant" and "view" not in got


def test_average_depth_is_taken_on_the_object_only(arrays):
    got = np.asarray(evaluate.average_depth(dataset_of(arrays), batch_size=2))
    depth, mask = arrays["depth"], arrays["mask"]
    count = mask.sum(0)
    expected = (depth * mask).sum(0) / np.maximum(count, 1)
    np.testing.assert_allclose(got[count > 0], expected[count > 0], rtol=1e-6)
    # The background (1.1) never enters, and what no mask holds is continued.
    assert got.max() <= expected[count > 0].max() + 1e-6 and got.min() > 0.9


def test_average_with_background_is_the_plain_mean(arrays):
    got = evaluate.average_depth(dataset_of(arrays), on_object=False)
    np.testing.assert_allclose(got, arrays["depth"].mean(0), rtol=1e-6)


def test_unknown_baseline_is_an_error(arrays, options):
    with pytest.raises(ValueError, match="oracle"):
        evaluate.baselines(dataset_of(arrays), options, names=("oracle",))


def test_average_beats_constant_and_untrained_is_the_model(
    row, params, arrays, options
):
    constant, average, untrained = evaluate.baselines(
        dataset_of(arrays), options, initial_params=params, batch_size=BATCH
    )
    assert average["side"]["mean"] < constant["side"]["mean"]
    assert average["mad_deg"]["mean"] < constant["mad_deg"]["mean"]
    assert untrained["name"] == "untrained"
    np.testing.assert_allclose(
        untrained["side"]["mean"], row["side"]["mean"], rtol=1e-5
    )
    with pytest.raises(ValueError, match="initial_params"):
        evaluate.baselines(dataset_of(arrays), options, names=("untrained",))


def test_supervised_model_is_scored_in_the_input_view(arrays, options):
    options = dataclasses.replace(options, supervised=True)
    params = random_params(options)
    got = evaluate.evaluate(params, dataset_of(arrays), options, batch_size=BATCH)
    assert "view" not in got and "recon_l1" not in got
    decompose = jax.jit(model.decompose, static_argnames="options")
    depth = decompose(params, images_of(arrays), options=options).canon_depth
    expected = [
        metrics.depth_scores(
            depth[i],
            arrays["depth"][i],
            jnp.ones((SIZE, SIZE), bool),
            arrays["mask"][i],
            fov_deg=10.0,
        ).side
        for i in range(COUNT)
    ]
    np.testing.assert_allclose(got["side"]["mean"], np.mean(expected), rtol=1e-3)


def test_mask_defaults_to_what_is_nearer_than_the_background(arrays, options):
    given, found = (
        evaluate.baselines(data, options, names=("constant",))[0]
        for data in (dataset_of(arrays), dataset_of(arrays, mask=None))
    )
    assert given["side"] == found["side"] and given["coverage"] == found["coverage"]


def test_table_prints_the_papers_units(row):
    text = evaluate.format_table([row, {**row, "name": "other"}])
    lines = text.splitlines()
    assert len(lines) == 4 and "SIDE x10^-2" in lines[0] and "MAD deg" in lines[0]
    assert (
        f"{100 * row['side']['mean']:.3f} ± {100 * row['side']['std']:.3f}" in lines[2]
    )
    assert len({len(line) for line in lines}) == 1  # aligned
    assert evaluate.scalars(row)["side_x100"] == 100 * row["side"]["mean"]
    assert evaluate.scalars(row)["yaw_slope"] == row["view"]["yaw"]["slope"]


def test_file_holds_scores_rules_and_baselines(tmp_path, row):
    broken = {**row, "name": "broken", "extra": float("nan")}
    arguments = {"baseline_rows": [broken], "step": 7, "crop": (170,)}
    path = evaluate.write_scores(tmp_path, "test", row, **arguments)
    path = evaluate.write_scores(tmp_path, "test", row, **arguments)  # replaces
    assert path == tmp_path / "eval" / "test.json"
    assert [p.name for p in path.parent.iterdir()] == ["test.json"]
    content = json.loads(path.read_text())
    assert content["side"] == row["side"] and content["images"] == COUNT
    assert content["checkpoint_step"] == 7 and content["crop"] == [170]
    assert "eroded" in content["rules"]["mask"]
    assert content["baselines"]["broken"]["extra"] is None


def test_interrupted_writing_leaves_the_old_file(tmp_path, row, monkeypatch):
    path = evaluate.write_scores(tmp_path, "val", row, step=1)
    before = path.read_text()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(log.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate.write_scores(tmp_path, "val", row, step=2)
    assert path.read_text() == before
    monkeypatch.undo()
    evaluate.write_scores(tmp_path, "val", row, step=2)
    assert [p.name for p in path.parent.iterdir()] == ["val.json"]


def test_scores_that_cannot_be_written_are_one_line(tmp_path, row, monkeypatch):
    (tmp_path / "eval").write_text("in the way")
    with pytest.raises(UserError, match=r"test\.json: File exists \(.*eval\)"):
        evaluate.write_scores(tmp_path, "test", row, step=1)
    (tmp_path / "eval").unlink()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.os, "fsync", full)
    with pytest.raises(UserError, match=r"test\.json: No space left on device\. The"):
        evaluate.write_scores(tmp_path, "test", row, step=1)


def test_empty_data_set_is_an_error(params, arrays, options):
    empty = dataset_of({k: v[:0] for k, v in arrays.items()})
    with pytest.raises(ValueError, match="no images"):
        evaluate.evaluate(params, empty, options)
