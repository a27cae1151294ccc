"""Both players on the engine: schedules, averages, devices, resumption."""

import pickle
from pathlib import Path

import gan_toy
import jax
import jax.numpy as jnp
import lives
import numpy as np
import pytest

from configs.gan2shape import gan_default, gan_faces, gan_faces_64, gan_faces_wide
from unsup3d_jax.errors import UserError
from unsup3d_jax.stylegan2 import options, steps, task


@pytest.mark.parametrize(
    "key, value",
    [
        ("data.name", "synface"),
        ("data.image_size", 48),
        ("data.background", "white"),
        ("gan.channels", (4, 4, 4)),
        ("gan.mixing", 1.5),
        ("loss.r1", -1.0),
        ("loss.r1_every", 0),
        ("augment.target", 2.0),
        ("train.optimizer", "muon"),
        ("train.batch_size", 6),
        ("train.init_from", "runs/other"),
        ("eval.split", "dev"),
    ],
)
def test_bad_values_name_their_key(key, value):
    config = gan_toy.config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"^{key} must be .*, got .*\.$"):
        options.check_config(config)


def test_a_plain_background_is_of_open_faces_alone():
    config = gan_toy.config(data__name="folder")
    with pytest.raises(UserError, match="^data.background must be"):
        options.check_config(config)


@pytest.mark.parametrize(
    "recipe", [gan_default, gan_faces, gan_faces_wide, gan_faces_64]
)
def test_the_recipes_are_in_order(recipe):
    options.check_config(recipe.get_config())


def test_lazy_regularisation_slows_the_optimizer_down():
    """k / (k + 1), as the released code has it; nothing without a penalty."""
    config = gan_toy.config(loss__r1_every=16)
    found = options.options_from_config(config)
    assert found.r1.correction == 16 / 17 and found.path.correction == 3 / 4
    assert options.Lazy(0.0, 16).correction == 1.0
    adam = steps.lazy_optimizer(config, found.r1)
    params = {"w": jnp.ones(2)}
    _, moments = adam.update({"w": jnp.full(2, 3.0)}, adam.init(params), params)
    (nu,) = (leaf for leaf in jax.tree.leaves(moments) if leaf.shape == (2,) and
             float(leaf[0]) < 1.0)  # fmt: skip
    np.testing.assert_allclose(nu, 9.0 * (1.0 - 0.99 ** (16 / 17)), rtol=1e-4)


def test_half_of_the_average_is_gone_after_its_half_life():
    found = options.options_from_config(gan_toy.config(gan__half_life=80))
    assert abs(steps.average_decay(found) ** 10 - 0.5) < 1e-12  # 10 batches of 8


@pytest.fixture(scope="module")
def walked():
    """States and metrics of six steps."""
    return gan_toy.walk(1)


def _moves(states, part):
    """For each step, whether anything of a part changed."""
    return [
        any((a != b).any() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in zip(
            [s[part] for s in states], [s[part] for s in states[1:]], strict=False
        )
    ]


@pytest.mark.slow  # four programs
def test_everything_takes_part_when_it_should(walked):
    states, metrics = walked
    for part in ("generator", "discriminator", "ema", "opt_g", "opt_d", "mean_w"):
        assert all(_moves(states, part)), part
    # R1 every second step, path lengths every third, the probability every second.
    r1 = [float(s["penalties"]["r1"]) for s in states]
    assert [a != b for a, b in zip(r1, r1[1:], strict=False)] == [True, False] * 3
    path = [float(s["path_mean"]) for s in states]
    moved = [a != b for a, b in zip(path, path[1:], strict=False)]
    assert moved == [True, False, False] * 2
    p = [float(s["ada"]["probability"]) for s in states]
    moves = [a != b for a, b in zip(p, p[1:], strict=False)]
    assert moves[0::2] == [False] * 3
    assert all(m["finite"] == 1 for m in metrics)
    # Two updates of the optimizer where a penalty is due, one elsewhere.
    (count,) = (x for x in jax.tree.leaves(states[-1]["opt_d"]) if x.dtype == np.int32)
    assert count == 6 + 3
    (count,) = (x for x in jax.tree.leaves(states[-1]["opt_g"]) if x.dtype == np.int32)
    assert count == 6 + 2


@pytest.mark.slow  # four programs
def test_the_average_follows_by_its_decay(walked):
    states, _ = walked
    decay = 0.5 ** (8 / 32)
    for before, after in zip(states, states[1:], strict=False):
        expected = jax.tree.map(
            lambda a, p: decay * a + (1 - decay) * p, before["ema"], after["generator"]
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            after["ema"],
            expected,
        )


@pytest.mark.timeout(1000)
@pytest.mark.slow  # a process of its own, which compiles anew
def test_two_devices_do_what_one_does(walked, tmp_path):
    """To rounding; Adam's first steps are signs of gradients, some of which are 0."""
    place = tmp_path / "two"
    process = lives.start(gan_toy.walk_elsewhere, place, 2)
    process.join(900)
    assert place.exists(), Path(f"{place}.err").read_text()
    players, two = pickle.loads(place.read_bytes())
    (_, first, *_), (one, *_) = walked
    for name in ("d", "g", "r1", "path", "real_sign", "sample_spread"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, err_msg=name)
    for part in ("generator", "discriminator"):
        far = jax.tree.map(
            lambda a, b: np.mean(np.abs(a - b) > 1e-3), first[part], players[part]
        )
        assert np.mean(jax.tree.leaves(far)) < 0.05, part


@pytest.mark.slow  # the engine's own tests of resumption are by default
def test_a_run_that_is_resumed_ends_as_one_that_is_not(tmp_path):
    config = gan_toy.config()
    made = task.gan_task(config, gan_toy.splits)
    straight, step = gan_toy.fit(config, tmp_path / "a", made)
    assert step == 6
    config.train.steps = 3  # between penalties, and between changes of ADA
    assert gan_toy.fit(config, tmp_path / "b", made)[1] == 3
    config.train.steps = 6
    resumed, step = gan_toy.fit(config, tmp_path / "b", made)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.timeout(2000)
@pytest.mark.slow  # processes of their own, which compile anew
def test_killed_it_comes_to_the_same_end(tmp_path):
    ends = []
    for name, kill in (("straight", False), ("killed", True)):
        workdir = tmp_path / name
        if kill:
            process = lives.start(gan_toy.live, workdir, 1)
            folder = workdir / "checkpoints" / "2"
            assert lives.wait_until(folder.exists, process)
            lives.kill(process)
        process = lives.start(gan_toy.live, workdir, 1)
        process.join(900)
        assert (workdir / "finished").exists(), (tmp_path / f"{name}.err").read_text()
        made = task.gan_task(gan_toy.config(), gan_toy.splits)
        ends.append(lives.outcome(workdir, step=6, the_task=made))
    assert ends[0] == ends[1]
