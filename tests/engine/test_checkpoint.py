"""Saving, restoring, keeping, refusing."""

import asyncio
import functools
import gc
import json
import os
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_task
from PIL import Image

from configs import default
from unsup3d_jax.data.load import load_split
from unsup3d_jax.engine import checkpoint, gradient_step, packing, workdir
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import RunState
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d.task import IDENTITY


def _state(step=0, value=1.0, optimizer="adam"):
    config = tiny_task.config()
    config.train.optimizer = optimizer
    optimizer = optimizers.make_optimizer(config)
    params = tiny_task.init(jax.random.key(0))
    params["view"]["kernel"] = jnp.ones((1, 1, 3, 2))
    params = jax.tree.map(lambda x: x + value, params)
    parts = gradient_step.init(params, optimizer)
    return RunState(jnp.int32(step), jax.random.key(7), parts)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_everything_comes_back(tmp_path, optimizer):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    state = _state(3, optimizer=optimizer)
    checkpoints.save(state, {"step": 3, "digest": "ab"})
    checkpoints.wait()
    other = _state(0, value=5.0, optimizer=optimizer)
    packed, position = checkpoints.restore(other, 3)
    back = packing.unpacked(packed, other)
    assert position == {"step": 3, "digest": "ab"}
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(state) == jax.tree.structure(back)
    parts, step = checkpoint.load_parts(tmp_path)
    assert step == 3 and parts.keys() == {"params"}
    found, expected = (x["params"]["view"]["w"] for x in (parts, state.parts))
    np.testing.assert_array_equal(found, expected)
    again, _ = checkpoint.load_parts(tmp_path / "checkpoints" / "3")
    assert again["params"].keys() == parts["params"].keys()
    with pytest.raises(UserError, match="no 'generator'"):
        checkpoint.load_parts(tmp_path, ("generator",))


def test_the_host_copy_leaves_the_state_to_be_donated():
    """The next step may overwrite the state while the save is still going on."""
    state = _state(1)
    expected = np.array(state.parts["params"]["view"]["w"])
    host = packing.to_host(state)
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 - 9.0, s), donate_argnums=0
    )
    overwrite(state.parts)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.parts))
    np.testing.assert_array_equal(host["params"]["view"]["w"], expected)


def test_a_state_that_is_not_finite_is_never_written(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    state = _state(1)
    bad = jax.tree.map(lambda x: x * jnp.nan, state.parts)
    with pytest.raises(FloatingPointError):
        checkpoints.save(state.replace(parts=bad), {})
    assert checkpoints.steps() == []


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for step, loss in enumerate([0.3, 0.1, None, 0.2, None], start=1):
        checkpoints.save(_state(step), {})
        if loss is not None:  # an evaluation follows the save of its step
            checkpoints.losses[step] = loss
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert workdir.newest_step(tmp_path) == 5


def test_half_a_checkpoint_does_not_count(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(_state(1), {})
    checkpoints.close()
    whole = tmp_path / "checkpoints" / "1"
    whole.rename(tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp")
    assert workdir.newest_step(tmp_path) is None
    assert checkpoint.Checkpoints(tmp_path, keep=2).steps() == []


@pytest.mark.parametrize("difference", ["shape", "missing", "more", "optimizer"])
def test_another_model_is_refused_and_its_checkpoint_stays(tmp_path, difference):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(_state(1), {})
    checkpoints.wait()
    other = _state(optimizer="muon" if difference == "optimizer" else "adam")
    params = other.parts["params"]
    view = dict(params["view"])
    if difference == "shape":
        view["w"] = jnp.zeros(5)
    elif difference == "missing":
        del view["kernel"]
    elif difference == "more":
        view["more"] = jnp.zeros(2)
    parts = other.parts | {"params": params | {"view": view}}
    other = other.replace(parts=parts)
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.restore_newest(other)
    assert checkpoints.steps() == [1]


def test_meaning_of_parameters_is_checked(tmp_path):
    config = tiny_task.config()
    workdir.claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)
    config.data.path = "elsewhere"  # other photos, same model
    workdir.check_meaning(config, tmp_path, IDENTITY)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["compat"]["joint_mask"]  # as if the option were new
    path.write_text(json.dumps(record))
    workdir.check_meaning(config, tmp_path, IDENTITY)
    config.view.rotation_max_deg = 30.0
    with pytest.raises(UserError, match="view.rotation_max_deg"):
        workdir.check_meaning(config, tmp_path, IDENTITY)
    with pytest.raises(UserError, match="view.rotation_max_deg"):
        workdir.check_meaning(config, tmp_path / "checkpoints" / "5", IDENTITY)


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint_is_said(tmp_path, exists):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load_parts(tmp_path if exists else tmp_path / "nowhere")


def test_differing_keys_are_named_and_harmless_ones_are_not():
    old = tiny_task.config().to_dict()
    config = tiny_task.config()
    config.loss.flip, config.log.every, config.train.devices = 0.25, 7, 2
    assert workdir.differing_keys(old, config.to_dict(), IDENTITY) == [
        "loss.flip (0.5 there, 0.25 now)"
    ]
    del old["loss"]["flip"], old["export"]  # which is younger, and trains nothing
    (text,) = workdir.differing_keys(old, config.to_dict(), IDENTITY)
    assert text == "loss.flip (absent there, 0.25 now)"


def test_other_packages_than_before_are_said_once(tmp_path, capfd, monkeypatch):
    config, versions = tiny_task.config(), {"jaxlib": "1.0", "numba": "2.0"}
    monkeypatch.setattr(workdir, "_version", versions.get)

    def claimed():
        workdir.claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)
        return capfd.readouterr().err

    assert claimed() == ""
    versions["jaxlib"] = "1.1"
    assert claimed() == ""  # nothing has been trained yet
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    versions["jaxlib"] = "1.2"
    del versions["numba"]
    text = claimed()
    assert "jaxlib was 1.1 and is 1.2, numba was 2.0 and is absent" in text
    assert "not bit for bit" in text and claimed() == ""
    record = json.loads((tmp_path / "config.json").read_text())
    del record["versions"]["numba"]  # as former versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert claimed() == ""


def test_photos_may_move(tmp_path):
    """Their fingerprint, in every checkpoint, tells others from the same."""
    config = tiny_task.config()
    config.data.path = "photos"
    workdir.claim_workdir(tmp_path, config, jax.local_devices(), IDENTITY)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    config.data.path = "/disk/photos/"
    workdir.check_workdir(tmp_path, config, IDENTITY)
    config.data.image_size = 32
    with pytest.raises(UserError, match="data.image_size"):
        workdir.check_workdir(tmp_path, config, IDENTITY)


def test_the_fingerprint_of_photos_does_not_depend_on_their_folder(tmp_path):
    config = tiny_task.config()
    config.data.min_images, config.data.image_size = 1, 8
    config.data.split, config.data.hash_split_percent = "hash", (100, 0, 0)
    config.data.cache_dir = str(tmp_path / "cache")

    def digest(name, more):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(3):
            pixels = np.full((9 + more, 9, 3), i, np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        config.data.path = str(folder)
        return load_split(config, "train").digest

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"config": []}', "null", "[" * 100_000, "\udcff"]
)
def test_a_config_of_a_run_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    file = tmp_path / "config.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    config = default.get_config()
    for look in (
        lambda: workdir.check_workdir(tmp_path, config, IDENTITY),
        lambda: workdir.check_meaning(config, tmp_path, IDENTITY),
    ):
        with pytest.raises(UserError, match="is not the config of a run"):
            look()
    assert workdir._other_versions(tmp_path, {}) == []


def test_a_folder_with_a_raised_digit_for_a_name_is_no_checkpoint(tmp_path):
    for name in ("5", "²", "٣", "7.part"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert workdir.checkpoint_steps(tmp_path) == [5]


@pytest.mark.parametrize(
    "damage, words",
    [
        ("largest", "OUT_OF_RANGE: Error reading"),
        ("state/_METADATA", "the list of its arrays cannot be read"),
    ],
)
def test_damage_is_said_in_one_line_and_no_trace(
    tmp_path, damage, words, capfd, monkeypatch
):
    """Arrays are read side by side: those behind the damaged one come too late."""
    traces = []
    monkeypatch.setattr(sys, "unraisablehook", traces.append)
    checkpoints, state = checkpoint.Checkpoints(tmp_path, keep=2), _state(1)
    rng = np.random.default_rng(0)
    more = {f"{n}": rng.random(50_000, np.float32) for n in range(20)}
    state = state.replace(parts=state.parts | {"params": state.parts["params"] | more})
    checkpoints.save(state, {})
    checkpoints.wait()
    folder = tmp_path / "checkpoints" / "1"
    file = folder / damage
    if damage == "largest":
        files = [p for p in folder.rglob("*") if p.is_file()]
        file = max(files, key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    for place in (tmp_path, folder):
        with pytest.raises(UserError, match=f"1 is damaged.*{words}.*an earlier"):
            checkpoint.load_parts(place)
    with pytest.raises(UserError, match=f"can be read; 1: .*{words}"):
        checkpoints.restore_newest(state)
    checkpoints.close()
    gc.collect()
    time.sleep(0.2)  # what comes late
    assert capfd.readouterr().err == "" and not traces


def test_a_file_that_may_not_grow_is_said_by_the_system(tmp_path):
    error = ValueError('Error writing "key/0": [OS error 27: File too large]')
    assert checkpoint._why(error) == "File too large"


def test_arrays_that_come_when_interrupts_are_over_are_not_printed(monkeypatch):
    """The process may go on after a run that failed, as in mode tables."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed") as late:
        loop.call_soon_threadsafe(print)
    trace = late.value.__traceback__
    assert trace is not None and trace.tb_next is not None
    dropped = types.SimpleNamespace(
        exc_type=RuntimeError, exc_value=late.value, exc_traceback=trace.tb_next
    )
    for _ in range(3):
        with Interrupts():
            checkpoint._quiet()
        sys.unraisablehook(dropped)
        assert not seen
    # Once is enough, and others are still printed.
    hook, count = sys.unraisablehook, 0
    while hook != seen.append:
        count += isinstance(hook, checkpoint._WithoutLateArrays)
        hook = getattr(hook, "_other", None) or Interrupts.below(hook)
    assert count == 1
    other = types.SimpleNamespace(
        exc_type=ValueError, exc_value=ValueError(), exc_traceback=None
    )
    sys.unraisablehook(other)
    assert seen == [other]


def test_only_arrays_that_come_late_are_not_printed():
    seen = []
    hook = checkpoint._WithoutLateArrays(seen.append)
    loop = asyncio.new_event_loop()
    loop.close()
    try:
        loop.call_soon_threadsafe(print)
    except RuntimeError as error:
        raised = error
    trace = raised.__traceback__  # which begins in this test
    named = functools.partial(types.SimpleNamespace, exc_value=raised)
    hook(named(exc_type=RuntimeError, exc_traceback=trace))
    hook(named(exc_type=RuntimeError, exc_traceback=None))
    assert len(seen) == 2
    hook(named(exc_type=RuntimeError, exc_traceback=trace.tb_next))
    assert len(seen) == 2


@pytest.mark.parametrize("module, said", [("orbax.writing", 0), ("another", 1)])
def test_only_failures_of_arrays_that_nobody_waits_for_are_not_logged(
    module, said, caplog
):
    checkpoint._quiet()
    scope = {"__name__": module}
    exec("async def write():\n    raise ValueError('No space left')", scope)

    async def leave():
        asyncio.get_running_loop().create_task(scope["write"]())
        await asyncio.sleep(0)

    asyncio.run(leave())
    gc.collect()
    lines = [r for r in caplog.records if "never retrieved" in r.getMessage()]
    assert len(lines) == said
