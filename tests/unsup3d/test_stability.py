"""Options against collapse: the growing range of the view, the prior on light.

Networks are replaced by arrays, and the objective by that of `tiny_task`, wherever
a schedule or a derivative is the question.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_task
from bust import config_of, task_of

from configs import default
from unsup3d_jax.engine import loop, replicas
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import Session, StepContext
from unsup3d_jax.engine.workdir import claim_workdir
from unsup3d_jax.errors import UserError
from unsup3d_jax.formation import losses
from unsup3d_jax.formation.types import Batch, Canonical, Reconstruction, Warped
from unsup3d_jax.unsup3d import model, score
from unsup3d_jax.unsup3d.options import LossWeights, loss_weights, options_from_config
from unsup3d_jax.unsup3d.task import IDENTITY, check_config

pytestmark = pytest.mark.once

SIZE = 32


def _scheduled(*, steps=10):
    config = tiny_task.config()
    config.view.warmup_start, config.view.warmup_steps = 0.2, steps
    config.loss.light_prior, config.loss.light_prior_steps = 0.5, 4
    return config


# --- schedules --------------------------------------------------------------------


def test_the_papers_recipe_has_neither():
    weights = loss_weights(default.get_config(), 0)
    assert weights.view_range is None and weights.light_prior is None


@pytest.mark.parametrize(
    "step, share, prior", [(0, 0.2, 0.5), (1, 0.28, 0.375), (5, 0.6, 0.0), (10, 1, 0)]
)
def test_range_and_prior_follow_their_schedules(step, share, prior):
    weights = loss_weights(_scheduled(), step)
    np.testing.assert_allclose(weights.view_range, share, rtol=1e-6)
    np.testing.assert_allclose(weights.light_prior, prior, rtol=1e-6)


def test_the_whole_range_is_reached_exactly_and_a_prior_without_end_stays():
    config = _scheduled(steps=3)
    config.loss.light_prior_steps = 0
    for step in (3, 4, 10**6):
        weights = loss_weights(config, step)
        assert float(weights.view_range) == 1.0
        assert float(weights.light_prior) == 0.5


def test_no_step_compiles_anew():
    traced = []

    @jax.jit
    def at(step):
        traced.append(step)
        return loss_weights(_scheduled(), step)

    shares = [float(at(jnp.int32(step)).view_range) for step in (0, 3, 10)]
    assert len(traced) == 1 and len(set(shares)) == 3


@pytest.mark.parametrize(
    "key, value",
    [
        ("view.warmup_start", 0.0),
        ("view.warmup_start", 1.1),
        ("view.warmup_steps", -1),
        ("view.warmup_steps", 13),  # of 12
        ("loss.light_prior", -0.1),
        ("loss.light_prior_steps", -1),
    ],
)
def test_impossible_values_are_named(key, value):
    config = tiny_task.config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=key):
        check_config(config)


def test_a_predicted_shading_map_has_no_light_to_draw():
    config = _scheduled()
    config.model.shading = "map"
    with pytest.raises(ValueError, match="loss.light_prior must be 0"):
        options_from_config(config)


def test_baselines_that_learn_no_viewpoint_need_no_warm_up():
    config = _scheduled()
    config.eval.baseline_steps = 5  # less than the warm-up
    for name in ("supervised", "oracle"):
        check_config(score.baseline_config(config, name))


# --- what they do -----------------------------------------------------------------


class FixedNet:
    """A network whose output is its parameter."""

    def apply(self, variables, _):
        return variables["params"]


@pytest.fixture
def outputs(monkeypatch):
    """Raw outputs of the networks, as parameters."""
    names = ("depth", "albedo", "light", "view")
    monkeypatch.setattr(
        model, "build_networks", lambda options: {name: FixedNet() for name in names}
    )
    rng = np.random.default_rng(0)
    shapes = ((2, SIZE, SIZE, 1), (2, SIZE, SIZE, 3), (2, 4), (2, 6))
    return {
        name: jnp.asarray(rng.uniform(-0.9, 0.9, shape), jnp.float32)
        for name, shape in zip(names, shapes, strict=True)
    }


def _options(**changes):
    config = config_of(SIZE)
    config.model.use_confidence = False
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return options_from_config(config)


def test_the_range_scales_rotation_and_translation_and_nothing_else(outputs):
    options = _options(view__translation_z_max=0.1)
    image = jnp.zeros((2, SIZE, SIZE, 3))
    whole = model.decompose(outputs, image, options)
    part = model.decompose(outputs, image, options, view_range=jnp.float32(0.25))
    limits = np.array([np.pi / 3] * 3 + [0.1] * 3)
    np.testing.assert_allclose(part.view, 0.25 * limits * outputs["view"], rtol=1e-5)
    for field in ("canon_depth", "canon_albedo", "light"):
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field))
    full = model.decompose(outputs, image, options, view_range=jnp.ones(()))
    np.testing.assert_array_equal(full.view, whole.view)


def test_the_prior_is_the_squared_distance_from_medium_frontal_light():
    light = jnp.array([[0.5, 0.75, 0, 0, 1], [0.2, 1.0, 0.48, 0.36, 0.8]])
    got = losses.mean_share(
        losses.light_prior(light, ambient_range=(0.0, 1.0), diffuse_range=(0.5, 1.0))
    )
    # The first is the mean itself; the second: u = -0.6 and 1, sine 0.6.
    np.testing.assert_allclose(got, (0.0 + 0.36 + 1.0 + 0.36) / 2, rtol=1e-5)
    fixed = losses.mean_share(
        losses.light_prior(light, ambient_range=(0.3, 0.3), diffuse_range=(0.5, 1.0))
    )
    np.testing.assert_allclose(fixed, (1.0 + 0.36) / 2, rtol=1e-5)
    halves = jax.vmap(
        lambda part: losses.mean_share(
            losses.light_prior(part, ambient_range=(0, 1), diffuse_range=(0.5, 1)),
            axis_name="d",
        ),
        axis_name="d",
    )(light[:, None])
    np.testing.assert_allclose(halves.sum(), got, rtol=1e-6)


@pytest.mark.once
def test_the_priors_gradient_reaches_only_the_light_and_pulls_it_back(
    outputs, monkeypatch
):
    def blend(factors, options):  # every factor has a gradient of its own
        shade = factors.light.sum(1) + factors.view.sum(1)
        image = factors.canon_albedo * factors.canon_depth[..., None]
        image = image * shade[:, None, None, None]
        everywhere = jnp.ones(factors.canon_depth.shape, bool)
        warped = Warped(depth=factors.canon_depth, valid=everywhere, image=image)
        canonical = Canonical(normal=image, shading=image[..., 0], image=image)
        return Reconstruction(canonical, canonical, warped, warped)

    monkeypatch.setattr(model, "reconstruct", blend)
    options = _options()
    batch = Batch(image=jnp.full((2, SIZE, SIZE, 3), 0.3))

    def gradient(weights):
        def total(params):
            return model.objective(params, {}, batch, weights, options)

        (value, out), grads = jax.value_and_grad(total, has_aux=True)(outputs)
        return value, out.terms, grads

    flip = jnp.ones(())
    value, terms, without = gradient(LossWeights(flip))
    assert "light_prior" not in terms
    weights = LossWeights(flip, light_prior=jnp.float32(0.5))
    more, terms, grads = gradient(weights)
    np.testing.assert_allclose(more, value + 0.5 * terms["light_prior"], rtol=1e-6)
    for name in ("depth", "albedo", "view"):
        assert np.abs(without[name]).max() > 0
        np.testing.assert_allclose(grads[name], without[name], rtol=1e-5, atol=1e-9)
    pull = grads["light"] - without["light"]
    assert (np.sign(pull) == np.sign(outputs["light"])).all()  # descent goes to 0


# --- runs -------------------------------------------------------------------------


def _fit(workdir, config, **source):
    task = tiny_task.task(
        config,
        weights_at=lambda step: loss_weights(config, step).view_range,
        **source,
    )
    with Interrupts() as interrupts:
        return loop.fit(
            Session(config, range, interrupts),
            task,
            workdir,
            devices=jax.local_devices()[:1],
        )


@pytest.mark.once
def test_resuming_in_the_warm_up_is_bit_equal(tmp_path):
    straight = _fit(tmp_path / "straight", _scheduled())
    assert int(_fit(tmp_path / "cut", _scheduled(), kill_at=5).step) == 5
    resumed = _fit(tmp_path / "cut", _scheduled())
    jax.tree.map(np.testing.assert_array_equal, resumed.parts, straight.parts)
    other = _fit(tmp_path / "other", _scheduled(steps=3))
    pairs = zip(
        jax.tree.leaves(other.parts), jax.tree.leaves(straight.parts), strict=True
    )
    assert any(not np.array_equal(a, b) for a, b in pairs)  # the schedule matters


@pytest.mark.once
def test_a_run_that_began_before_these_options_goes_on(tmp_path):
    config = tiny_task.config()
    devices = jax.local_devices()
    claim_workdir(tmp_path, config, devices, IDENTITY)
    with Interrupts() as interrupts:
        loop.fit(
            Session(config, range, interrupts),
            tiny_task.task(config),
            tmp_path,
            devices=devices[:1],
        )
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["method"]  # there was one
    for key in ("warmup_start", "warmup_steps"):
        del record["config"]["view"][key]
    for key in ("light_prior", "light_prior_steps"):
        del record["config"]["loss"][key]
    path.write_text(json.dumps(record))
    claim_workdir(tmp_path, config, devices, IDENTITY)  # is the same run
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"view.warmup_steps \(0 there, 10 now\)"):
        claim_workdir(tmp_path, _scheduled(), devices, IDENTITY)


@pytest.mark.slow
def test_seeds_together_share_the_schedules():
    config = config_of(SIZE)
    config.view.warmup_steps, config.loss.light_prior = 5, 0.1
    single = task_of(config)
    task = replicas.stacked_task([single, single], (0, 1))

    def metrics(image):
        zero, key = jnp.zeros((), jnp.int32), jax.random.key(0)
        context = StepContext(zero, key, task.constants, task.schedule)
        return task.step(task.init(key), Batch(image=image), context)[1]

    image = jax.ShapeDtypeStruct((2, 3, SIZE, SIZE, 3), jnp.float32)
    assert jax.eval_shape(metrics, image)["light_prior"].shape == ()


@pytest.mark.once
def test_the_watch_waits_until_the_range_is_whole(tmp_path, capfd):
    def still(params, constants, batch, weights, *, axis_name=None):
        total, outputs = tiny_task.objective(
            params, constants, batch, jnp.ones(()), axis_name=axis_name
        )
        factors = dataclasses.replace(
            outputs.factors, view=jnp.zeros_like(outputs.factors.view)
        )
        return total, outputs.replace(factors=factors)

    for steps, warnings in ((12, 0), (10, 1)):
        config = _scheduled(steps=steps)
        config.log.every = 1
        with Interrupts() as interrupts:
            loop.fit(
                Session(config, range, interrupts),
                tiny_task.task(config, objective=still),
                tmp_path / str(steps),
                devices=jax.local_devices()[:1],
            )
        assert capfd.readouterr().err.count("viewpoint collapse") == warnings
