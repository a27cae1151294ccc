"""The program: one mode of one method, and how it ends.

Only what is light is imported up here: `--help` and a misspelt flag answer at once,
without waiting for JAX.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from ml_collections import ConfigDict

from unsup3d_jax import checkout, flags, terminal
from unsup3d_jax.engine import host_memory
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.errors import UserError, one_line
from unsup3d_jax.experiments import modes as experiments
from unsup3d_jax.gan2shape import modes as gan2shape
from unsup3d_jax.stn3dmm import modes as stn3dmm
from unsup3d_jax.stylegan2 import modes as stylegan2
from unsup3d_jax.unsup3d import modes as unsup3d

# By the key "method" of a config: what it knows, and studies that run it.
METHODS = {
    "unsup3d": flags.Method(
        unsup3d.KEYS, unsup3d.MODES | experiments.OF_UNSUP3D, unsup3d.WEIGHTS
    ),
    "stn3dmm": flags.Method(stn3dmm.KEYS, stn3dmm.MODES),
    "gan2shape": flags.Method(
        gan2shape.KEYS, gan2shape.MODES | experiments.OF_GAN2SHAPE
    ),
    "stylegan2": flags.Method(stylegan2.KEYS, stylegan2.MODES),
}


def main(argv: Sequence[str]) -> int:
    """Runs a command line and returns its exit status.

    What cannot be shown, because the terminal is closed or nobody reads the pipe,
    changes neither the run nor its status.

    Status 0: done, or stopped by a first Ctrl-C, SIGTERM or SIGHUP with everything
    saved. 1: training diverged; another process of the run is gone; the deadline
    after a signal came before everything was saved; or mode data advises against
    training. 2: the user can
    fix it; one line on stderr says how. 130: aborted by a second Ctrl-C.
    """
    with terminal.lasting():
        return _run(argv)


def installed() -> int:
    """The command `unsup3d`."""
    return main(sys.argv)


def _run(argv: Sequence[str]) -> int:
    several = False
    host_memory.keep_freed()  # before `Interrupts` starts a thread
    # Of odd metadata, and of large photos, which `data.images` counts itself; damaged
    # pixels are errors. Here, as a filter is of all threads.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        with Interrupts() as interrupts:
            args = flags.parse(argv, METHODS)
            mode = METHODS[args.config.method].modes[args.mode]
            if args.note:
                print(args.note, file=sys.stderr, flush=True)
            interrupts.deadline = args.config.checkpoint.deadline
            if args.cluster is not None:
                from unsup3d_jax.engine import hosts

                hosts.join(hosts.Cluster(*args.cluster))
                several = True
            _check_platforms()
            if mode.keeps_compiled:
                _keep_compiled(args.config)
            status = mode.run(args, interrupts)
        return status or 0
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        message, status = ending(error)
        if message is None:
            if not several:
                raise
            traceback.print_exc()  # then leave: the others must not wait
        else:
            print(message, file=sys.stderr, flush=True)
        if several:
            from unsup3d_jax.engine import hosts

            hosts.leave_at_once(status)
        return status


def _check_platforms() -> None:
    """Looks for the devices that JAX_PLATFORMS asks for.

    Raises:
        UserError: if there are none. JAX says so by an error of its own for some, by
            an assertion without a word for others, whenever a device is first used.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if not wanted:
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        extra = next((x for x in ("cuda", "tpu") if x in wanted.split(",")), None)
        whole = "." if checkout.IS_ONE else "unsup3d_jax"
        install = f"install '{whole}[{extra}]'" if extra else "name cpu, cuda or tpu"
        why = f" ({one_line(error, 200)})" if str(error) else ""
        raise UserError(
            f"JAX found no device of JAX_PLATFORMS={wanted}; {install}, or unset "
            f"it.{why}"
        ) from error


def _keep_compiled(config: ConfigDict) -> None:
    """Keeps compiled programs on disk, so that a restart need not wait for them.

    JAX's own settings (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE)
    have the last word.
    """
    import jax

    from unsup3d_jax.data.prepare import cache_root

    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = cache_root(config.data.cache_dir) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def ending(error: BaseException) -> tuple[str | None, int]:
    """What to say, and the exit status, when a run ends by an exception.

    The message is None for a bug, whose trace is wanted.
    """
    if isinstance(error, UserError):
        return f"error: {one_line(error)}", 2
    if isinstance(error, Interrupted):
        return f"stopped. To go on: {flags.command()}", 0
    if isinstance(error, KeyboardInterrupt):
        return "aborted.", 130
    from unsup3d_jax.engine.hosts import HostLost
    from unsup3d_jax.engine.recorder import Diverged

    if isinstance(error, Diverged):
        return f"error: {one_line(error)}", 1
    if isinstance(error, HostLost):
        return (
            "error: another process of this run is gone "
            f"({one_line(error)[:300]}). The last checkpoint is kept; start all "
            "processes again to go on.",
            1,
        )
    return None, 1
