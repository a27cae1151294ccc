"""The train step on the devices of a run; the only `jax.pmap` of the package."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unsup3d_jax.engine.task import RunState, Task, advance
from unsup3d_jax.errors import UserError

AXIS = "devices"


def local_devices(config: ConfigDict) -> list[jax.Device]:
    """The devices of a run: `train.devices` of the local ones, 0 for all.

    Raises:
        UserError: if there are fewer, or the batch does not divide among them.
    """
    devices = wanted_devices(config)
    count = len(devices)
    if config.train.batch_size < 1 or config.train.batch_size % count:
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide among "
            f"{count} devices; choose a multiple of {count}, or fewer train.devices."
        )
    return devices


def wanted_devices(config: ConfigDict) -> list[jax.Device]:
    """`train.devices` of the local ones, 0 for all, whatever is shared out among them.

    Raises:
        UserError: if there are fewer.
    """
    available = jax.local_devices()
    count = config.train.devices or len(available)
    if not 0 < count <= len(available):
        raise UserError(
            f"train.devices={config.train.devices}: {len(available)} device(s) are "
            "available; 0 takes all."
        )
    return available[:count]


def run_devices(config: ConfigDict) -> list[jax.Device]:
    """The devices of a run, of all its processes, in the order of the batch.

    Raises:
        UserError: as `local_devices`; or if several processes are to use some.
    """
    if jax.process_count() == 1:
        return local_devices(config)
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    if config.train.devices:
        raise UserError(
            f"train.devices={config.train.devices}: several processes use all their "
            "devices; leave it at 0."
        )
    if config.train.batch_size < 1 or config.train.batch_size % len(devices):
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide among the "
            f"{len(devices)} devices of {jax.process_count()} processes."
        )
    return devices


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts a tree on all devices as one logical array a leaf.

    This is the placement `parallel_step` returns, so that the first step
    compiles for, and donates, what all later steps get.
    """
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def share_out(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts rows of a tree's leading axis on the devices, as many on each."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec(AXIS)))


def mapped_step(
    step: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    shared: Sequence[bool],
    results: Sequence[bool],
) -> Callable[..., Any]:
    """A step whose rows have nothing to do with each other, each device with its own.

    Args:
        step: of the rows of one device.
        shared, results: of each argument and result, whether its rows are shared out,
            see `share_out`; the others are the same everywhere.
    """

    def specs(split: Sequence[bool]) -> tuple[PartitionSpec, ...]:
        return tuple(PartitionSpec(AXIS) if s else PartitionSpec() for s in split)

    # Nothing is summed over devices, which is all that the checks would watch.
    return jax.shard_map(
        step,
        mesh=_mesh(devices),
        in_specs=specs(shared),
        out_specs=specs(results),
        check_vma=False,
    )


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


def one_copy(tree: Any) -> Any:
    """The copy of a replicated tree that lies on the first device; no transfer."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def parallel_step(
    task: Task,
    devices: Sequence[jax.Device],
    *,
    skip: bool = False,
    grad_norm_max: float = 0.0,
) -> Callable[..., tuple[RunState, dict[str, Float[Array, ""]]]]:
    """The train step under pmap: (state, batch, constants, schedule) -> same.

    One logical state goes in and comes out (`in_axes` None, `out_axes` None);
    it is donated, so parameters and moments exist once. Only the batch has a
    device axis. With several processes `devices` are those of all, and every
    argument and result has this process's part: the state on its own devices,
    the batch's rows for them.

    Args:
        skip, grad_norm_max: see `task.advance`.
    """
    step = functools.partial(
        advance, task=task, axis_name=AXIS, skip=skip, grad_norm_max=grad_norm_max
    )
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None, None),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
