"""What eval/<split>.json says beyond depth, where the truth is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balls import dataset_of
from test_evaluate import COUNT, LIMITS, SIZE, images_of, random_params

from configs import default
from unsup3d_jax.evaluation import appearance, confidence, masks, report
from unsup3d_jax.evaluation.keypoints import depth_at, keypoint_depth_correlation
from unsup3d_jax.evaluation.viewpoint import viewpoint_errors
from unsup3d_jax.formation import reprojection
from unsup3d_jax.formation.types import Batch, Truth
from unsup3d_jax.unsup3d import evaluate
from unsup3d_jax.unsup3d.options import LossWeights, options_from_config

pytestmark = pytest.mark.once  # a model of its own is compiled


@pytest.fixture(scope="module")
def options():
    config = default.get_config()
    config.data.image_size = SIZE
    config.model.width = config.model.encoder_width = 16
    config.model.bottleneck = config.model.confidence_bottleneck = 16
    config.loss.perceptual = 0.0
    config.depth.bump_height = 0.8
    config.raster.supersample = 1
    return options_from_config(config)


@pytest.fixture(scope="module")
def arrays():
    """A ball before a background, with every truth that open faces have."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:SIZE, :SIZE]
    height = 1 - ((v - 15.5) ** 2 + (u - 15.5) ** 2) / 11.0**2
    near = rng.uniform(0.02, 0.08, (COUNT, 1, 1))
    depth = np.where(height > 0, 1.0 - near * np.sqrt(np.maximum(height, 0)), 1.1)
    perturb = np.zeros((COUNT, SIZE, SIZE), bool)
    perturb[1:, 8:20, 16:24] = True  # the first image has no patch
    keypoints = np.concatenate(
        [rng.uniform(8, 23, (COUNT, 6, 2)), rng.uniform(0.9, 1.0, (COUNT, 6, 1))], -1
    )
    light = rng.uniform(0.2, 0.8, (COUNT, 5))
    view = rng.uniform(-0.5, 0.5, (COUNT, 6))
    view[:, 3:] *= 0.01
    light[:, 2:] /= np.linalg.norm(light[:, 2:], axis=1, keepdims=True)
    return {
        "image": rng.integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8),
        "depth": depth.astype(np.float32),
        "mask": np.broadcast_to(height > 0, depth.shape).copy(),
        "view": view.astype(np.float32),
        "light": light.astype(np.float32),
        "albedo": rng.integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8),
        "perturb": perturb,
        "keypoints": keypoints.astype(np.float32),
    }


@pytest.fixture(scope="module")
def params(options):
    return random_params(options)


@pytest.fixture(scope="module")
def row(params, arrays, options):
    return evaluate.evaluate(params, dataset_of(arrays), options, limits=LIMITS)


@pytest.fixture(scope="module")
def outputs(params, arrays, options):
    """Factors, reconstruction, and the albedo as the camera sees it."""
    weights = LossWeights(flip=jnp.ones(()))
    images, parts = images_of(arrays), []
    for rows in ([0, 1, 2], [3, 4, 4]):  # the program that `row` has compiled
        batch = Batch(image=images[np.array(rows)])
        parts.append(evaluate._forward(params, {}, batch, weights, options)[:2])
    factors, reconstruction = jax.tree.map(
        lambda *x: jnp.concatenate(x)[:COUNT], *parts
    )
    sample = jax.jit(reprojection.sample_canonical, static_argnums=3)
    seen = sample(
        factors.canon_albedo, reconstruction.plain.depth, factors.view, options.scene
    )
    return factors, reconstruction, seen


def test_every_measure_is_that_of_its_function(row, outputs, arrays):
    factors, reconstruction, seen = outputs
    plain, flip = reconstruction.plain, reconstruction.flip
    # One program each: op by op they would compile for long.
    light_errors, scored_mask, albedo_error, reliability_bins, auroc_of = map(
        jax.jit,
        (
            appearance.light_errors,
            masks.scored_mask,
            appearance.albedo_error,
            confidence.reliability_bins,
            confidence.auroc,
        ),
    )
    errors = jax.jit(viewpoint_errors)(factors.view, jnp.asarray(arrays["view"]))
    np.testing.assert_allclose(
        row["viewpoint"]["error_deg"]["mean"], errors.error_deg.mean(), rtol=1e-3
    )
    angles, shares, albedos, bins, areas = [], [], [], 0, []
    for i in range(COUNT):
        angle, share = light_errors(
            factors.light[i], factors.view[i], arrays["light"][i]
        )
        angles.append(angle)
        shares.append(share)
        depth, mask = arrays["depth"][i], arrays["mask"][i]
        scored = scored_mask(plain.depth[i], depth, plain.valid[i], mask)
        albedos.append(albedo_error(seen[i], arrays["albedo"][i] / 255.0, scored))
        valid = plain.valid[i] & flip.valid[i]
        residual = 2 * np.abs(flip.image[i] - images_of(arrays)[i]).mean(-1)
        sigma = factors.conf_sigma_flip[i]
        bins = bins + np.asarray(reliability_bins(sigma, residual, valid))
        if i > 0:
            area, _ = auroc_of(sigma, arrays["perturb"][i], valid & mask)
            areas.append(area)
    light, auroc = row["light"], row["auroc"]
    np.testing.assert_allclose(
        light["direction_deg"]["mean"], np.mean(angles), rtol=1e-3
    )
    np.testing.assert_allclose(
        light["diffuse_share"]["mean"], np.mean(shares), rtol=1e-3
    )
    np.testing.assert_allclose(row["albedo"]["mean"], np.mean(albedos), rtol=1e-3)
    expected = confidence.reliability_curve(bins)
    np.testing.assert_allclose(
        row["confidence"]["flip"]["calibration_error"],
        expected["calibration_error"],
        rtol=1e-3,
    )
    assert auroc["patch"]["n"] == COUNT - 1  # the first image has no patch
    np.testing.assert_allclose(auroc["patch"]["mean"], np.mean(areas), rtol=1e-3)
    assert auroc["asymmetric"]["mean"] != auroc["patch"]["mean"]


def test_keypoints_are_read_off_the_reconstruction(row, outputs, arrays, options):
    plain = outputs[1].plain
    depth = [
        depth_at(plain.depth[i], plain.valid[i], arrays["keypoints"][i, :, :2])
        for i in range(COUNT)
    ]
    expected = keypoint_depth_correlation(np.stack(depth), arrays["keypoints"][..., 2])
    got = row["keypoint_depth"]
    np.testing.assert_allclose(got["sum"], expected["sum"], rtol=1e-2, atol=1e-3)
    assert got["images"] == COUNT and got["keypoints"] == 6
    plane = evaluate.baselines(
        dataset_of(arrays), options, names=("constant",), limits=LIMITS
    )[0]
    assert plane["keypoint_depth"]["sum"] == 0.0 and "light" not in plane


def test_shape_statistics_are_over_all_images(row, outputs):
    factors = outputs[0]
    np.testing.assert_allclose(
        row["shape"]["depth_std"], factors.raw_depth.std((1, 2)).mean(), rtol=1e-3
    )
    yaw = np.degrees(factors.view[:, 1].std())
    np.testing.assert_allclose(row["shape"]["view_std_y_deg"], yaw, rtol=1e-2)


def test_what_is_not_known_is_left_out(params, arrays, options):
    photos = dataset_of({k: arrays[k] for k in ("image", "depth", "mask")})
    got = evaluate.evaluate(params, photos, options, limits=LIMITS)
    assert not {"viewpoint", "light", "albedo", "auroc", "keypoint_depth"} & set(got)
    assert "confidence" in got and "shape" in got and "side" in got


def test_every_measure_has_its_rule(tmp_path, row):
    made = report.Provenance("test", "balls", (8, 14, 100, 90), 1, {})
    path = report.write_scores(tmp_path, row, made)
    content = json.loads(path.read_text())
    for name in ("viewpoint", "albedo", "light", "confidence", "auroc", "shape"):
        assert name in content and name in content["rules"]
    assert "keypoint_depth" in content["rules"]


def test_a_shading_map_has_no_light_to_score(outputs, arrays, options):
    factors, reconstruction, _ = outputs
    depth, light = jnp.asarray(arrays["depth"]), jnp.asarray(arrays["light"])
    batch = Batch(image=images_of(arrays), depth=depth, light=light)
    mapped = dataclasses.replace(
        options, factors=dataclasses.replace(options.factors, shading="map")
    )

    def scored(options):
        truth = Truth(albedo=images_of(arrays))
        return jax.eval_shape(  # which measures there are, without computing them
            lambda: evaluate._factor_scores(
                factors, reconstruction, batch, truth, options
            )
        )

    gone = scored(options).keys() - scored(mapped).keys()
    assert gone == {"light_deg", "light_share"} and "albedo" in scored(mapped)
