"""Checkpoints of a run, and the identity of its workdir.

Checkpoints are orbax's: `<workdir>/checkpoints/<step>/`, written beside their
final name and renamed when complete, so a kill never leaves a half one.
"""

import dataclasses
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from unsup3d_jax.errors import UserError
from unsup3d_jax.log import write_atomically
from unsup3d_jax.train_state import TrainState

# Keys that may differ between the runs that share a workdir: none of them
# changes a parameter. (Another number of devices changes rounding only.)
HARMLESS = (
    "name",
    "log.",
    "checkpoint.",
    "eval.",
    "train.devices",
    "data.workers",
    "data.cache_dir",
    "data.device_memory_mib",
)
# Sections that give parameters their meaning: scoring or using a checkpoint
# under other values would be wrong without a word.
MEANING = ("model.", "view.", "depth.", "light.", "compat.", "data.image_size")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


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
    a, b = flatten(old), flatten(new)
    missing = object()
    return [
        f"{key} ({_shown(a.get(key, missing), missing)} there, "
        f"{_shown(b.get(key, missing), missing)} now)"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing)
        and not any(key == h or (h[-1] == "." and key.startswith(h)) for h in HARMLESS)
    ]


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
    root = Path(__file__).resolve().parent.parent
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


def claim_workdir(workdir: Path, config: ConfigDict, devices: list) -> None:
    """Writes config.json: config, seed, devices, commit, versions of packages.

    Raises:
        UserError: if the workdir holds another run, or cannot be written.
    """
    check_workdir(workdir, config)
    record = {
        "config": _json_of(config),
        "seed": config.seed,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in devices],
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "command": sys.argv,
    }
    text = json.dumps(record, indent=2) + "\n"
    try:
        write_atomically(workdir / "config.json", text)
    except OSError as error:
        raise UserError(f"cannot write in --workdir {workdir}: {error}.") from None


def _json_of(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


# --- checkpoints --------------------------------------------------------------


def _packed(state: TrainState) -> dict:
    """A plain tree that orbax can store: the typed key as its numbers."""
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(state.key),
    }


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


class Checkpoints:
    """Saves and restores; keeps the newest `keep` and the best one.

    The best has the lowest `loss` on the validation split, a number without
    labels: ground truth must not choose a checkpoint of an unsupervised run.
    """

    def __init__(self, workdir: Path, *, keep: int):
        # orbax logs each phase of each save at level INFO and some at WARNING.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                create=True,
                cleanup_tmp_directories=True,
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(max(keep, 1)),
                        policies.BestN(
                            get_metric_fn=lambda metrics: metrics["loss"],
                            reverse=True,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, data_position: Mapping, *, loss: float | None
    ) -> None:
        """Copies the state at once and writes it in the background.

        Args:
            data_position: JSON-able `state()` of the data source.
            loss: of the validation split at this step, if measured.

        Raises:
            FloatingPointError: if the state is not finite; nothing is written.
        """
        host = to_host(state)
        if not is_finite(host):
            raise FloatingPointError("the training state is not finite.")
        step = int(host["step"])
        if step in self.steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host),
                data=ocp.args.JsonSave(dict(data_position)),
            ),
            metrics=None if loss is None else {"loss": float(loss)},
        )

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict]:
        """Reads a checkpoint as host arrays and the position of the data source.

        Raises:
            UserError: if it does not fit the state of this config.
        """
        template = to_host(like)
        try:
            loaded = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template),
                    data=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"checkpoint {step} in {self._manager.directory} does not fit this "
                f"config ({reason})."
            ) from error
        # orbax fills numpy arrays of any shape without complaint.
        check_shapes(loaded["state"], template, f"checkpoint {step}")
        return _unpacked(loaded["state"], like), loaded["data"]

    def wait(self) -> None:
        """Waits for the save in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _unpacked(tree: Mapping, like: TrainState) -> TrainState:
    return dataclasses.replace(
        like,
        step=jnp.asarray(tree["step"]),
        params=tree["params"],
        opt_state=tree["opt_state"],
        key=jax.random.wrap_key_data(jnp.asarray(tree["key"])),
    )


def check_shapes(tree: Any, expected: Any, name: str) -> None:
    """Checks that a tree has the arrays, and the shapes, of another.

    Raises:
        UserError: naming the first array that differs.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}

    found, wanted = shapes(tree), shapes(expected)
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{name} does not fit this config: {key} has shape "
                f"{found.get(key, 'none')}, expected {wanted.get(key, 'none')}."
            )


def newest_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a workdir, without opening it."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return None
    steps = [int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    return max(steps, default=None)


def load_params(path: Path) -> tuple[dict, int]:
    """Reads parameters alone, from a workdir or one `checkpoints/<step>` folder.

    Returns:
        {network name: parameters} as numpy arrays, and the step.

    Raises:
        UserError: if there is no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: the folder does not exist.")
    if not path.name.isdigit() or not (path / "state").is_dir():
        step = newest_step(path)
        if step is None:
            raise UserError(
                f"no checkpoint in {path}: expected checkpoints/<step>/ in it. "
                "Train first, or name another --workdir or --checkpoint."
            )
        path = path / "checkpoints" / str(step)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata((path / "state").resolve()).item_metadata.tree
        restore_args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata
        )
        tree = reader.restore((path / "state").resolve(), restore_args=restore_args)
    return tree["params"], int(tree["step"])
