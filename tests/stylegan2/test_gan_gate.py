"""The gate's measures on sets whose answers are known."""

import gan_toy
import numpy as np
import pytest

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.nets import stylegan2 as nets
from unsup3d_jax.stylegan2 import frechet, gate, neighbours, panel, ruler, score

pytestmark = pytest.mark.once


def _normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# --- ruler ----------------------------------------------------------------------------


def test_ridge_regression_is_least_squares_where_nothing_is_noise():
    x, slope = _normals(0, 200, 6), _normals(1, 6, 2)
    model = ruler.fit(x, x @ slope + 3.0)
    new = _normals(2, 50, 6)
    np.testing.assert_allclose(model(new), new @ slope + 3.0, atol=1e-3)
    assert (ruler.r2(model(new), new @ slope + 3.0) > 0.9999).all()


def test_ridge_regression_by_its_normal_equations():
    x, y = _normals(3, 40, 5), _normals(4, 40, 1)
    (model,) = ruler._ridge(x, y, np.array([0.1]))
    centred = x - x.mean(0)
    gram = centred.T @ centred
    weight = 0.1 * np.trace(gram) / 5 * np.eye(5)
    expected = np.linalg.solve(gram + weight, centred.T @ (y - y.mean(0)))
    np.testing.assert_allclose(model.slope, expected, rtol=1e-9)


def test_the_penalty_is_chosen_by_examples_that_were_not_fitted():
    """More pixels than faces: least squares would fit noise."""
    x = _normals(5, 40, 80)
    y = x[:, :1] + _normals(6, 40, 1)
    assert ruler.fit(x, y).penalty > 1e-3


def test_r2_is_0_for_the_mean_and_1_for_the_truth():
    y = _normals(7, 30, 2)
    mean = np.broadcast_to(y.mean(0), y.shape)
    np.testing.assert_allclose(ruler.r2(mean, y), 0.0, atol=1e-12)
    np.testing.assert_allclose(ruler.r2(y, y), 1.0)


def test_readings_that_are_linear_in_w_are_found_and_others_are_not():
    w = _normals(8, 400, 4)
    readings = np.column_stack([w[:, 0], np.square(w[:, 1]), _normals(9, 400)])
    straight, square, noise = ruler.linear_in(w, readings)
    assert straight > 0.999 and square < 0.3 and noise < 0.1


def test_pixels_are_means_of_cells_and_truth_is_in_degrees():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, :2, 2:4, 1] = 255
    small = ruler.pixels(images).reshape(16, 16, 3)
    assert small[0, 1, 1] == 1.0 and small.sum() == 1.0
    view = np.array([[0.1, 0.2, 0.3, 9.0, 9.0, 9.0]])
    light = np.array([[0.5, 0.5, 0.6, -0.1, 0.7]])
    expected = [[*np.degrees([0.2, 0.1, 0.3]), 0.6, -0.1]]
    np.testing.assert_allclose(ruler.truth(view, light), expected)


# --- distance, copies -----------------------------------------------------------------


def test_the_frechet_distance_of_normals_is_the_formula_of_their_moments():
    first, second = _normals(0, 4000, 3), 2.0 * _normals(1, 4000, 3) + [1.0, 0.0, 0.0]
    found = frechet.distance(first, second, np.ones(3))
    assert abs(found - (1.0 + 3 * (2.0 - 1.0) ** 2)) < 0.25
    assert abs(frechet.distance(first, first, np.ones(3))) < 1e-9
    halved = frechet.distance(first, second, np.full(3, 2.0))
    np.testing.assert_allclose(halved, found / 4.0, rtol=1e-9)


def test_features_tell_sets_apart_and_never_change():
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    found = frechet.features(images)
    assert found.shape == (8, 16 + 32 + 4 * 48)
    kernels = frechet.weights()
    np.testing.assert_allclose(
        [k.ravel()[0] for k in kernels], FIRST_WEIGHTS, rtol=1e-6
    )
    # By hand, of the first layer: a stride of 2, zeros around.
    signed = np.pad(images[0] / 127.5 - 1.0, [(1, 1), (1, 1), (0, 0)])
    cells = np.lib.stride_tricks.sliding_window_view(signed, (3, 3), (0, 1))[::2, ::2]
    first = np.maximum(np.einsum("hwcij,ijco->hwo", cells, kernels[0]), 0.0)
    np.testing.assert_allclose(found[0, :16], first.mean((0, 1)), rtol=1e-4)


FIRST_WEIGHTS = (-0.1972421109676361, -0.0005683662602677941, 0.15711286664009094)


def test_copies_are_found_and_mirrored_ones_too():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (300, 8, 8, 3), np.uint8)
    new = rng.integers(0, 256, (100, 8, 8, 3), np.uint8)
    copies = np.concatenate([training[:50], training[50:100, :, ::-1]])
    apart, same = (
        neighbours.nearest(new, training),
        neighbours.nearest(copies, training),
    )
    assert same.max() < 1e-2 < apart.min()
    by_hand = np.square(new[:1] / 127.5 - training / 127.5).mean((1, 2, 3)).min()
    mirrored = np.square(new[:1, :, ::-1] / 127.5 - training / 127.5)
    mirrored = mirrored.mean((1, 2, 3)).min()
    expected = np.sqrt(min(by_hand, mirrored))
    np.testing.assert_allclose(apart[0], expected, rtol=1e-3)
    assert neighbours.memory(same, apart)["copies"] == 1.0
    assert neighbours.memory(apart, apart)["copies"] == pytest.approx(0.01, abs=0.01)


# --- all of it ------------------------------------------------------------------------

OPTIONS = nets.GanOptions(16, (4, 4, 4), style=4, mapping_layers=2, noise=False)


@pytest.fixture(scope="module")
def judged():
    import jax

    config = gan_toy.config(data__image_size=16, gan__channels=(4, 4, 4))
    config.data.name = "open_faces"
    rng = np.random.default_rng(0)

    def splits(split):
        light = rng.uniform(-1, 1, (40, 5))
        images = 128 + 100 * light[:, None, None, 2:5] * np.ones((40, 16, 16, 1))
        arrays = {"image": images.astype(np.uint8), "light": light,
                  "view": rng.normal(size=(40, 6))}  # fmt: skip
        return ds.Dataset(arrays, ds.Report("open_faces", split, "", 40), split)

    judge = gate.judge_of(config, splits)
    parts = {"ema": nets.init_generator(jax.random.key(0), OPTIONS)}
    return judge, parts


def test_a_generator_is_judged_and_an_untrained_one_does_not_pass(judged):
    judge, parts = judged
    assert judge.line_r2[3] > 0.99 and judge.line_r2[4] > 0.99  # light is the colour
    found = gate.whole(parts, judge, OPTIONS, count=64)
    assert found["passes"] is False
    assert found["frechet"]["samples"] > 2.0 * found["frechet"]["real"]
    assert set(found["spread"]) == set(ruler.NAMES)
    text = score.format_table(found)
    assert "not passed" in text and "light_x" in text
    line = gate.validation(parts, judge, OPTIONS)
    assert line["total"] > 0 and "spread_yaw" in line and "r2_light_x" in line


def test_the_gate_is_passed_by_yaw_and_light_from_the_side():
    def found(yaw, light, other):
        spread = {"yaw": yaw, "light_x": light, "pitch": other}
        return {"spread": spread, "linear_r2": spread}

    assert gate.passes(found(0.8, 0.9, 0.1))
    assert not gate.passes(found(0.79, 0.9, 0.9))
    assert gate.passes({"frechet": {}}) is None


def test_a_grid_is_filled_row_by_row():
    images = np.arange(5, dtype=np.float32)[:, None, None, None] / 5.0
    picture = panel.grid(np.broadcast_to(images, (5, 2, 2, 3)))
    assert picture.shape == (4, 6, 3)
    np.testing.assert_array_equal(picture[::2, ::2, 0], [[0, 51, 102], [153, 204, 0]])
