"""What a run would need, before it starts: shapes, parameters, memory, time.

Compiles the real step (which then lies in the compilation cache) and times it
on random images. Reads no data and writes nothing.
"""

import math
import statistics
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from unsup3d_jax.engine import parallel
from unsup3d_jax.engine.log import duration
from unsup3d_jax.engine.task import Task, initial_state
from unsup3d_jax.engine.warm_start import Start
from unsup3d_jax.errors import UserError

TIMED_STEPS = 3


def count(tree: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _mib(number: float) -> str:
    return f"{number / 2**20:,.1f} MiB"


def _limit(device: jax.Device) -> str:
    """What a device has, where it tells."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return f" of {_mib(limit)}" if limit else ""


def report(config: ConfigDict, task: Task, *, start: Start | None = None) -> str:
    """Text about one run of this config on the devices that are here.

    Args:
        task: of the config; its data set, which it reads when asked, is left alone.
        start: what the run begins from; None: noise.

    Raises:
        UserError: as `parallel.run_devices`, or if there are several processes, or
            the task has no `random_batch`.
    """
    if jax.process_count() > 1:
        raise UserError("--dry_run looks at one process; leave out --distributed.")
    if task.random_batch is None:
        raise UserError("--dry_run: this task cannot be tried without its data.")
    devices = parallel.run_devices(config)
    state = initial_state(task, config.seed)
    batch = task.random_batch(len(devices))
    sizes = {
        name: count(tree)
        for name, tree in state.parts.get("params", state.parts).items()
    }
    state_bytes = _bytes(state.parts)
    constants_bytes = _bytes(task.constants)
    lines = [
        f"run        {config.name}: {config.train.steps} steps of "
        f"{config.train.batch_size} images of {config.data.image_size} px",
        f"start      {start or 'from noise'}",
        f"devices    {len(devices)} x {devices[0].device_kind}, "
        f"{config.train.batch_size // len(devices)} images each",
        *(
            f"batch      {name:6} {value.shape[1:]} {value.dtype} on each device"
            for name, value in vars(batch).items()
            if value is not None
        ),
        *(f"network    {name:8} {n:12,} parameters" for name, n in sizes.items()),
        f"           {'all':8} {sum(sizes.values()):12,} parameters",
        f"state      {_mib(state_bytes)} a device: parameters and moments, float32; "
        "as much on disk a checkpoint",
        f"constants  {_mib(constants_bytes)} a device",
    ]
    step = parallel.parallel_step(
        task,
        devices,
        skip=config.train.nan == "skip",
        grad_norm_max=config.train.grad_norm_max,
    )
    state, constants, schedule = parallel.replicate(
        (state, task.constants, task.schedule), devices
    )
    begin = time.perf_counter()
    compiled = step.lower(state, batch, constants, schedule).compile()
    lines.append(f"compiled   in {time.perf_counter() - begin:.1f} s")
    memory: Any = compiled.memory_analysis()
    if memory is not None:
        beside = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
        # The new state takes the place of the old one, which is donated.
        beside += memory.output_size_in_bytes - memory.alias_size_in_bytes
        whole = memory.argument_size_in_bytes + beside
        lines += [
            f"memory     {_mib(beside)} a device for one step beside its arguments",
            f"           {_mib(whole)} in all{_limit(devices[0])}; a data set that is "
            f"kept there (up to {config.data.device_memory_mib} MiB, "
            "data.device_memory_mib) comes to it",
        ]
    cost: Any = compiled.cost_analysis()
    if cost and cost.get("flops", 0) > 0:
        lines.append(f"work       {cost['flops'] / 1e9:,.1f} GFLOP a step and device")
    seconds = []
    for _ in range(TIMED_STEPS + 1):
        begin = time.perf_counter()
        state, metrics = step(state, batch, constants, schedule)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    each = statistics.median(seconds[1:])  # the first one warms up
    lines += [
        f"step       {each:.3f} s, {config.train.batch_size / each:.1f} images/s "
        "on random images",
        f"time       {duration(each * config.train.steps)} for all steps, without "
        "evaluation, saving and the baselines of the final table",
    ]
    return "\n".join(lines)
