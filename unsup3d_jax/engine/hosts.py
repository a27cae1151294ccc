"""Several processes, one run: who writes, what all agree on, when to leave.

Every process runs the same program on its own devices. Gradients meet inside
the step; everything else that must be equal goes through the key-value store of
JAX's coordination service, which needs no device. Only the first process
touches the workdir, so the others need not even see that disk.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.errors import UserError

LISTEN_SECONDS = 0.2  # how often an evaluation asks whether others want to stop
HEARTBEAT_SECONDS = 60  # a silent process is given up after so long


class HostLost(Exception):
    """Another process of the run died, or cannot be reached."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the processes of a run find each other.

    Attributes:
        coordinator: host:port of the first process; None: from the environment
            (TPU pods, SLURM, Open MPI, Kubernetes), as are the others.
        processes: how many there are.
        process: number of this one, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def join(cluster: Cluster) -> None:
    """Joins the processes of a run; before anything else asks JAX for devices.

    Raises:
        UserError: if the others cannot be found, or the addresses make no sense.
    """
    if cluster.coordinator is not None and cluster.process == 0:
        _check_port(cluster.coordinator)
    # Its C++ handler would take SIGTERM away from `interrupts`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"cannot join the processes of this run ({error}). Give --coordinator="
            "HOST:PORT --processes=N --process=I, or --distributed on a TPU pod, "
            "SLURM or Open MPI."
        ) from error


def _check_port(coordinator: str) -> None:
    """Looks whether this process can listen there, as the C++ code dies if not.

    Raises:
        UserError: if another program does.
    """
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        # As a server does, which may take over a port that was closed just now.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator={coordinator}: process 0 cannot listen on port {port} "
                f"({error.strerror}); choose a free one, the same for all processes."
            ) from error


def leave_at_once(status: int) -> NoReturn:
    """Ends this process without waiting for the others.

    The shutdown of `jax.distributed` is a barrier; with a process missing it
    would wait for minutes and then abort with a C++ trace.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Hosts:
    """The processes of a run, seen from one of them.

    With one process everything here returns at once. All processes must make
    the same calls in the same order.

    Attributes:
        pace: how many steps the host may dispatch beyond those that it has seen
            finished; and each so many steps, processes look whether one of them
            wants to leave. See `leave_at` for when it may change.
    """

    # Tells runs of one process apart (a baseline is a run of its own).
    _runs = itertools.count()

    def __init__(self):
        self.count, self.index = jax.process_count(), jax.process_index()
        self.first = self.index == 0
        self._prefix = f"unsup3d/{next(Hosts._runs)}"
        self._calls = itertools.count()
        self._round = 0
        self._agreed: tuple[int, str] | None = None
        self.pace = 1

    @property
    def _store(self) -> Any:
        # JAX has no public name for its client; flax and orbax use this one.
        from jax._src import distributed

        return distributed.global_state.client

    def _get(self, key: str) -> str | None:
        try:
            return self._store.key_value_try_get(f"{self._prefix}/{key}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise HostLost(str(error)) from error

    def from_first(
        self, make: Callable[[], Any], *, waiting: Callable[[], None] = lambda: None
    ) -> Any:
        """What `make` returns, or raises, in the first process.

        Args:
            make: returns something JSON-able; called in the first process only.
            waiting: called in the others, again and again while they wait.

        Raises:
            UserError: with the first process's message, if it raised one.
            Interrupted: if it was.
            HostLost: if it raised anything else.
        """
        if self.count == 1:
            return make()
        key = f"call/{next(self._calls)}"
        if self.first:
            answer: dict[str, Any] = {"lost": True}
            try:
                answer = {"value": make()}
                return answer["value"]
            except UserError as error:
                answer = {"user_error": str(error)}
                raise
            except Interrupted:
                answer = {"interrupted": True}
                raise
            finally:
                self._store.key_value_set(f"{self._prefix}/{key}", json.dumps(answer))
        # Polled, because a signal handler cannot run inside a blocking call.
        while (text := self._get(key)) is None:
            waiting()
            time.sleep(0.02)
        answer = json.loads(text)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "interrupted" in answer:
            raise Interrupted
        if "lost" in answer:
            raise HostLost("the first process failed")
        return answer["value"]

    def broadcast(self, tree: Any) -> Any:
        """The first process's host arrays, of any numbers, in all processes.

        They travel as integers: a sum of floats with zeros would turn -0 to 0,
        and on some devices denormal numbers as well.
        """
        if self.count == 1:
            return tree
        words = jax.tree.map(_as_words, tree)
        shared = multihost_utils.broadcast_one_to_all(words, is_source=self.first)
        return jax.tree.map(_of_words, shared, tree)

    def leave_at(self, step: int, wish: str | None) -> str | None:
        """The reason to leave the loop before the next step, agreed by all.

        Args:
            step: steps dispatched so far.
            wish: this process's reason to leave, if it has one.

        A wish at step s is granted at the first multiple of `pace` from
        s + pace + 1 on. No process can be beyond it yet: to go beyond s + pace it
        must have seen step s + 1 finished, which this one has yet to begin. And
        each sees the wish when it gets there, since by then it has seen step
        s + 1 finished, which this one began after writing the wish down.

        So for one pace; it may grow where all have seen finished all steps that
        any has dispatched, at a multiple of every pace, and there they look. A
        wish from before is then written down; one after it knows the new pace.
        """
        if self.count == 1:
            return wish
        if wish is not None:
            self.ask_to_leave(step, wish)
        if self._agreed is None and step % self.pace == 0:
            self._agreed = self._asked()
        if self._agreed is None or step < self._agreed[0]:
            return None
        return self._agreed[1]

    def ask_to_leave(self, step: int, wish: str) -> None:
        """Writes a wish down, unless there is one; the first one counts."""
        if self._agreed is not None:
            return
        place = (step + self.pace) // self.pace * self.pace + self.pace
        try:
            self._store.key_value_set(self._leave_key(), json.dumps([place, wish]))
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise HostLost(str(error)) from error
        self._agreed = self._asked()

    @contextlib.contextmanager
    def listening(self, act: Callable[[], None]) -> Iterator[None]:
        """While inside, calls `act` from a thread once another asks to stop."""
        left = threading.Event()

        def listen() -> None:
            while not left.wait(LISTEN_SECONDS):
                try:
                    asked = self._asked()
                except HostLost:
                    return  # the main thread will notice
                if asked is not None and asked[1] == "stop":
                    act()
                    return

        thread = threading.Thread(target=listen, daemon=True)
        if self.count > 1:
            thread.start()
        try:
            yield
        finally:
            left.set()
            if self.count > 1:
                thread.join()

    def _leave_key(self) -> str:
        return f"{self._prefix}/leave/{self._round}"

    def _asked(self) -> tuple[int, str] | None:
        text = self._get(f"leave/{self._round}")
        return None if text is None else tuple(json.loads(text))

    def next_round(self) -> None:
        """Forgets what was agreed, for a run that goes on after it."""
        self._round += 1
        self._agreed = None
        self.pace = 1


def pace_of(step_seconds: float, deadline: float, most: int) -> int:
    """The largest power of two up to `most` with which all can leave in time.

    A signal finds up to `pace` steps unfinished, the agreed one is up to 2 `pace`
    further, and then the state must be written: half of the deadline is for that.
    """
    pace = most
    while pace > 1 and 3 * pace * step_seconds > deadline / 2:
        pace //= 2
    return pace


def _as_words(array: Any) -> np.ndarray:
    """The bytes of an array as 32-bit integers, filled up with zeros."""
    data = np.asarray(array).tobytes()
    return np.frombuffer(data + bytes(-len(data) % 4), np.uint32)


def _of_words(words: Any, like: Any) -> np.ndarray:
    """The array whose `_as_words` these are, of the dtype and shape of another."""
    like = np.asarray(like)
    data = np.asarray(words).tobytes()[: like.nbytes]
    return np.frombuffer(data, like.dtype).reshape(like.shape)
