"""Checkpoints of a run, and the identity of its workdir.

Checkpoints are orbax's: `<workdir>/checkpoints/<step>/`, written beside their
final name and renamed when complete, so a kill never leaves a half one. Each
holds checksums of its arrays; one that the disk has damaged is put aside, and
the one before is taken.
"""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.train_state import TrainState
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import write_atomically

# Keys that may differ between the runs that share a workdir: none of them
# changes a parameter. (Another number of devices changes rounding only; where the
# images lie is no matter, because checkpoints hold a fingerprint of them.)
HARMLESS = (
    "name",
    "log.",
    "checkpoint.",
    "eval.",
    "train.devices",
    "data.path",
    "data.workers",
    "data.cache_dir",
    "data.device_memory_mib",
)
# Sections that give parameters their meaning: scoring or using a checkpoint
# under other values would be wrong without a word.
MEANING = ("model.", "view.", "depth.", "light.", "compat.", "data.image_size")
# Options younger than some workdirs, and the value that means what was done then.
YOUNGER = {
    "train.grad_norm_max": 0.0,
    "train.skips_in_a_row": 10,
    "train.rollbacks": 0,
    "view.warmup_start": 0.1,
    "view.warmup_steps": 0,
    "loss.light_prior": 0.0,
    "loss.light_prior_steps": 0,
}
# Packages that decide the bits of a run: its numbers, images and their order.
NUMERIC = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow", "numba")
PACKAGES = (*NUMERIC, "orbax-checkpoint", "ml_collections")


# --- the identity of a workdir ----------------------------------------------


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; tuples become lists, as JSON has them."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def differing_keys(old: Mapping, new: Mapping) -> list[str]:
    """Names and values of config keys that differ and are not `HARMLESS`."""
    a, b = YOUNGER | flatten(old), YOUNGER | flatten(new)
    missing = object()
    return [
        f"{key} ({_shown(a.get(key, missing), missing)} there, "
        f"{_shown(b.get(key, missing), missing)} now)"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing) and not is_harmless(key)
    ]


def is_harmless(key: str) -> bool:
    """Whether a run may be resumed with another value of a config key."""
    return any(key == h or (h[-1] == "." and key.startswith(h)) for h in HARMLESS)


def check_meaning(config: ConfigDict, checkpoint: Path) -> None:
    """Checks that a checkpoint is of a model like the config's.

    Args:
        checkpoint: a workdir, or one `checkpoints/<step>` folder in it. Without
            a config.json beside it nothing is known, and nothing is checked.

    Raises:
        UserError: naming the keys that differ.
    """
    for folder in (checkpoint, *list(checkpoint.resolve().parents)[:2]):
        path = folder / "config.json"
        if path.is_file():
            old = json.loads(path.read_text())["config"]
            # Options younger than the checkpoint keep its meaning by default.
            known = flatten(old)
            new = {k: v for k, v in flatten(_json_of(config)).items() if k in known}
            keys = [k for k in differing_keys(known, new) if k.startswith(MEANING)]
            if keys:
                raise UserError(
                    f"the checkpoint in {checkpoint} is of another model; these keys "
                    f"differ: {', '.join(keys)}. Use the config it was trained with."
                )
            return


def _shown(value: Any, missing: object) -> str:
    return "absent" if value is missing else json.dumps(value)


def _git_commit() -> str | None:
    """Commit of the source tree, "+changes" if it is not clean; None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package inside some other tree
        return None

    def git(*args: str) -> str:
        out = subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, check=True
        )
        return out.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        clean = not git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit if clean else commit + "+changes"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Refuses a workdir whose checkpoints another config has made.

    Raises:
        UserError: naming the keys that differ (none of `HARMLESS`).
    """
    path = workdir / "config.json"
    if newest_step(workdir) is None:
        return  # nothing has been trained there
    try:
        old = json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{workdir} holds checkpoints, but {path} is not the config of a run; "
            "choose another --workdir."
        ) from None
    if differing := differing_keys(old, _json_of(config)):
        raise UserError(
            f"{workdir} holds a run of another config; these keys differ: "
            f"{', '.join(differing)}. Choose another --workdir, or the old values."
        )


def _other_versions(workdir: Path, now: Mapping[str, str | None]) -> list[str]:
    """Packages whose version decides bits, and has changed since the last start."""
    if newest_step(workdir) is None:
        return []
    before = json.loads((workdir / "config.json").read_text()).get("versions", {})
    return [
        f"{name} was {before[name] or 'absent'} and is {now[name] or 'absent'}"
        for name in NUMERIC
        if name in before and before[name] != now[name]
    ]


def claim_workdir(workdir: Path, config: ConfigDict, devices: list) -> None:
    """Writes config.json: config, seed, devices, commit, versions of packages.

    Warns if a run is resumed with other packages than it had.

    Raises:
        UserError: if the workdir holds another run, or cannot be written.
    """
    check_workdir(workdir, config)
    packages = {package: _version(package) for package in PACKAGES}
    if others := _other_versions(workdir, packages):
        say(
            f"warning: {', '.join(others)}: the run goes on, but not bit for bit as it "
            "would have."
        )
    record = {
        "config": _json_of(config),
        "seed": config.seed,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in devices],
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version()} | packages,
        "command": sys.argv,
    }
    text = json.dumps(record, indent=2) + "\n"
    try:
        write_atomically(workdir / "config.json", text)
    except OSError as error:
        raise UserError(f"cannot write in --workdir {workdir}: {error}.") from None


def _json_of(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps a workdir for this process; makes the folder if need be.

    The lock is the kernel's (flock on `<workdir>/lock`), which a killed process
    cannot leave behind. The text in the file only names the holder.

    Raises:
        UserError: if another process holds it, or the folder cannot be made.
    """
    path = workdir / "lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write in --workdir {workdir}: {error}.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.read(handle, 200).decode(errors="replace").strip()
                raise UserError(
                    f"{workdir} is in use by {holder or 'another process'}; wait for "
                    "it, stop it, or choose another --workdir."
                ) from None
            # Some network file systems have no locks; that is no reason to stop.
            say(f"warning: {workdir} cannot be locked ({error}): take care that no "
                "second run uses it.")  # fmt: skip
        else:
            with contextlib.suppress(OSError):  # a full disk says so elsewhere
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n"
                          .encode(), 0)  # fmt: skip
        yield
    finally:
        os.close(handle)


# --- checkpoints --------------------------------------------------------------


class Damaged(Exception):
    """A checkpoint cannot be read, or is not what was written."""


class NotSaved(UserError):
    """A checkpoint could not be written: disk full, folder read-only, ..."""


def _packed(state: TrainState) -> dict:
    """A plain tree that orbax can store: the typed key as its numbers."""
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(state.key),
    }


def zeros_like_packed(like: TrainState) -> dict:
    """Host arrays of 0 with the shapes of a packed state; abstract arrays do."""
    return jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(_packed, like)
    )


def to_host(state: TrainState) -> dict:
    """Copies a state to numpy arrays of its own.

    On CPU `device_get` gives views of device memory. While a view lives the
    runtime refuses to donate that memory: the next step would hold the state
    twice until the save is written. Hence the copy.
    """
    return jax.tree.map(lambda x: np.array(x), jax.device_get(_packed(state)))


def is_finite(tree: Any) -> bool:
    """Whether every floating-point number of a host tree is finite."""
    return all(
        np.isfinite(x).all()
        for x in jax.tree.leaves(tree)
        if np.issubdtype(x.dtype, np.floating)
    )


def checksums(tree: Mapping[str, Any]) -> dict[str, int]:
    """CRC-32 of each top-level entry of a host tree, names and shapes included."""
    result = {}
    for name, part in tree.items():
        crc = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            leaf = np.asarray(leaf)
            about = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
            crc = zlib.crc32(
                np.ascontiguousarray(leaf).data, zlib.crc32(about.encode(), crc)
            )
        result[name] = crc
    return result


def _position_sum(data_position: Mapping) -> int:
    """CRC-32 of a data position, which decides what a resumed run sees."""
    return zlib.crc32(json.dumps(data_position, sort_keys=True).encode())


def _check_sums(tree: Mapping[str, Any], recorded: Mapping[str, int] | None) -> None:
    if recorded is None:  # written before there were any
        return
    for name, found in checksums(tree).items():
        if recorded.get(name) != found:
            raise Damaged(f"the checksum of {name!r} differs")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + " ..."


def _why(error: BaseException) -> str:
    """The system's reason in an error of orbax, whose text runs over pages."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if (reason := os.strerror(number)) in str(error):
            return reason
    return _one_line(error)


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
        # orbax logs each phase of each save at level INFO and some at WARNING.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.losses = dict(losses or {})
        self._keep = max(keep, 1)
        self._protected: int | None = None
        # Orbax must not wait for processes that never call it.
        alone = jax.process_count() > 1
        processes = ocp.options.MultiprocessingOptions(
            primary_host=0,
            active_processes={0} if alone else None,
            barrier_sync_key_prefix="first" if alone else None,
        )
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
                    multiprocessing_options=processes,
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

    def save(self, state: TrainState, data_position: Mapping) -> None:
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

    def restore_newest(self, like: TrainState) -> tuple[dict, dict] | None:
        """Reads the newest checkpoint that is whole; puts damaged ones aside.

        Args:
            like: a state with the shapes that are expected; abstract arrays do.

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
                loaded = self.restore(like, step)
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

    def restore(self, like: TrainState, step: int) -> tuple[dict, dict]:
        """Reads one checkpoint: the packed state and the data position.

        Raises:
            Damaged: if it cannot be read, or its checksums differ.
            UserError: if it does not fit the state of this config.
        """
        template = zeros_like_packed(like)
        items: dict[str, Any] = {
            "state": ocp.args.StandardRestore(template),
            "data": ocp.args.JsonRestore(),
        }
        folder = Path(str(self._manager.directory)) / str(step)
        if (folder / "checksums").exists():
            items["checksums"] = ocp.args.JsonRestore()
        # First, because orbax fills arrays of any shape without complaint, and
        # fails at arrays that the file lacks as it does at damaged ones.
        check_shapes(_saved_arrays(folder), template, f"checkpoint {step}")
        try:
            loaded = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # whatever orbax, tensorstore and json raise
            raise Damaged(_one_line(error)) from error
        recorded = loaded.get("checksums")
        _check_sums(loaded["state"], recorded)
        found = _position_sum(loaded["data"])
        if found != (recorded or {}).get("data", found):  # not in old checkpoints
            raise Damaged("the checksum of 'data' differs")
        return loaded["state"], loaded["data"]

    def close(self) -> None:
        """Ends the threads of the background.

        Who needs a save to succeed calls `wait`; one that fails only now follows
        an error that says more, and must not hide it.
        """
        with contextlib.suppress(Exception):
            self._manager.close()


def unpacked(tree: Mapping, like: TrainState) -> TrainState:
    """The state whose packed form `Checkpoints.restore` has read."""
    return dataclasses.replace(
        like,
        step=jnp.asarray(tree["step"]),
        params=tree["params"],
        opt_state=tree["opt_state"],
        key=jax.random.wrap_key_data(jnp.asarray(tree["key"])),
    )


def check_shapes(tree: Any, expected: Any, name: str) -> None:
    """Checks that a tree has the arrays, and the shapes, of another.

    What holds the arrays may differ: orbax gives dicts and lists for named tuples.

    Raises:
        UserError: naming the first array that differs.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    found, wanted = shapes(tree), shapes(expected)
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{name} does not fit this model or optimizer: {key} has shape "
                f"{found.get(key, 'none')}, expected {wanted.get(key, 'none')}. Use "
                "the config, and the version of the code and its packages, that it "
                "was written by, or start in another --workdir."
            )


def _saved_arrays(folder: Path) -> Any:
    """Shapes of a checkpoint folder's state, unread; Damaged if not even these."""
    try:
        with ocp.PyTreeCheckpointer() as reader:
            return reader.metadata((folder / "state").resolve()).item_metadata.tree
    except Exception as error:  # whatever orbax, tensorstore and json raise
        raise Damaged(_one_line(error)) from error


def _steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(
        int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()
    )


def newest_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a workdir, without opening it."""
    return max(_steps(workdir), default=None)


def load_params(path: Path) -> tuple[dict, int]:
    """Reads parameters alone, from a workdir or one `checkpoints/<step>` folder.

    Of a workdir, the newest checkpoint that is whole is taken; a message names
    those that are not.

    Returns:
        {network name: parameters} as numpy arrays, and the step.

    Raises:
        UserError: if there is no checkpoint, or none that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: the folder does not exist.")
    folders = [path]
    if not path.name.isdigit() or not (path / "state").is_dir():
        folders = [path / "checkpoints" / str(step) for step in _steps(path)[::-1]]
    if not folders:
        raise UserError(
            f"no checkpoint in {path}: expected checkpoints/<step>/ in it. "
            "Train first, or name another --workdir or --checkpoint."
        )
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for folder in folders:
        try:
            return _read_params(folder)
        except Damaged as error:
            say(f"warning: the checkpoint in {folder} is damaged ({error}).")
    raise UserError(f"no checkpoint in {path} can be read.")


def _read_params(folder: Path) -> tuple[dict, int]:
    """Parameters and step of one checkpoint folder; Damaged if unreadable."""
    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _saved_arrays(folder)
    )
    try:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(
                (folder / "state").resolve(), restore_args=restore_args
            )
        params, step = tree["params"], int(tree["step"])
        recorded = None
        if (folder / "checksums").exists():
            recorded = json.loads((folder / "checksums" / "metadata").read_text())
    except Exception as error:  # whatever orbax, tensorstore and json raise
        raise Damaged(_one_line(error)) from error
    _check_sums({"params": params}, recorded)
    return params, step
