"""Runs of the tiny task in processes of their own, to be killed by tests.

Processes are forked from a server that has imported JAX but not started it, so
that a life costs a second and not five.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np
import tiny_task
import two_players

from unsup3d_jax import cli
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.source import train_source
from unsup3d_jax.engine import checkpoint, hosts, interrupts, loop, parallel
from unsup3d_jax.engine.log import CLOCK_FIELDS
from unsup3d_jax.engine.task import Session, initial_state
from unsup3d_jax.engine.workdir import lock_workdir
from unsup3d_jax.errors import UserError

STEPS = 60


def config():
    """Sixty steps, a checkpoint every five, an evaluation every ten."""
    c = tiny_task.config(steps=STEPS)
    c.checkpoint.every, c.eval.every, c.checkpoint.keep = 5, 10, 2
    return c


class SlowSource(tiny_task.Source):
    """A few milliseconds a batch, so that a kill can strike between steps."""

    def __next__(self):
        time.sleep(0.003)
        return super().__next__()


def task(c, workdir: Path, evaluation: float = 0.05):
    def validate(parts, step):
        (workdir / "evaluating").touch()
        time.sleep(evaluation)
        (workdir / "evaluating").unlink()
        return {"total": float(np.abs(parts["params"]["view"]["w"]).sum())}

    return tiny_task.task(
        c,
        validate=validate,
        make_source=lambda devices: SlowSource(devices, c.train.batch_size),
    )


def fit(workdir: Path, c=None, the_task=None, deadline=30.0):
    """`loop.fit` on one device, under the lock of the workdir."""
    c = c or config()
    with interrupts.Interrupts(deadline) as now, lock_workdir(workdir):
        return loop.fit(
            session(c, now),
            the_task or task(c, workdir),
            workdir,
            devices=parallel.local_devices(c)[:1],
        )


def session(c, now):
    """Of a task that brings its own data."""
    return Session(c, lambda split: range(c.train.batch_size), now)


def numbered(count: int, read, *, workers: int) -> ds.Dataset:
    """Photos called 0, 1, ... that `read` makes when they are asked for."""
    return ds.Dataset(
        arrays={},
        report=ds.Report("folder", "train", "", count),
        digest="numbers",
        items=tuple(ds.Item(str(i), (str(i),)) for i in range(count)),
        read=read,
        workers=workers,
    )


# --- what a life does -------------------------------------------------------------


def live(workdir: Path) -> None:
    workdir.mkdir(exist_ok=True)
    (workdir / "evaluating").unlink(missing_ok=True)
    (workdir / "alive").touch()
    fit(workdir)
    (workdir / "finished").touch()


def play(workdir: Path, devices: int) -> None:
    """Trains the two players on some devices of this process, or resumes."""
    jax.config.update("jax_num_cpu_devices", devices)
    c = config()
    made = two_players.task(c, SlowSource)
    with interrupts.Interrupts() as now, lock_workdir(workdir):
        loop.fit(session(c, now), made, workdir, devices=parallel.local_devices(c))
    (workdir / "finished").touch()


def burn_cpu_in_c(marker: Path) -> None:
    """Minutes in C, without the interpreter: no signal handler can run.

    The marker appears once this thread has burnt a tenth of a second there, so
    that no signal sent on sight of it can strike before the call into C.
    """
    clock = time.pthread_getcpuclockid(threading.get_ident())
    start = time.clock_gettime(clock)

    def mark() -> None:
        while time.clock_gettime(clock) < start + 0.1:
            time.sleep(0.01)
        marker.touch()

    threading.Thread(target=mark, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


def compile_for_ever(workdir: Path) -> None:
    """As XLA does with a large model, for all that a signal can see."""
    interrupts.GRACE = 0.2

    def objective(*args, **kwargs):
        burn_cpu_in_c(workdir / "compiling")

    fit(workdir, the_task=tiny_task.task(config(), objective=objective))


def wait_for_data_for_ever(workdir: Path) -> None:
    class Stuck(tiny_task.Source):
        def __next__(self):
            if self.position == 7:
                burn_cpu_in_c(workdir / "waiting")
            return super().__next__()

    made = tiny_task.task(config(), make_source=lambda devices: Stuck(devices, 8))
    fit(workdir, the_task=made, deadline=0.5)


def wait_in_vain(workdir: Path) -> None:
    """Whether something is unsaved cannot be told, as where a disk is gone."""

    def unsaved():
        raise OSError("stale file handle")

    with interrupts.Interrupts(deadline=0.3) as now, now.deferred(unsaved):
        burn_cpu_in_c(workdir / "waiting")


def fill_the_disk(workdir: Path, answer: Path) -> None:
    """Trains on a disk that is full at step 7, then with room again."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x00020000, 1 << 18 | 1 << 14
    workdir.mkdir()
    if (
        libc.unshare(new_namespace)
        or libc.mount(None, b"/", None, private, None)
        or libc.mount(b"tmpfs", os.fsencode(workdir), b"tmpfs", 0, b"size=1m")
    ):
        answer.write_text(json.dumps({"skip": os.strerror(ctypes.get_errno())}))
        return
    ballast = workdir / "ballast"

    class Filling(SlowSource):
        def __next__(self):
            if self.position == 7 and not ballast.exists():
                wait_until((workdir / "checkpoints" / "5").exists)  # in the background
                with contextlib.suppress(OSError), open(ballast, "wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
            return super().__next__()

    c = config()
    made = tiny_task.task(c, make_source=lambda devices: Filling(devices, 8))
    made = dataclasses.replace(made, validate=task(c, workdir).validate)
    error = ""
    try:
        fit(workdir, the_task=made)
    except UserError as refusal:
        error = str(refusal)
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")
                   if p.name.isdigit())  # fmt: skip
    ballast.unlink()
    fit(workdir)
    answer.write_text(
        json.dumps({"error": error, "steps": steps, "outcome": outcome(workdir)})
    )


def host(
    workdir: Path,
    steps: int,
    port: int,
    count: int,
    index: int,
    seconds: float = 0.003,
    evaluation: float = 0.05,
) -> None:
    """One of `count` processes with two devices each that train together.

    Through the real pipeline, reading examples on the way, and noting which.

    Args:
        seconds: that a batch takes at least.
        evaluation: that an evaluation takes.
    """
    interrupts.GRACE = 0.3  # less than what the tests make a process wait for
    jax.config.update("jax_num_cpu_devices", 2 if count > 1 else 1)
    if count > 1:
        hosts.HEARTBEAT_SECONDS = 10
        hosts.join(hosts.Cluster(f"127.0.0.1:{port}", count, index))
    c = config()
    c.train.steps = steps
    read = []

    def read_item(item):
        read.append(int(item.name))
        rng = np.random.default_rng(int(item.name))
        return {"image": rng.integers(0, 256, (8, 8, 3), np.uint8)}, (8, 8)

    data = numbered(50, read_item, workers=1)

    def make_source(devices):
        source = train_source(data, c, fields=("image",), devices=devices, seed=0)
        read.clear()  # it has looked at one example
        original = type(source).__next__

        class Slow(type(source)):
            def __next__(self):
                time.sleep(seconds)
                return original(self)

        source.__class__ = Slow
        return source

    the_task = dataclasses.replace(
        task(c, workdir, evaluation), make_source=make_source
    )
    if index == 0:
        workdir.mkdir(exist_ok=True)
        (workdir / "evaluating").unlink(missing_ok=True)
    status = 0
    try:
        with interrupts.Interrupts() as now:
            devices = parallel.run_devices(c)
            loop.fit(session(c, now), the_task, workdir, devices=devices)
    except (Exception, interrupts.Interrupted) as error:  # as main.py does
        message, status = cli.ending(error)
        print(message or traceback.format_exc(), file=sys.stderr, flush=True)
        if count > 1:
            hosts.leave_at_once(status)
    Path(f"{workdir}.read{index}").write_text(json.dumps(read))
    if count > 1:  # as at the exit of a program; a forked child skips it
        jax.distributed.shutdown()
    sys.exit(status)


# --- seen from outside --------------------------------------------------------------


def start(target, *args) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lives"])
    process = context.Process(target=_quietly, args=(target, *args), daemon=True)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the server's imports
    try:
        process.start()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return process


def _quietly(target, workdir, *args) -> None:
    jax.config.update("jax_platforms", "cpu")
    with open(f"{workdir}.err", "a") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    target(workdir, *args)


def wait_until(condition, process=None, seconds=120.0) -> bool:
    """Whether the condition came true while the process lived."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and not process.is_alive():
            return False
        if time.monotonic() > end:
            raise TimeoutError(str(condition))
        time.sleep(0.001)
    return True


def kill(process) -> bool:
    """Ends a process at once; False if it had ended by itself."""
    process.kill()  # does nothing to one that has ended
    process.join()
    return process.exitcode == -signal.SIGKILL


def outcome(workdir: Path, step: int = STEPS, the_task=None) -> dict:
    """Everything that must be bit-equal: the last state and the lines."""
    like = jax.eval_shape(
        lambda: initial_state(the_task or tiny_task.task(config()), 0)
    )
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    try:
        packed, position = checkpoints.restore(like, step)
        steps = checkpoints.steps()
    finally:
        checkpoints.close()
    lines = lines_of(workdir)
    return {
        "state": [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(packed)],
        "position": position,
        "steps": steps,
        "lines": lines,
    }


def lines_of(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in x.items() if k not in CLOCK_FIELDS} for x in lines]
