"""Checkpoints of a run: whole, checked, or put aside.

They are orbax's: `<workdir>/checkpoints/<step>/`, written beside their final name and
renamed when complete, so a kill never leaves a half one. Each holds checksums of its
arrays; one that the disk has damaged is put aside, and the one before is taken.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.packing import (
    Damaged,
    check_shapes,
    check_sums,
    checksums,
    is_finite,
    to_host,
    without_repeats,
    zeros_like_packed,
)
from unsup3d_jax.engine.task import RunState
from unsup3d_jax.engine.workdir import checkpoint_steps
from unsup3d_jax.errors import UserError, one_line


class NotSaved(UserError):
    """A checkpoint could not be written: disk full, folder read-only, ..."""


def _position_sum(data_position: Mapping) -> int:
    """CRC-32 of a data position, which decides what a resumed run sees."""
    return zlib.crc32(json.dumps(data_position, sort_keys=True).encode())


def _quiet() -> None:
    """Keeps orbax and what it is made of from printing what we say in one line.

    Orbax logs each phase of each save, and errors that it raises as well. It reads and
    writes the arrays of a checkpoint side by side; once one has failed it leaves, and
    of each of the others tensorstore prints that nobody waits for it any more, and
    asyncio that it has failed, too.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_no_late_failure)  # once: it is one
    hook = sys.unraisablehook
    while hook is not None and not isinstance(hook, _WithoutLateArrays):
        hook = Interrupts.below(hook)
    if hook is None:
        sys.unraisablehook = _WithoutLateArrays(sys.unraisablehook)


def _is_no_late_failure(record: logging.LogRecord) -> bool:
    """Of asyncio's records, all but failures of arrays whose writer has gone."""
    trace = record.exc_info[2] if record.exc_info else None
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    is_late = record.getMessage().startswith("Task exception was never retrieved")
    return not (is_late and module.startswith("orbax."))


class _WithoutLateArrays:
    """`sys.unraisablehook`, but for arrays that come when their reader has gone."""

    def __init__(self, other: Callable):
        self._other = other

    def __call__(self, dropped: Any) -> None:
        # What others drop in asyncio begins in a function of theirs; tensorstore calls
        # it from outside of Python.
        trace = dropped.exc_traceback
        code = trace.tb_frame.f_code if trace is not None else None
        is_late = (
            dropped.exc_type is RuntimeError
            and str(dropped.exc_value) == "Event loop is closed"
            and code is asyncio.BaseEventLoop.call_soon_threadsafe.__code__
        )
        if not is_late:
            self._other(dropped)


def _first_alone() -> ocp.options.MultiprocessingOptions:
    """Orbax must not wait for processes that never call it."""
    alone = jax.process_count() > 1
    return ocp.options.MultiprocessingOptions(
        primary_host=0,
        active_processes={0} if alone else None,
        barrier_sync_key_prefix="first" if alone else None,
    )


def _reader() -> ocp.Checkpointer:
    """`ocp.PyTreeCheckpointer`, which waits for all processes."""
    processes = _first_alone()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=processes)
    return ocp.Checkpointer(handler, multiprocessing_options=processes)


def _why(error: BaseException) -> str:
    """The system's reason in an error of orbax, whose text runs over pages."""
    known = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO")
    for number in (getattr(errno, name) for name in known):
        if (reason := os.strerror(number)) in str(error):
            return reason
    return one_line(error, 200)


class Checkpoints:
    """Saves and restores; keeps the newest `keep` and the best one.

    The best has the lowest `loss` on the validation split, a number without
    labels: ground truth must not choose a checkpoint of an unsupervised run.
    Of several processes only the first has one of these: the state is the same
    everywhere, and the others get it from there.

    Attributes:
        losses: {step: loss} as far as measured.
    """

    def __init__(
        self, workdir: Path, *, keep: int, losses: Mapping[int, float] | None = None
    ):
        _quiet()
        self.losses = dict(losses or {})
        self._keep = max(keep, 1)
        self._protected: int | None = None
        folder = (workdir / "checkpoints").resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                folder,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    cleanup_tmp_directories=True,
                    save_decision_policy=policies.FixedIntervalPolicy(1),
                    max_to_keep=None,  # `wait` deletes
                    multiprocessing_options=_first_alone(),
                ),
            )
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error}.") from None

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def protect(self, step: int | None) -> None:
        """Keeps the newest checkpoint up to this step, however old it gets."""
        self._protected = step

    def save(self, state: RunState, data_position: Mapping) -> None:
        """Copies the state at once and writes it in the background.

        Args:
            data_position: JSON-able `state()` of the data source.

        Raises:
            FloatingPointError: if the state is not finite; nothing is written.
            NotSaved: if this or the save before could not be written.
        """
        host = to_host(state)
        if not is_finite(host):
            raise FloatingPointError("the training state is not finite.")
        step = int(host["step"])
        self.wait()
        if step in self.steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(host),
                    data=ocp.args.JsonSave(dict(data_position)),
                    checksums=ocp.args.JsonSave(
                        checksums(host) | {"data": _position_sum(data_position)}
                    ),
                ),
            )
        except Exception as error:
            raise self._not_saved(error) from error

    def wait(self) -> None:
        """Waits for the save in the background; deletes what it makes old.

        Raises:
            NotSaved: if it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_saved(error) from error
        for step in self._superfluous():
            self.delete(step)

    def _superfluous(self) -> list[int]:
        steps = self.steps()
        kept = set(steps[-self._keep :])
        measured = [s for s in steps if np.isfinite(self.losses.get(s, np.nan))]
        if measured:
            kept.add(min(measured, key=lambda s: (self.losses[s], s)))
        if self._protected is not None:
            kept.update([s for s in steps if s <= self._protected][-1:])
        return [step for step in steps if step not in kept]

    def _not_saved(self, error: Exception) -> NotSaved:
        steps = self.steps()
        kept = f"checkpoint {steps[-1]} is kept" if steps else "there is none yet"
        return NotSaved(
            f"cannot write a checkpoint in {self._manager.directory} "
            f"({_why(error)}); {kept}. Make room, then run the same command again."
        )

    def delete(self, step: int) -> None:
        """Removes a checkpoint; one that is gone already is no matter."""
        with contextlib.suppress(OSError):
            self._manager.delete(step)

    def put_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint out of the way; returns where it lies now."""
        folder = Path(str(self._manager.directory))
        place = folder.with_name("damaged") / str(step)
        number = 1
        while place.exists():
            number += 1
            place = place.with_name(f"{step}-{number}")
        place.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(place)
        self._manager.reload()
        return place

    def restore_newest(
        self, like: RunState, *, repeats: bool = False
    ) -> tuple[dict, dict] | None:
        """Reads the newest checkpoint that is whole; puts damaged ones aside.

        Args:
            like: a state with the shapes that are expected; abstract arrays do.
            repeats: see `Task.repeats`.

        Returns:
            The packed state, host arrays, for `unpacked`, and the position of the
            data source; None if there is no checkpoint.

        Raises:
            UserError: if it does not fit the state of this config, or if none
                of the checkpoints can be read.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                loaded = self.restore(like, step, repeats=repeats)
            except Damaged as error:
                damaged.append((step, error))
                continue
            for bad, reason in damaged:
                place = self.put_aside(bad)
                say(
                    f"warning: checkpoint {bad} is damaged ({reason}); it lies in "
                    f"{place} now, and the run goes on from checkpoint {step}."
                )
            return loaded
        if damaged:
            step, reason = damaged[0]
            raise UserError(
                f"no checkpoint in {self._manager.directory} can be read; {step}: "
                f"{reason}. Restore them from a copy, or start in another --workdir."
            )
        return None

    def restore(
        self, like: RunState, step: int, *, repeats: bool = False
    ) -> tuple[dict, dict]:
        """Reads one checkpoint: the packed state and the data position.

        Raises:
            Damaged: if it cannot be read, or its checksums differ.
            UserError: if it does not fit the state of this config.
        """
        wanted = zeros_like_packed(like)
        folder = Path(str(self._manager.directory)) / str(step)
        saved = _saved_arrays(folder)
        template = without_repeats(wanted, saved) if repeats else wanted
        items: dict[str, Any] = {
            "state": ocp.args.StandardRestore(template),
            "data": ocp.args.JsonRestore(),
        }
        if (folder / "checksums").exists():
            items["checksums"] = ocp.args.JsonRestore()
        # First, because orbax fills arrays of any shape without complaint, and
        # fails at arrays that the file lacks as it does at damaged ones.
        check_shapes(saved, template, f"checkpoint {step}")
        try:
            loaded = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # whatever orbax, tensorstore and json raise
            raise Damaged(one_line(error, 200)) from error
        recorded = loaded.get("checksums")
        check_sums(loaded["state"], recorded)
        found = _position_sum(loaded["data"])
        if found != (recorded or {}).get("data", found):  # not in old checkpoints
            raise Damaged("the checksum of 'data' differs")
        state = jax.tree.map(
            lambda x, like: np.array(np.broadcast_to(x, like.shape)),
            loaded["state"],
            wanted,
        )
        return state, loaded["data"]

    def close(self) -> None:
        """Ends the threads of the background.

        Who needs a save to succeed calls `wait`; one that fails only now follows
        an error that says more, and must not hide it.
        """
        with contextlib.suppress(Exception):
            self._manager.close()


def write_first(workdir: Path, state: RunState) -> None:
    """Makes a state, which has seen no data, the first checkpoint of a workdir.

    Raises:
        NotSaved: if it cannot be written; else it is on disk.
    """
    checkpoints = Checkpoints(workdir, keep=1)
    try:
        checkpoints.save(state, {})
        checkpoints.wait()  # written in the background: a full disk shows here
    finally:
        checkpoints.close()


def _saved_arrays(folder: Path) -> Any:
    """Shapes of a checkpoint folder's state, unread; Damaged if not even these."""
    try:
        with _reader() as reader:
            found = reader.metadata((folder / "state").resolve()).item_metadata
    except Exception as error:  # whatever orbax, tensorstore and json raise
        raise Damaged(one_line(error, 200)) from error
    if found is None:  # orbax has said why in its log
        raise Damaged("the list of its arrays cannot be read")
    return found.tree


def load_parts(path: Path, names: Sequence[str] = ("params",)) -> tuple[dict, int]:
    """Reads parts of a state alone, from a workdir or one `checkpoints/<step>` folder.

    Of a workdir, the newest checkpoint that is whole is taken; a message names
    those that are not.

    Args:
        names: of parts that are nested dictionaries of arrays.

    Returns:
        {part: its tree} as numpy arrays, and the step.

    Raises:
        UserError: if there is no checkpoint, none that can be read, or none with
            such parts.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: the folder does not exist.")
    folders = [path]
    if not path.name.isdigit() or not (path / "state").is_dir():
        steps = checkpoint_steps(path)[::-1]
        folders = [path / "checkpoints" / str(step) for step in steps]
    if not folders:
        raise UserError(
            f"no checkpoint in {path}: expected checkpoints/<step>/ in it. "
            "Train first, or name another --workdir or --checkpoint."
        )
    _quiet()
    damaged = []
    for folder in folders:
        try:
            found = _read_parts(folder, names)
        except Damaged as error:
            damaged.append(f"checkpoint {folder.name} is damaged ({error})")
            continue
        for sentence in damaged:
            say(f"warning: {sentence}; checkpoint {folder.name} is used.")
        return found
    raise UserError(
        f"no checkpoint at {path} can be read: {damaged[0]}. Use an earlier one, or a "
        "copy."
    )


def _read_parts(folder: Path, names: Sequence[str]) -> tuple[dict, int]:
    """Parts and step of one checkpoint folder; Damaged if unreadable."""
    saved = _saved_arrays(folder)
    if missing := [name for name in names if name not in saved]:
        raise UserError(
            f"the checkpoint in {folder} holds no {missing[0]!r}; it is of another "
            "method."
        )
    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved
    )
    try:
        with _reader() as reader:
            tree = reader.restore(
                (folder / "state").resolve(), restore_args=restore_args
            )
        parts, step = {name: tree[name] for name in names}, int(tree["step"])
        recorded = None
        if (folder / "checksums").exists():
            recorded = json.loads((folder / "checksums" / "metadata").read_text())
    except Exception as error:  # whatever orbax, tensorstore and json raise
        raise Damaged(one_line(error, 200)) from error
    check_sums(parts, recorded)
    return parts, step
