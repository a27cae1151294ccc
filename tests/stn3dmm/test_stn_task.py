"""The method as the engine's task: its config, one step, a run that is resumed."""

import dataclasses

import jax
import numpy as np
import pytest
import stn_people

from configs.stn3dmm import compat, full, open_faces, photos
from unsup3d_jax.engine import dry_run, loop, parallel
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import Session, advance, initial_state
from unsup3d_jax.engine.workdir import lock_workdir
from unsup3d_jax.errors import UserError
from unsup3d_jax.stn3dmm import options, score, task

_COMPILED = []


def _listen(name, *_, **__):
    if name.endswith("backend_compile_duration"):
        _COMPILED.append(name)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.mark.parametrize(
    "key, value",
    [
        ("data.name", "folder"),
        ("data.image_size", 16),
        ("localiser.kind", "resnet"),
        ("localiser.rotation_head", "euler"),
        ("localiser.width", 0.0),
        ("visibility.train", "all"),
        ("visibility.eval", "soft"),
        ("loss.contrast", 4),
        ("loss.prior", -1.0),
        ("eval.split", "dev"),
        ("eval.baselines", ("best",)),
        ("face.landmarks", "aflw21"),
        ("face.grid", 1),
        ("train.schedule", "linear"),
    ],
)
def test_bad_values_name_their_key(key, value):
    config = stn_people.config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"^{key} must be .*, got .*\.$"):
        options.check_config(config)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"loss__identity": 1.0, "data__views": 1}, "loss.identity"),
        ({"loss__theta": 1.0, "camera__fov_deg": 0.0}, "camera.fov_deg"),
        ({"loss__theta": 1.0, "face__model": "mine.npz"}, "loss.theta"),
        ({"data__name": "landmarks"}, "data.views"),
        ({"localiser__kind": "vgg_face"}, "data.image_size"),
        (
            {"eval__baselines": ("supervised",), "face__model": "mine.npz"},
            "eval.baselines",
        ),
        (
            {"eval__baselines": ("supervised",), "compat__release_losses": True},
            "eval.baselines",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_named(changes, key):
    with pytest.raises(UserError, match=rf"^{key} must be"):
        options.check_config(stn_people.config(**changes))


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"localiser__stem": 4, "data__image_size": 48}, "stem=4 needs 64 px or more"),
        ({"localiser__pool": "flat", "data__image_size": 96}, "pool=flat needs maps"),
    ],
)
def test_sizes_that_the_network_does_not_take_are_refused_at_once(changes, rule):
    with pytest.raises(UserError, match=rf"^{rule}"):
        options.check_config(stn_people.config(**changes))


@pytest.mark.parametrize("recipe", [open_faces, full, compat, photos])
def test_the_recipes_are_in_order(recipe):
    options.check_config(recipe.get_config())


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(UserError, match="nowhere.npz"):
        options.load_face(stn_people.config(face__model="nowhere.npz"))


def test_the_last_layer_has_the_rates_of_the_release():
    """v = 0.9 v + g + decay w; w = w - rate v, 4 and 8 times; no decay of the bias."""
    config = stn_people.config(
        compat__release_rates=True, train__optimizer="sgd", train__weight_decay=0.3
    )
    config.train.beta1, config.train.clip_norm = 0.9, 0.0
    optimizer = task.make_optimizer(config)
    layer = {"kernel": np.float32([2.0]), "bias": np.float32([1.0])}
    params = {"localiser": {"head": {"layer": layer}, "small": {"dense": layer}}}
    grads = jax.tree.map(lambda x: 0.5 * x, params)
    state, v = optimizer.init(params), {}
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
        for name, factor, decay in (
            ("head/layer/kernel", 4, 0.3), ("head/layer/bias", 8, 0.0),
            ("small/dense/kernel", 1, 0.3), ("small/dense/bias", 1, 0.3),
        ):  # fmt: skip
            place, w = updates["localiser"], params["localiser"]
            for part in name.split("/"):
                place, w = place[part], w[part]
            v[name] = 0.9 * v.get(name, 0.0) + 0.5 * w + decay * w
            np.testing.assert_allclose(place, factor * v[name], rtol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def the_task():
    config = stn_people.config(loss__symmetry=0.1, loss__shape=0.0)
    return config, task.stn_task(config, stn_people.splits(config))


def fit(config, the_task, workdir):
    """Final parameters, and how often XLA compiled."""
    workdir.mkdir(exist_ok=True)
    with Interrupts() as now, lock_workdir(workdir):
        state = loop.fit(
            Session(config, stn_people.splits(config), now),
            the_task,
            workdir,
            devices=parallel.local_devices(config)[:1],
        )
    return jax.device_get(parallel.one_copy(state.parts)), int(state.step)


@pytest.mark.slow  # the engine's own tests of resumption are by default
def test_a_run_that_is_resumed_ends_as_one_that_is_not(tmp_path, the_task):
    config, made = the_task
    straight, step = fit(config, made, tmp_path / "a")
    assert step == 4
    with config.unlocked():
        config.train.steps = 2
    half, step = fit(config, made, tmp_path / "b")
    assert step == 2
    with config.unlocked():
        config.train.steps = 4
    resumed, step = fit(config, made, tmp_path / "b")
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    before = jax.tree.leaves(half["params"])
    moved = [(a != b).any() for a, b in zip(
        jax.tree.leaves(straight["params"]), before, strict=True)]  # fmt: skip
    assert all(moved)


@pytest.mark.once
def test_the_step_is_compiled_once_and_image_terms_begin_when_they_should(the_task):
    _, made = the_task
    made = dataclasses.replace(
        made, schedule=made.schedule | {"image_start": np.int32(1)}
    )
    devices = jax.local_devices()[:1]
    state = initial_state(made, 0)
    state, constants, schedule = parallel.replicate(
        (state, made.constants, made.schedule), devices
    )
    step, source = parallel.parallel_step(made, devices), made.make_source(devices)
    compiled, found = [], []
    for _ in range(3):
        before = len(_COMPILED)
        state, metrics = step(state, next(source), constants, schedule)
        compiled.append(len(_COMPILED) - before)
        found.append(jax.device_get(metrics))
    assert compiled[1:] == [0, 0]
    for metrics, begun in zip(found, (0.0, 1.0, 1.0), strict=True):
        weights = {"landmark": 1.0, "prior": 1e-6}
        weights |= {"outside": 1.0, "scale": 1.0, "symmetry": 0.1 * begun}
        total = sum(weight * metrics[name] for name, weight in weights.items())
        assert metrics["total"] == pytest.approx(total, rel=1e-4)


def test_noise_has_the_shapes_of_the_batches(the_task):
    config, made = the_task
    devices = jax.local_devices()[:1]
    batch = next(made.make_source(devices))
    noise = made.random_batch(1)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(b)] for b in (batch, noise)]
    assert shapes[0] == shapes[1]
    assert batch.image.shape == (1, 4, 2, 32, 32, 3)


@pytest.mark.once
def test_a_dry_run_tells_of_the_localiser(the_task):
    config, made = the_task
    assert "localiser" in dry_run.report(config, made)


@pytest.mark.once
def test_photos_with_landmarks_are_people_in_one_view():
    """Without an axis of views, and with landmarks that nobody knows."""
    config = stn_people.config(
        data__name="landmarks", data__views=1, loss__multi_view=0.1
    )
    people = stn_people.dataset(config)
    arrays = {name: people.arrays[name][:, 0] for name in ("image", "keypoints")}
    arrays["keypoints"][:, 3] = np.nan
    photos = dataclasses.replace(people, arrays=arrays)
    made = task.stn_task(config, lambda split: photos)
    batch, noise = next(made.make_source(jax.local_devices()[:1])), made.random_batch(1)
    assert batch.image.shape == noise.image.shape == (1, 4, 32, 32, 3)
    state = jax.eval_shape(lambda: initial_state(made, 0))
    one = jax.tree.map(lambda x: x[0], batch)
    after, metrics = jax.eval_shape(
        lambda s, b: advance(s, b, made.constants, made.schedule, task=made), state, one
    )
    assert metrics["multi_view"].shape == () and "identity" not in metrics
    assert after.parts["params"].keys() == state.parts["params"].keys()


def test_mirrored_images_have_mirrored_landmarks_unless_they_are_broken():
    for broken in (False, True):
        config = stn_people.config(broken__mirror=broken, loss__theta=1e-3)
        made = task.stn_task(config, stn_people.splits(config))
        batch = next(made.make_source(jax.local_devices()[:1]))
        theta = np.asarray(batch.latent)[0].reshape(8, -1)
        points = np.asarray(batch.keypoints)[0].reshape(8, -1, 3)[..., :2]
        wrong = np.abs(stn_people.landmarks(config, theta) - points).max((1, 2))
        # The right side of a mirrored face is not where the left one is.
        assert (wrong < 0.1).all() != broken


def test_parameters_have_the_shapes_that_are_expected(the_task):
    config, made = the_task
    found = jax.eval_shape(lambda: initial_state(made, 0)).parts["params"]
    shapes = [jax.tree.map(lambda x: x.shape, p) for p in (
        found, task.shapes_of_params(config))]  # fmt: skip
    assert shapes[0] == shapes[1]


def test_the_supervised_row_learns_theta_alone():
    config = stn_people.config(eval__baselines=("supervised",))
    other = score.supervised_config(config)
    options.check_config(other)
    assert task.training_fields(other) == ("image", "latent")
    assert config.loss.theta == 0.0
