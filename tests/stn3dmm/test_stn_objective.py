"""What a step of the localiser minimises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_people

from unsup3d_jax.data.batches import to_batch
from unsup3d_jax.stn3dmm import localiser, watch
from unsup3d_jax.stn3dmm import objective as objectives
from unsup3d_jax.stn3dmm.options import load_face, options_from_config

pytestmark = pytest.mark.once

EVERY = {
    "loss__symmetry": 0.1,
    "loss__multi_view": 0.2,
    "loss__identity": 0.5,
    "loss__theta": 0.01,
    "loss__vertices": 0.3,
}
FIELDS = ("image", "keypoints", "latent")


@pytest.fixture(scope="module")
def setup():
    """options, grid, parameters that find something, batch of four people."""
    config = stn_people.config(**EVERY)
    face = load_face(config)
    options = options_from_config(config, face)
    key = jax.random.key(0, impl="rbg")  # which compiles in no time
    params = localiser.init_params(key, options.localiser, 32)
    params = jax.tree.map(lambda p: p + 0.02 * jnp.sin(jnp.arange(p.size)).reshape(
        p.shape), params)  # fmt: skip
    people = stn_people.dataset(config, count=4)
    batch = to_batch({name: jnp.asarray(people.arrays[name]) for name in FIELDS})
    grid = jax.tree.map(jnp.asarray, face.grid)
    return options, grid, params, batch


def run(setup, **changes):
    options, grid, params, batch = setup
    loss = dataclasses.replace(options.loss, **changes)
    options = dataclasses.replace(options, loss=loss)
    return jax.jit(objectives.objective, static_argnums=3)(params, grid, batch, options)


@pytest.fixture(scope="module")
def everything(setup):
    return run(setup)


@pytest.mark.once
def test_the_total_is_the_weighted_sum_of_its_terms(setup, everything):
    total, outputs = everything
    loss = setup[0].loss
    names = set(outputs.terms) - {"total"}
    assert names == {
        *("landmark", "shape", "identity", "prior", "theta", "vertices"),
        *("symmetry", "multi_view", "outside", "scale"),
    }
    expected = sum(getattr(loss, name) * outputs.terms[name] for name in names)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(total, outputs.terms["total"])


def test_terms_are_what_theta_says(setup, everything):
    """In plain numpy, from theta and the projection of the layers."""
    options, grid, _, batch = setup
    outputs = everything[1]
    theta = np.asarray(outputs.theta, np.float64)
    assert np.abs(theta[:, 6:]).max() > 1e-3  # else nothing is shown
    target = np.asarray(batch.keypoints).reshape(8, -1, 3)[..., :2]
    wrong = np.sum((np.asarray(outputs.landmarks) - target) ** 2, -1) / 32**2
    np.testing.assert_allclose(outputs.terms["landmark"], wrong.mean(), rtol=1e-4)
    prior = np.sum(theta[:, 6:] ** 2, -1).mean()
    np.testing.assert_allclose(outputs.terms["prior"], prior, rtol=1e-4)
    apart = theta - np.asarray(batch.latent).reshape(8, -1)
    moved = options.camera.scale * np.tensordot(apart[:, 6:], np.asarray(grid.basis), 1)
    expected = np.sum(moved**2, -1).mean()
    np.testing.assert_allclose(outputs.terms["vertices"], expected, rtol=1e-4)
    expected = np.sum((apart * np.r_[np.full(6, 20.0), np.ones(94)]) ** 2, -1).mean()
    np.testing.assert_allclose(outputs.terms["theta"], expected, rtol=1e-4)


@pytest.mark.once
def test_shares_of_two_devices_are_those_of_the_whole_batch(setup, everything):
    options, grid, params, batch = setup
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)

    def share(part):
        return objectives.objective(params, grid, part, options, axis_name="devices")

    totals, outputs = jax.jit(jax.vmap(share, axis_name="devices"))(halves)
    np.testing.assert_allclose(totals.sum(), everything[0], rtol=1e-5)
    for name, term in everything[1].terms.items():
        found = outputs.terms[name].sum()
        np.testing.assert_allclose(found, term, rtol=1e-4, atol=1e-8, err_msg=name)


def test_a_term_without_weight_is_not_computed(setup):
    names = ("symmetry", "multi_view", "shape", "identity", "theta", "vertices")
    outputs = run(setup, **dict.fromkeys(names, 0.0))[1]
    assert set(outputs.terms) == {"landmark", "prior", "outside", "scale", "total"}
    assert outputs.seen is None
    assert "seen" not in watch.moments(outputs, 32)


@pytest.fixture(scope="module")
def at_known_thetas(setup):
    """Terms at the truth, at other poses, of other shapes; of others' landmarks."""
    options, grid, params, batch = setup
    truth = batch.latent.reshape(8, -1)
    loss = dataclasses.replace(options.loss, symmetry=0.0, multi_view=0.0, identity=1.0)
    options = dataclasses.replace(options, loss=loss)
    # Up to 0.1 rad of turn, 0.05 of half an image, 5 % of size.
    wrong = 0.1 * jnp.sin(jnp.arange(48.0)).reshape(8, 6)
    posed = truth.at[:, :6].add(wrong * jnp.array([1, 1, 1, 0.5, 0.5, 0.5]))
    # Of one view of each person another identity.
    shaped = truth.at[::2, 6:20].add(1.0)
    # Less is compiled of what is not asked for.
    loss = dataclasses.replace(loss, identity=0.0, theta=0.0, vertices=0.0)
    broken = dataclasses.replace(options, loss=loss, shuffle_landmarks=True)

    @functools.partial(jax.jit, static_argnums=1)
    def terms(theta, options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(localiser, "localise", lambda *_: theta)
            return objectives.objective(params, grid, batch, options)[1].terms

    found = {"truth": truth, "posed": posed, "shaped": shaped}
    found = {name: terms(theta, options) for name, theta in found.items()}
    return found | {"broken": terms(truth, broken)}


def test_the_truth_costs_nothing(at_known_thetas):
    for name in ("landmark", "shape", "identity", "theta", "vertices"):
        assert at_known_thetas["truth"][name] < 1e-10, name
    # With the landmarks of somebody else it costs something.
    broken = at_known_thetas["broken"]
    assert broken["landmark"] > 1e-4 and broken["shape"] > 1e-5


def test_errors_of_pose_are_none_of_shape(at_known_thetas):
    """And identity is that of the other view."""
    of_pose, of_shape = at_known_thetas["posed"], at_known_thetas["shaped"]
    assert of_pose["landmark"] > 1e-4
    assert of_pose["shape"] < 1e-8 and of_pose["identity"] < 1e-8
    assert of_shape["shape"] > 1e-6
    # As many views are explained by a wrong identity, only others.
    assert 0.2 < of_shape["identity"] / of_shape["shape"] < 5.0


@pytest.mark.once
def test_the_gradient_of_shape_is_exact_without_that_of_the_pose(setup):
    """Against differences of the term itself, whose pose is found anew each time."""
    options, grid, _, batch = setup
    truth = batch.latent[:1, 0]
    points = batch.keypoints[:1, 0, :, :2]
    theta = truth.at[:, 6:].multiply(0.5).at[:, 1].add(0.05)

    @jax.jit
    def cost(alpha):
        there = jnp.concatenate([theta[:, :6], alpha[None]], axis=1)
        loss = objectives._shape_loss(grid, there, points, options)
        return 1e4 * jnp.mean(loss.value)

    alpha = theta[0, 6:]
    gradient = np.asarray(jax.jit(jax.grad(cost))(alpha))
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=94).astype(np.float32)
        step = 0.05 * direction
        slope = (cost(alpha + step) - cost(alpha - step)) / 0.1
        assert slope == pytest.approx(gradient @ direction, rel=0.05, abs=0.02)


@pytest.mark.once
def test_hidden_faces_cost_something_where_masks_have_a_slope(setup):
    options, grid, params, batch = setup
    options = dataclasses.replace(options, visibility="soft")
    objective = jax.jit(objectives.objective, static_argnums=3)
    outputs = objective(params, grid, batch, options)[1]
    assert 0.0 <= outputs.terms["visible"] < 0.1
    assert 0.3 < outputs.seen.mean() < 1.0


@pytest.mark.once
def test_an_image_alone_is_compared_with_its_mirror(setup):
    options, grid, params, batch = setup
    photos = jax.tree.map(lambda x: x[:, 0], batch)
    loss = dataclasses.replace(options.loss, identity=0.0)
    options = dataclasses.replace(options, loss=loss)
    objective = jax.jit(
        functools.partial(objectives.objective, options=options),
    )
    terms = objective(params, grid, photos)[1].terms
    mirrored = dataclasses.replace(photos, image=photos.image[:, :, ::-1])
    assert terms["multi_view"] > 0
    same = objective(params, grid, mirrored)[1].terms["multi_view"]
    np.testing.assert_allclose(same, terms["multi_view"], rtol=1e-4)


@pytest.mark.once
def test_the_forms_of_the_release(setup):
    options, grid, params, batch = setup
    options = dataclasses.replace(options, release_losses=True, visibility="facing")
    _, outputs = jax.jit(objectives.objective, static_argnums=3)(
        params, grid, batch, options
    )
    target = np.asarray(batch.keypoints).reshape(8, -1, 3)[..., :2]
    wrong = np.sum((np.asarray(outputs.landmarks) - target) ** 2)
    np.testing.assert_allclose(outputs.terms["landmark"], wrong, rtol=1e-4)
    np.testing.assert_allclose(
        outputs.terms["prior"], np.sum(np.asarray(outputs.theta)[:, 6:] ** 2), rtol=1e-4
    )
    assert outputs.terms["symmetry"] > 1 and outputs.terms["multi_view"] > 1


def test_the_watch_tells_what_collapses():
    healthy = {
        "face_scale": 1.0, "outside_share": 0.0, "seen_share": 0.8, "alpha_rms": 1.0,
        "turn_std_x_deg": 5.0, "turn_std_y_deg": 20.0, "turn_std_z_deg": 5.0,
    }  # fmt: skip
    assert watch.warnings(healthy, [{}] * 5) == watch.warnings({}, []) == []
    still = {f"turn_std_{axis}_deg": 0.1 for axis in "xyz"}
    for change, word in (
        ({"face_scale": 0.2}, "shrinking"),
        ({"outside_share": 0.5}, "lost"),
        ({"seen_share": 0.1}, "hidden"),
        ({"alpha_rms": 4.0}, "caricature"),
        (still, "pose collapse"),
    ):
        (sentence,) = watch.warnings(healthy | change, [{}] * 5)
        assert sentence.startswith(word) and ":" in sentence
    # At first every face is the mean face, from the front.
    assert watch.warnings(healthy | still, [{}]) == []


def test_statistics_are_of_all_images(everything):
    outputs = everything[1]
    found = watch.statistics(watch.moments(outputs, 32))
    theta = np.asarray(outputs.theta, np.float64)
    np.testing.assert_allclose(found["face_scale"], np.exp(theta[:, 5].mean()), 1e-5)
    rms = np.sqrt(np.square(theta[:, 6:]).mean())
    np.testing.assert_allclose(found["alpha_rms"], rms, rtol=1e-5)
    spread = np.degrees(theta[:, 1].std())
    np.testing.assert_allclose(found["turn_std_y_deg"], spread, rtol=0.02, atol=0.01)
    assert 0.3 < found["seen_share"] < 1.0
