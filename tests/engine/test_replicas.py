"""Seeds trained together learn what each learns alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_task
from bust import config_of, task_of

from unsup3d_jax.engine import checkpoint, loop, replicas
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.packing import unpacked
from unsup3d_jax.engine.task import Session, StepContext, initial_state
from unsup3d_jax.errors import UserError
from unsup3d_jax.formation.types import Batch

# Seeds as one run are a variant of runs one after the other.
pytestmark = pytest.mark.once
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
        return loop.fit(
            Session(_config(), range, interrupts),
            replicas.stacked_task(tasks, SEEDS),
            workdir,
            devices=jax.local_devices()[:devices],
        )


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return _fit(tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize("index", range(len(SEEDS)))
def test_each_seed_learns_what_it_learns_alone(together, tmp_path, index):
    config = _config(SEEDS[index])
    with Interrupts() as interrupts:
        alone = loop.fit(
            Session(config, range, interrupts),
            tiny_task.task(config),
            tmp_path,
            devices=jax.local_devices()[:1],
        )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = map(json.loads, lines)
    norms = [line["grad_norm"] for line in found if line["split"] == "train"]
    assert min(norms) < CLIP < max(norms)
    found = replicas.of_seed(together.parts, index)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        alone.parts,
    )
    other = jax.tree.leaves(replicas.of_seed(together.parts["params"], 1 - index))
    assert not np.allclose(other[0], jax.tree.leaves(found["params"])[0])


def test_an_interrupted_stack_resumes_to_the_same_state(together, tmp_path):
    stopped = _fit(tmp_path, kill_at=5)
    assert int(stopped.step) < 12
    resumed = _fit(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.parts),
        jax.device_get(together.parts),
    )


def test_a_stack_begun_with_one_counter_for_all_goes_on(together, tmp_path):
    """As former versions wrote them: every optimizer counts the same steps."""
    _fit(tmp_path, kill_at=5)
    tasks = [tiny_task.task(_config(seed)) for seed in SEEDS]
    like = initial_state(replicas.stacked_task(tasks, SEEDS), SEEDS[0])
    saver = checkpoint.Checkpoints(tmp_path, keep=2)
    packed, position = saver.restore(like, 5)
    counters = []

    def common(x):
        if x.shape != (len(SEEDS),) or x.dtype != np.int32:
            return x
        counters.append(x)
        return x[0]

    state = unpacked(packed, like)
    saver.delete(5)
    saver.save(state.replace(parts=jax.tree.map(common, state.parts)), position)
    saver.close()
    assert counters
    resumed = _fit(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.parts),
        jax.device_get(together.parts),
    )


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


def _model_step(task, state, image):
    """One step of the real model, or of its stack; learning rate 1."""
    context = StepContext(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        constants=task.constants,
        schedule=task.schedule,
    )
    return task.step(state, Batch(image=image), context)


def _model_tasks():
    single = task_of(config_of(32))
    return single, replicas.stacked_task([single, single], SEEDS)


@pytest.mark.once
def test_the_models_step_can_be_stacked():
    """Traced only: every custom rule on the way knows how to be batched."""
    _, task = _model_tasks()

    def step(image):
        return _model_step(task, task.init(jax.random.key(9)), image)

    image = jax.ShapeDtypeStruct((2, 3, 32, 32, 3), jnp.float32)
    state, metrics = jax.eval_shape(step, image)
    assert metrics["total"].shape == () and metrics["finite"].dtype == bool
    assert all(g.shape[0] == 2 for g in jax.tree.leaves(state))


@pytest.mark.slow
def test_the_models_step_is_that_of_each_seed():
    single, task = _model_tasks()
    state = task.init(jax.random.key(9))
    image = jax.random.uniform(jax.random.key(1), (2, 3, 32, 32, 3))
    together, metrics = jax.jit(lambda s, i: _model_step(task, s, i))(state, image)
    alone = jax.jit(lambda s, i: _model_step(single, s, i))
    totals = []
    for index in range(2):
        start = replicas.of_seed(state, index)
        expected, numbers = alone(start, image[index])
        totals.append(float(numbers["total"]))
        found = replicas.of_seed(together, index)["params"]
        for name, params in expected["params"].items():
            step = jax.tree.map(jnp.subtract, params, start["params"][name])
            error = jax.tree.map(jnp.subtract, found[name], params)
            share = optax.tree.norm(error) / optax.tree.norm(step)
            assert share < 1e-3, name
    np.testing.assert_allclose(metrics["total"], np.mean(totals), rtol=1e-5)
