"""Whose run a workdir is, and who works in it.

`config.json` names the config that made it; another one is refused by the keys that
differ, but for those that change nothing of a run. A lock keeps a second process out.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
from ml_collections import ConfigDict

from unsup3d_jax.configuration import flatten, record_beside, recorded
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.task import Identity
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import write_atomically

# Harmless, whatever the method (`task.Identity`). Another number of devices changes
# rounding only; where the images lie and whether near-copies among them were brought
# together is no matter, because checkpoints hold a fingerprint of them.
HARMLESS = (
    "name",
    "log.",
    "checkpoint.",
    "eval.",
    "export.",
    "train.devices",
    "data.path",
    "data.near_copies",
    "data.workers",
    "data.cache_dir",
    "data.device_memory_mib",
)
# Packages that decide the bits of a run: its numbers, images and their order.
NUMERIC = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow", "numba")
PACKAGES = (*NUMERIC, "orbax-checkpoint", "ml_collections")


# --- which run it is ----------------------------------------------------------------


def newest_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a workdir, without opening it."""
    return max(checkpoint_steps(workdir), default=None)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints of a workdir, ascending."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return []
    # "²" is a digit to str.isdigit, and no number to int.
    return sorted(
        int(p.name)
        for p in folder.iterdir()
        if p.name.isascii() and p.name.isdigit() and p.is_dir()
    )


def is_harmless(key: str, identity: Identity) -> bool:
    """Whether a run may be resumed with another value of a config key."""
    return any(
        key == name or (name[-1] == "." and key.startswith(name))
        for name in (*HARMLESS, *identity.harmless)
    )


def differing_keys(old: Mapping, new: Mapping, identity: Identity) -> list[str]:
    """Names and values of config keys that differ and are not harmless."""
    younger = dict(identity.younger)
    a, b = younger | flatten(old), younger | flatten(new)
    missing = object()

    def shown(value: Any) -> str:
        return "absent" if value is missing else json.dumps(value)

    return [
        f"{key} ({shown(a.get(key, missing))} there, {shown(b.get(key, missing))} now)"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing) and not is_harmless(key, identity)
    ]


def check_workdir(workdir: Path, config: ConfigDict, identity: Identity) -> None:
    """Refuses a workdir whose checkpoints another config has made.

    Raises:
        UserError: naming the keys that differ and are not harmless.
    """
    path = workdir / "config.json"
    if newest_step(workdir) is None:
        return  # nothing has been trained there
    record = recorded(path)
    if record is None:
        raise UserError(
            f"{workdir} holds checkpoints, but {path} is not the config of a run; "
            "choose another --workdir."
        )
    if differing := differing_keys(record["config"], _json_of(config), identity):
        raise UserError(
            f"{workdir} holds a run of another config; these keys differ: "
            f"{', '.join(differing)}. Choose another --workdir, or the old values."
        )


def check_meaning(
    config: ConfigDict,
    checkpoint: Path,
    identity: Identity,
    *,
    but: tuple[str, ...] = (),
) -> None:
    """Checks that a checkpoint is of a model like the config's.

    Args:
        checkpoint: a workdir, or one `checkpoints/<step>` folder in it. Without
            a config.json beside it nothing is known, and nothing is checked.
        but: keys that may differ.

    Raises:
        UserError: naming the keys that differ.
    """
    path = record_beside(checkpoint)
    if path is None:
        return
    record = recorded(path)
    if record is None:
        raise UserError(
            f"{path} is not the config of a run, so that nobody knows what the "
            f"checkpoint in {checkpoint} is of. Remove it to use the checkpoint all "
            "the same."
        )
    # Options younger than the checkpoint keep its meaning by default.
    known = flatten(record["config"])
    known = {key: value for key, value in known.items() if key not in but}
    new = {k: v for k, v in flatten(_json_of(config)).items() if k in known}
    keys = differing_keys(known, new, identity)
    keys = [key for key in keys if key.startswith(identity.meaning)]
    if keys:
        raise UserError(
            f"the checkpoint in {checkpoint} is of another model; these keys differ: "
            f"{', '.join(keys)}. Use the config it was trained with."
        )


def _json_of(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


# --- whose it is now ----------------------------------------------------------------


def claim_workdir(
    workdir: Path, config: ConfigDict, devices: list[jax.Device], identity: Identity
) -> None:
    """Writes config.json: config, seed, devices, commit, versions, when it was begun.

    Beside the config stand the defaults of what it has changed.

    Warns if a run is resumed with other packages than it had.

    Raises:
        UserError: if the workdir holds another run, or cannot be written.
    """
    check_workdir(workdir, config, identity)
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
        "begun": _begun(workdir),
        "defaults": _defaults_of_changes(config, identity),
    }
    text = json.dumps(record, indent=2) + "\n"
    try:
        write_atomically(workdir / "config.json", text)
    except OSError as error:
        raise UserError(f"cannot write in --workdir {workdir}: {error}.") from None


def _begun(workdir: Path) -> str:
    """When a run was started first, UTC."""
    before = recorded(workdir / "config.json") or {}
    begun = before.get("begun")
    if isinstance(begun, str) and newest_step(workdir) is not None:
        return begun
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _defaults_of_changes(config: ConfigDict, identity: Identity) -> dict | None:
    """{key: default} of the keys that have another value; None: nobody knows."""
    if identity.defaults is None:
        return None
    now, defaults = flatten(_json_of(config)), flatten(_json_of(identity.defaults()))
    return {k: v for k, v in defaults.items() if k in now and now[k] != v}


def _other_versions(workdir: Path, now: Mapping[str, str | None]) -> list[str]:
    """Packages whose version decides bits, and has changed since the last start."""
    if newest_step(workdir) is None:
        return []
    before = (recorded(workdir / "config.json") or {}).get("versions", {})
    if not isinstance(before, dict):
        return []
    return [
        f"{name} was {before[name] or 'absent'} and is {now[name] or 'absent'}"
        for name in NUMERIC
        if name in before and before[name] != now[name]
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


@contextlib.contextmanager
def lock_workdir(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Keeps a workdir for this process; makes the folder if need be.

    The lock is the system's, on `<workdir>/lock`, which a killed process cannot leave
    behind. `<workdir>/lock.holder` only names who had it last.

    Args:
        flag: that names the folder, or one around it.

    Raises:
        UserError: if another process holds it, or the folder cannot be made.
    """
    holder = workdir / "lock.holder"
    lock = filelock.FileLock(workdir / "lock", timeout=0, thread_local=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{workdir} is in use by {_name_in(holder)}; wait for it, stop it, or "
                f"choose another {flag}."
            ) from None
        except NotImplementedError as error:
            # Some network file systems have no locks; that is no reason to stop.
            say(
                f"warning: {workdir} cannot be locked ({error}): take care that no "
                "second run uses it."
            )
    except OSError as error:
        raise UserError(f"cannot write in {flag} {workdir}: {error}.") from None
    try:
        with contextlib.suppress(OSError):  # a full disk says so elsewhere
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def _name_in(holder: Path) -> str:
    try:
        return holder.read_text(errors="replace")[:200].strip() or "another process"
    except OSError:
        return "another process"
