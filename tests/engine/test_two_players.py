"""Nothing of a state is the engine's business: any task is resumed to the bit."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import lives
import numpy as np
import pytest
import two_players

from unsup3d_jax.engine import checkpoint, loop
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.packing import packed, unpacked
from unsup3d_jax.engine.task import initial_state

TASK = two_players.task(lives.config())


def _lived(workdir: Path, devices: int) -> Path:
    """A run that comes to its end, from wherever it stands."""
    process = lives.start(lives.play, workdir, devices)
    process.join(120)
    assert (workdir / "finished").exists(), Path(f"{workdir}.err").read_text()
    return workdir


def _killed(workdir: Path, devices: int, checkpoint_step: int) -> None:
    """Once the checkpoint is there; the steps behind it are lost."""
    process = lives.start(lives.play, workdir, devices)
    folder = workdir / "checkpoints" / str(checkpoint_step)
    assert lives.wait_until(folder.exists, process)
    assert lives.kill(process)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """devices -> workdir of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    return functools.cache(lambda count: _lived(folder / str(count), count))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.once), 2])
def test_killed_twice_it_comes_to_the_same_end(tmp_path, straight, devices):
    workdir = tmp_path / "run"
    for step in (10, 35):
        _killed(workdir, devices, step)
    _lived(workdir, devices)
    found, expected = (
        lives.outcome(w, the_task=TASK) for w in (workdir, straight(devices))
    )
    assert found == expected


def _last(workdir: Path) -> dict:
    like = jax.eval_shape(lambda: initial_state(TASK, 0))
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    try:
        return checkpoints.restore(like, lives.STEPS)[0]
    finally:
        checkpoints.close()


@pytest.mark.once
def test_it_moves_from_two_devices_to_one(tmp_path, straight):
    """To the rounding of another program; keys and counters to the bit."""
    workdir = tmp_path / "run"
    _killed(workdir, 2, 20)
    _lived(workdir, 1)
    found, expected = _last(workdir), _last(straight(1))
    for key in ("key", "dice", "flags", "step"):
        jax.tree.map(np.testing.assert_array_equal, found[key], expected[key])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


def test_every_part_takes_part():
    """Else its resumption would show nothing."""
    config = lives.config()
    config.train.steps = 6
    start = initial_state(TASK, config.seed)

    @jax.jit
    def advance(state, batch):
        keys = []

        def watched(state, batch, context):
            keys.append(context.key)
            return two_players.step(state, batch, context)

        state, _ = loop.parallel.advance(
            state,
            batch,
            TASK.constants,
            TASK.schedule,
            task=two_players.task(config, step=watched),
        )
        return state, keys[0]

    source = two_players.tiny_task.Source(jax.local_devices()[:1], 8)
    state, seen, context_keys = start, [], []
    for number in range(4):
        batch = jax.tree.map(lambda x: x[0], next(source))
        state, key = advance(state, batch)
        context_keys.append(key)
        seen.append(packed(state))
        assert int(state.step) == number + 1
    assert len({str(jax.random.key_data(key)) for key in context_keys}) == 4
    before = packed(start)
    for part in before.keys() - {"key"}:
        leaves = zip(
            jax.tree.leaves(before[part]), jax.tree.leaves(seen[-1][part]), strict=True
        )
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in leaves), part
    # In turn: one player rests while the other moves.
    for number, (a, b) in enumerate(zip([before, *seen], seen, strict=False)):
        moves = {
            name: not np.array_equal(a[name]["w"], b[name]["w"])
            for name in ("generator", "discriminator")
        }
        assert moves == {"generator": number % 2 == 1, "discriminator": number % 2 == 0}


def test_typed_keys_come_back_as_keys():
    state = initial_state(TASK, 3)
    back = unpacked(jax.device_get(packed(state)), state)
    assert jnp.issubdtype(back.parts["dice"].dtype, jax.dtypes.prng_key)
    for a, b in zip(two_players.leaves(state), two_players.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)
    assert back.parts["flags"]["turns"].dtype == np.int8


def test_a_stop_is_saved_with_all_parts(tmp_path):
    config = lives.config()
    config.train.steps = 12

    class Stopping(two_players.tiny_task.Source):
        def __init__(self, devices, batch_size):
            super().__init__(devices, batch_size, kill_at=5)

    with Interrupts() as now:
        state = loop.fit(
            lives.session(config, now),
            two_players.task(config, Stopping),
            tmp_path,
            devices=jax.local_devices()[:1],
        )
    assert int(state.step) == 5
    parts, step = checkpoint.load_parts(tmp_path, ("generator", "average"))
    assert step == 5
    np.testing.assert_array_equal(parts["average"]["w"], state.parts["average"]["w"])
