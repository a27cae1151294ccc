"""Two real processes of two devices each, over gloo on the loopback."""

import json
import os
import random
import signal
import socket
from pathlib import Path

import jax
import lives
import numpy as np
import pytest

from unsup3d_jax import cli
from unsup3d_jax.engine import hosts
from unsup3d_jax.engine import workdir as workdirs
from unsup3d_jax.errors import UserError

STEPS = 20
BOUND = 90  # seconds in which a process notices that another is gone


def _start(workdir: Path, steps: int, count: int, *seconds: float) -> list:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        lives.start(lives.host, workdir, steps, port, count, index, *seconds)
        for index in range(count)
    ]


def _train(workdir: Path, steps: int, count: int) -> None:
    processes = _start(workdir, steps, count)
    for process in processes:
        process.join(120)
    text = Path(f"{workdir}.err").read_text()
    assert [process.exitcode for process in processes] == [0] * count, text


def _assert_close(a: list[dict], b: list[dict]) -> None:
    """Lines of two runs: float32 rounding of sums in another order, grown by
    the steps between. Spreads of the viewpoint are roots of differences of
    moments, of some 100 square degrees: only their squares are so exact.
    """
    assert [(x["step"], x["split"]) for x in a] == [(x["step"], x["split"]) for x in b]
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x.keys() - {"step", "split"}:
            if key.startswith("view_std"):
                assert x[key] ** 2 == pytest.approx(y[key] ** 2, rel=1e-3, abs=1e-4)
            else:
                assert x[key] == pytest.approx(y[key], rel=1e-4, abs=1e-5), key


def _assert_each_step_once(workdir: Path, last: int) -> None:
    steps = [x["step"] for x in lives.lines_of(workdir) if x["split"] == "train"]
    # The last step of a run has a line; the one that it was left at needs none.
    lines = [1, *range(2, last + 1, 2)]
    assert steps in (lines, sorted({*lines, last}))


def _images_read(workdir: Path, count: int) -> list[list[int]]:
    return [json.loads(Path(f"{workdir}.read{i}").read_text()) for i in range(count)]


@pytest.mark.once  # six processes compile
def test_two_processes_one_and_two_again_take_the_steps_of_one(tmp_path):
    straight, mixed = tmp_path / "straight", tmp_path / "mixed"
    _train(straight, STEPS, 1)
    (whole,) = _images_read(straight, 1)
    _train(mixed, 10, 2)
    parts = _images_read(mixed, 2)
    for step in range(10):  # 8 images a step, 4 of them each
        a, b = (part[4 * step : 4 * step + 4] for part in parts)
        assert sorted(a + b) == sorted(whole[8 * step : 8 * step + 8])
    _train(mixed, 16, 1)  # from the checkpoint that two have made
    _train(mixed, STEPS, 2)
    _assert_close(
        [x for x in lives.lines_of(mixed) if x["split"] == "train"],
        [x for x in lives.lines_of(straight) if x["split"] == "train"],
    )


def _terminate(processes: list) -> None:
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)


def _assert_left(processes: list, workdir: Path) -> int:
    """Both have left in peace; returns the step that is saved."""
    for process in processes:
        process.join(60)
    text = Path(f"{workdir}.err").read_text()
    assert [process.exitcode for process in processes] == [0, 0], text
    newest = workdirs.newest_step(workdir)
    assert newest is not None
    _assert_each_step_once(workdir, newest)
    return newest


def test_signals_to_both_stop_them_at_one_step(tmp_path):
    """As SLURM sends them; the step is further away than the grace."""
    workdir = tmp_path / "run"
    processes = _start(workdir, 2000, 2, 0.1)
    assert lives.wait_until((workdir / "metrics.jsonl").exists, processes[0])
    _terminate(processes)
    assert _assert_left(processes, workdir) > 0


def test_a_signal_to_one_ends_the_evaluation_of_the_other(tmp_path):
    workdir = tmp_path / "run"
    processes = _start(workdir, 2000, 2, 0.003, 30.0)
    assert lives.wait_until((workdir / "evaluating").exists, processes[0])
    _terminate(processes[1:])
    assert _assert_left(processes, workdir) == 10


@pytest.mark.once
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_dies_the_other_leaves_and_the_run_resumes(tmp_path, victim):
    workdir = tmp_path / "run"
    processes = _start(workdir, 2000, 2)
    ready = workdir / "checkpoints" / "5"
    assert lives.wait_until(ready.exists, processes[0])
    lives.kill(processes[victim])
    other = processes[1 - victim]
    other.join(BOUND)
    text = Path(f"{workdir}.err").read_text()
    assert other.exitcode not in (None, 0), text
    # Ours if a collective fails, JAX's if it hangs until the heartbeats tell.
    assert "another process of this run is gone" in text or "task died" in text
    newest = workdirs.newest_step(workdir)
    assert newest is not None
    _train(workdir, newest + 4, 2)
    _assert_each_step_once(workdir, newest + 4)


# --- agreeing, without devices ---------------------------------------------------


class _Store(dict):
    """What the coordination service does with keys."""

    def key_value_set(self, key, value):
        if key in self:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self[key] = value

    def key_value_try_get(self, key):
        if key not in self:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self[key]


@pytest.mark.parametrize("seed", range(50))
def test_all_leave_at_one_step_whatever_runs_first(monkeypatch, seed):
    """As the loop does it: one step, one look, and at step 16 another pace."""
    monkeypatch.setattr(hosts.Hosts, "_store", _Store())
    dice = random.Random(seed)
    count, pace = 3, dice.choice([1, 2, 4, 8])
    who, when = dice.randrange(count), dice.randrange(60)
    all_hosts, steps, left = [], [0] * count, [None] * count
    for index in range(count):
        one = hosts.Hosts()
        one.count, one.index, one._prefix = count, index, f"{seed}"
        all_hosts.append(one)
    while None in left:
        # A process that looks has seen step `steps - pace` finished, by all.
        ready = [
            i
            for i, one in enumerate(all_hosts)
            if left[i] is None and steps[i] - one.pace <= min(steps)
            if not (steps[i] == 16 and one.pace == 1 and min(steps) < 16)
        ]
        i = dice.choice(ready)
        one = all_hosts[i]
        if steps[i] == 16:
            one.pace = pace
        wish = "stop" if i == who and steps[i] >= when else None
        if one.leave_at(steps[i], wish):
            left[i] = steps[i]
        else:
            steps[i] += 1
    assert len(set(left)) == 1 and when < left[0] <= when + 2 * pace + 1


def test_slow_steps_leave_few_to_wait_for():
    def paces(*seconds):
        return [hosts.pace_of(s, 30.0, 8) for s in seconds]

    assert paces(0.0, 0.6, 1.0, 2.0, 5.0, 60.0) == [8, 8, 4, 2, 1, 1]


# --- alone --------------------------------------------------------------------------


def test_one_process_agrees_with_itself():
    alone = hosts.Hosts()
    assert alone.first and alone.count == 1
    assert alone.from_first(lambda: {"a": 1}) == {"a": 1}
    assert alone.leave_at(3, None) is None and alone.leave_at(3, "stop") == "stop"
    tree = {"x": np.array([-0.0, 1e-45], np.float32)}
    assert alone.broadcast(tree) is tree


def test_a_coordinator_that_does_not_answer_is_said(monkeypatch):
    def initialize(*_, **__):
        raise RuntimeError("connection timed out")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    before = jax.config.values["jax_cpu_collectives_implementation"]
    try:
        with pytest.raises(UserError, match="--coordinator=HOST:PORT"):
            hosts.join(hosts.Cluster("nowhere:1", 2, 1))
    finally:
        jax.config.update("jax_cpu_collectives_implementation", before)


def test_a_port_that_is_taken_is_said():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}"):
            hosts.join(hosts.Cluster(f"localhost:{port}", 2, 0))


def test_what_is_said_of_a_lost_host_names_the_way_on():
    message, status = cli.ending(hosts.HostLost("connection reset"))
    assert status == 1 and message and "start all processes again" in message
