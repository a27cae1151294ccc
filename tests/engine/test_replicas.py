"""Seeds trained together learn what each learns alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_task
from bust import config_of, task_of

from unsup3d_jax.engine import loop, replicas
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import Batch

SEEDS = (3, 4)
CLIP = 2.0  # some gradients of these runs are larger, some smaller


def _config(seed=SEEDS[0], **train_keys):
    config = tiny_task.config(clip_norm=CLIP, **train_keys)
    config.log.every = 1
    config.seed = seed
    return config


def _fit(workdir, *, devices=1, **changes):
    """All seeds together; keyword arguments go to the tasks."""
    tasks = [tiny_task.task(_config(seed), **changes) for seed in SEEDS]
    with Interrupts() as interrupts:
        return replicas.fit(
            _config(),
            tasks,
            workdir,
            devices=jax.local_devices()[:devices],
            interrupts=interrupts,
        )


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return _fit(tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize("index", range(len(SEEDS)))
def test_each_seed_learns_what_it_learns_alone(together, tmp_path, index):
    config = _config(SEEDS[index])
    with Interrupts() as interrupts:
        alone = loop.fit(
            config,
            tiny_task.task(config),
            tmp_path,
            devices=jax.local_devices()[:1],
            interrupts=interrupts,
        )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    norms = [json.loads(line)["grad_norm"] for line in lines]
    assert min(norms) < CLIP < max(norms)
    found = replicas.params_of(together.params, index)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        alone.params,
    )
    other = jax.tree.leaves(replicas.params_of(together.params, 1 - index))
    assert not np.allclose(other[0], jax.tree.leaves(found)[0])


def test_an_interrupted_stack_resumes_to_the_same_state(together, tmp_path):
    stopped = _fit(tmp_path, kill_at=5)
    assert int(stopped.step) < 12
    resumed = _fit(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.params),
        jax.device_get(together.params),
    )


def test_every_device_clips_its_share_by_the_norm_of_the_sum():
    shares = {"a": jnp.arange(24.0).reshape(2, 3, 4) - 11}  # devices, seeds, ...

    def clipped(share):
        _, pull = jax.vjp(lambda p: replicas._clip_gradient(p, 7.0, "devices"), share)
        return pull(share)[0]

    found = jax.vmap(clipped, axis_name="devices")(shares)["a"].sum(0)
    clip = optax.clip_by_global_norm(7.0)
    expected = [clip.update(g, clip.init(g))[0] for g in shares["a"].sum(0)]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-6)
    assert np.linalg.norm(shares["a"].sum(0)[1]) < 7.0  # one seed is left as it is


def test_a_checkpoint_of_other_seeds_is_refused():
    source = replicas.StackedSource([])
    with pytest.raises(UserError, match="trains 2 seeds together"):
        source.restore({"seeds": [{}, {}]})


@pytest.mark.parametrize("key, value", [("rollbacks", 2), ("nan", "skip")])
def test_what_would_tie_seeds_together_is_refused(key, value):
    config = tiny_task.config(**{key: value})
    with pytest.raises(UserError, match=f"train.{key} = "):
        replicas.check_config(config)
    replicas.check_config(tiny_task.config())


def _model_tasks():
    single = task_of(config_of(32))
    return single, replicas.stacked_task([single, single], SEEDS)


def _gradient(task, params, image):
    def loss(params):
        weights = task.weights_at(jnp.zeros((), jnp.int32))
        return task.objective(params, {}, Batch(image=image), weights)

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_the_model_and_its_gradient_can_be_stacked():
    """Traced only: every custom rule on the way knows how to be batched."""
    _, task = _model_tasks()

    def step(image):
        return _gradient(task, task.init(jax.random.key(9)), image)

    image = jax.ShapeDtypeStruct((2, 3, 32, 32, 3), jnp.float32)
    (loss, outputs), grads = jax.eval_shape(step, image)
    assert loss.shape == () and outputs.factors.canon_depth.shape == (6, 32, 32)
    assert all(g.shape[0] == 2 for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_the_models_gradient_is_that_of_each_seed():
    single, task = _model_tasks()
    params = task.init(jax.random.key(9))
    image = jax.random.uniform(jax.random.key(1), (2, 3, 32, 32, 3))
    (total, _), together = jax.jit(functools.partial(_gradient, task))(params, image)
    alone = jax.jit(functools.partial(_gradient, single))
    losses = []
    for index in range(2):
        (loss, _), expected = alone(replicas.params_of(params, index), image[index])
        losses.append(float(loss))
        found = replicas.params_of(together, index)
        for name in expected:
            error = jax.tree.map(jnp.subtract, found[name], expected[name])
            share = optax.global_norm(error) / optax.global_norm(expected[name])
            assert share < 1e-4, name
    np.testing.assert_allclose(total, sum(losses), rtol=1e-5)
