"""Single steps: what is drawn, what moves, and how near step 0 can come."""

import dataclasses
import functools

import gan_shape_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unsup3d_jax.errors import UserError
from unsup3d_jax.formation import heads
from unsup3d_jax.formation.types import Conditions, Surface
from unsup3d_jax.gan2shape import stages, steps
from unsup3d_jax.gan2shape.options import check_config
from unsup3d_jax.gan2shape.reconstruct_files import _for_photos
from unsup3d_jax.gan2shape.steps import Moment


@pytest.fixture(scope="module")
def begun():
    config = samples.config(stages__collect=4)
    plan, work = samples.plan(config), samples.work(config, [0])
    groups = stages.begin(work, plan)
    group = jax.tree.map(lambda x: x[0], stages._groups(groups))
    given = jax.tree.map(lambda x: x[0], work.given)
    return plan, group, given, work.common


def test_the_store_is_walked_from_end_to_end_and_then_in_another_order():
    options = dataclasses.replace(
        check_config(samples.config(stages__collect=4)), samples=3
    )
    draw = jax.jit(
        lambda step: steps._rows(
            jax.random.key(0), Moment(step, jnp.asarray(10)), options
        )
    )
    rows = [np.asarray(draw(jnp.asarray(10 + i))) for i in range(8)]
    for walk in (rows[:4], rows[4:]):
        assert sorted(np.concatenate(walk)) == list(range(12))
    assert [list(r) for r in rows[:4]] != [list(r) for r in rows[4:]]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("prior", marks=pytest.mark.once),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("albedo", "encoder", "shape")
        ),
    ],
)
def test_a_step_moves_its_networks_and_no_others(begun, kind):
    plan, group, given, common = begun
    move = jax.jit(
        lambda group: steps.iterate(
            group,
            given,
            common,
            Moment(jnp.asarray(0), jnp.asarray(0)),
            kind=kind,
            flip=False,
            options=plan.options,
            projection=plan.projection,
            optimizer=plan.optimizer,
        )
    )
    moved, loss = move(group)
    assert np.isfinite(float(loss))
    changed = {
        name
        for name, tree in group.params.items()
        if any(
            (np.asarray(a) != np.asarray(b)).any()
            for a, b in zip(
                jax.tree.leaves(tree), jax.tree.leaves(moved.params[name]), strict=True
            )
        )
    }
    assert changed == set(steps.trained(kind, plan.options))
    np.testing.assert_array_equal(moved.store_image, group.store_image)


@pytest.mark.once
def test_what_views_are_read_moves_view_and_light_alone(begun):
    plan, group, given, common = begun
    weight = 0.7
    options = dataclasses.replace(
        plan.options, loss=dataclasses.replace(plan.options.loss, view=weight)
    )
    assert steps.trained("encoder", plan.options) == ("encoder",)
    assert steps.trained("encoder", options) == ("encoder", "view", "light")

    @jax.jit
    def misread(params):
        seen = steps._seen(params, given.image[:1], common, options)
        pseudo = steps.pseudo_samples(
            jax.random.key(2), seen, given.mask[0], common, options
        )
        return steps._misread(params, pseudo, common, options), pseudo

    (loss, pseudo), grads = jax.value_and_grad(misread, has_aux=True)(group.params)
    read = steps.networks.read_conditions(
        group.params, pseudo.image, common.statistics, options
    )
    turned = np.abs(np.asarray(read.view - pseudo.view))[:, :3].mean()
    lit = np.abs(np.asarray(read.light - pseudo.light)).mean()
    assert turned > 0.01 and lit > 0.01
    np.testing.assert_allclose(loss, weight * (turned + lit), rtol=1e-5)
    moved = {
        name
        for name, tree in grads.items()
        if any(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(tree))
    }
    assert moved == {"view", "light"}


def test_pseudo_samples_count_on_the_object_alone_if_that_is_asked_for():
    """The background, which is of the image and not of the object, counts nowhere."""
    config = samples.config()
    options, work = check_config(config), samples.work(config, [1])
    only = dataclasses.replace(options, object_only=True)
    mask = work.given.mask[0, 0]
    flat = jnp.ones((1, samples.SIZE, samples.SIZE))
    # A white object before black.
    shown = jnp.broadcast_to(mask[None, ..., None], (*flat.shape, 3))
    surface = Surface(
        raw_depth=flat, canon_depth=flat, canon_albedo=shown.astype(jnp.float32)
    )
    light = jnp.array([[0.8, 0.2, 0.0, 0.0, 1.0]])
    seen = surface, Conditions(light=light, view=jnp.zeros((1, 6)))

    @functools.partial(jax.jit, static_argnums=0)
    def draw(options):
        return steps.pseudo_samples(jax.random.key(2), seen, mask, work.common, options)

    everywhere, alone = draw(options), draw(only)
    np.testing.assert_array_equal(everywhere.image, alone.image)
    covered, counts = np.asarray(everywhere.mask), np.asarray(alone.mask)
    assert covered.mean() > 0.6 and 0.2 < counts.mean() < 0.6
    # Beside the canonical image it is grey; and pixels of the outline are blended.
    lit = covered & (np.asarray(alone.image).max(-1) > 0.2)
    assert (counts == lit).mean() > 0.9


def test_the_mask_of_an_image_is_turned_into_the_canonical_view():
    config = samples.config()
    options = check_config(config)
    mask = np.zeros((samples.SIZE, samples.SIZE), bool)
    mask[4:12, 10:26] = True
    flat = jnp.ones((1, *mask.shape))
    surface = Surface(
        raw_depth=flat, canon_depth=flat, canon_albedo=jnp.ones((*flat.shape, 3))
    )
    for turns in (0, 1):  # about the optical axis, x to y, which is down
        view = jnp.zeros((1, 6)).at[0, 2].set(turns * np.pi / 2)
        conditions = Conditions(light=jnp.ones((1, 5)), view=view)
        found = steps.canonical_mask(jnp.asarray(mask), surface, conditions, options)
        np.testing.assert_array_equal(found[0], np.rot90(mask, turns))


def test_views_cost_what_their_distribution_has_other_than_the_statistics(begun):
    plan, group, _, common = begun
    options = dataclasses.replace(
        plan.options, loss=dataclasses.replace(plan.options.loss, spread=0.5)
    )
    rng = np.random.default_rng(4)
    images = jnp.asarray(
        rng.uniform(size=(6, samples.SIZE, samples.SIZE, 3)), jnp.float32
    )
    loss, grads = jax.value_and_grad(steps._spread)(
        group.params, images, common, options
    )
    statistics, reach = common.statistics, np.radians(options.reach.rotation_max_deg)
    read = steps.networks.read_conditions(group.params, images, statistics, options)
    view = np.asarray(read.view, np.float64)[:, :3]
    covariance = np.asarray(statistics.view_root) @ np.asarray(statistics.view_root).T
    wanted = reach**2 * np.diag(covariance)[:3]
    apart = view.mean(0) - reach * np.asarray(statistics.view_mean)[:3]
    # Six noisy pictures to an untrained network spread so little that the guard
    # against log 0 counts.
    ratio = 0.5 * np.log((view.var(0) + 1e-6) / (wanted + 1e-6))
    assert (ratio < -1).all()
    expected = 0.5 * np.mean(ratio**2 + apart**2 / (wanted + 1e-6))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for name, tree in grads.items():
        largest = max(np.abs(np.asarray(x)).max() for x in jax.tree.leaves(tree))
        assert (largest > 0) == (name == "view"), name


def test_a_spread_of_views_is_asked_of_joint_runs_alone():
    check_config(samples.config(stages__mode="joint", loss__spread=0.1))
    alone = samples.config(loss__spread=0.1)
    with pytest.raises(
        UserError, match="loss.spread must be 0 where no stage is joint"
    ):
        check_config(alone)
    check_config(_for_photos(alone))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["albedo", "shape"])
def test_a_group_of_twins_moves_as_one_of_them_does(begun, kind):
    plan, group, given, common = begun

    def twice(tree):
        return jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)

    twins = dataclasses.replace(
        group,
        store_image=twice(group.store_image),
        store_mask=twice(group.store_mask),
    )

    @jax.jit
    def move(group, given):
        return steps.iterate(
            group,
            given,
            common,
            Moment(jnp.asarray(0), jnp.asarray(0)),
            kind=kind,
            flip=False,
            options=plan.options,
            projection=plan.projection,
            optimizer=plan.optimizer,
        )

    one, loss = move(group, given)
    both, other = move(twins, twice(given))
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    # Of Adam's first moment, as its update is but the sign of a gradient.
    for name in steps.TRAINED[kind]:
        for a, b in zip(
            jax.tree.leaves(one.moments[name]),
            jax.tree.leaves(both.moments[name]),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.once
def test_in_joint_mode_every_image_has_its_turn():
    options = dataclasses.replace(check_config(samples.config()), active=2)
    given = samples.work(samples.config(), [0, 1, 2, 3], group=4).given
    given = jax.tree.map(lambda x: x[0], given)
    draw = jax.jit(
        lambda step: steps._active(given, Moment(step, jnp.asarray(0)), options)
    )
    turns = np.stack([np.asarray(draw(jnp.asarray(i))) for i in range(60)])
    assert (turns[:, 0] != turns[:, 1]).all()
    assert (np.bincount(turns.ravel(), minlength=4) > 15).all()


@pytest.mark.slow
def test_step_0_comes_near_to_what_the_depth_head_can_say():
    """The head subtracts a mean, so that the prior itself is out of reach."""
    config = samples.config(
        model__width=8, model__bottleneck=32, stages__prior_steps=400
    )
    plan, work = samples.plan(config), samples.work(config, [0])
    goal = work.given.prior[0]

    def error(raw):
        depth = heads.depth_from_raw(raw, limits=(0.9, 1.1), centre=True)
        return jnp.sqrt(jnp.mean(jnp.square(depth - goal))), depth

    optimizer = optax.adam(3e-2)

    @jax.jit
    def nearest():
        def step(carry, _):
            raw, state = carry
            grads = jax.grad(lambda raw: error(raw)[0])(raw)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(raw, updates), state), None

        raw = jnp.zeros_like(goal)
        (raw, _), _ = jax.lax.scan(step, (raw, optimizer.init(raw)), None, 600)
        return error(raw)

    floor, depth = nearest()
    # The plane is pushed back, and the cap to the front.
    assert 1e-3 < float(floor) < 2e-2
    assert abs(float(jnp.arctanh((depth - 1.0) / 0.1).mean())) < 1e-3
    state, phase = stages.begin(work, plan), plan.phases[0]
    while int(state.step) < phase.last:
        state, _ = stages._advance(state, work, plan, phase)
    found = np.asarray(state.parts["record"]["canon_depth"][0, 0, 0])[:, 2:-2]
    left = np.sqrt(np.mean(np.square(found - np.asarray(goal)[0, :, 2:-2])))
    assert left < 1.5 * float(floor) + 1e-3
