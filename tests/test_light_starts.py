"""What a command does not load: it starts at once, and on systems without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Slow to import, or large.
HEAVY = {
    *("jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "scipy", "PIL"),
    *("tensorflow_datasets", "tensorflow", "tensorboardX", "trimesh", "numba", "tqdm"),
    *("imageio_ffmpeg", "safetensors", "simplejpeg", "h5py", "matplotlib", "asyncio"),
}
# Of reading data sets and of logging: nobody trains there.
OF_TRAINING = {"grain", "tensorflow_datasets", "tensorflow", "tensorboardX"}
TENSORS = {"tensorflow_datasets", "tensorflow", "h5py", "matplotlib"}
PARTS = {
    "unsup3d": ("unsup3d.reconstruct_files", "unsup3d.task", "engine.scored"),
    "stn3dmm": ("stn3dmm.reconstruct_files", "stn3dmm.shipped", "engine.scored"),
    "gan2shape": ("gan2shape.reconstruct_files",),
}


def _loaded(code: str) -> set[str]:
    """The top-level names of what is loaded after some lines of Python."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = json.loads(done.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names}


def test_help_loads_nothing_heavy():
    """Neither does a misspelt flag, nor a config that is read and checked."""
    lines = """
from unsup3d_jax import cli, flags
for given in (["--help"], ["--mode=fly"], ["--config=quickstart", "--checkpoint=x"]):
    try:
        cli.main(["main.py", *given])
    except SystemExit:
        pass
flags.parse(["main.py", "--config=gan2shape/faces"], cli.METHODS)
"""
    assert not _loaded(lines) & HEAVY


@pytest.mark.once
@pytest.mark.parametrize("method", PARTS)
def test_reconstruct_loads_nothing_of_trainings(method):
    lines = "\n".join(f"import unsup3d_jax.{part}" for part in PARTS[method])
    assert not _loaded(lines) & (OF_TRAINING | {"h5py", "matplotlib"})


@pytest.mark.once
def test_a_training_loads_neither_meshes_nor_data_sets_of_others():
    parts = ("unsup3d.task", "unsup3d.score", "engine.scored", "data.load")
    lines = "\n".join(f"import unsup3d_jax.{part}" for part in parts)
    assert not _loaded(lines) & (TENSORS | {"trimesh", "imageio_ffmpeg"})


# POSIX only, in the standard library.
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
FUNCTIONS = ("fork", "killpg", "setsid", "getuid", "statvfs", "sched_getaffinity",
             "set_blocking", "nice", "uname", "getpgid", "mkfifo")  # fmt: skip
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "SIGCHLD", "SIGQUIT")
# Others' modules may have them: they have their own ways on other systems.
AS_ON_WINDOWS = f"""
import builtins, os, signal, sys
import jax, flax, optax, orbax.checkpoint, grain, scipy.stats, trimesh, imageio_ffmpeg

own, original = ("unsup3d_jax", "configs", "rasterizer"), builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    by = ((globals or {{}}).get("__name__") or "").partition(".")[0]
    if by in own and name in {MODULES!r}:
        raise ModuleNotFoundError(f"No module named {{name!r}}")
    return original(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
for name in {FUNCTIONS!r}:
    vars(os).pop(name, None)
for name in {SIGNALS!r}:
    vars(signal).pop(name, None)
"""
ALL = """
import importlib
from pathlib import Path
names = []
for top in ("unsup3d_jax", "configs", "rasterizer"):
    for path in sorted(Path(top).rglob("*.py")):
        parts = path.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        importlib.import_module(name)
        names.append(name)
assert len(names) > 200, len(names)
"""


@pytest.mark.once
def test_all_modules_are_imported_without_what_posix_alone_has():
    _loaded(AS_ON_WINDOWS + ALL)


@pytest.mark.once
def test_a_workdir_is_locked_and_signals_are_heard_there(tmp_path):
    """A lock is held against another process, and is free once that is killed."""
    use = f"""
from pathlib import Path
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.workdir import lock_workdir
folder = Path({str(tmp_path / "run")!r})
"""
    wait = "with Interrupts(), lock_workdir(folder):\n"
    holds = wait + "    print('held', flush=True)\n    import time; time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", AS_ON_WINDOWS + use + holds],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        refused = subprocess.run(
            [sys.executable, "-c", AS_ON_WINDOWS + use + wait + "    pass"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert f"is in use by process {holder.pid} on " in refused.stderr
    finally:
        holder.kill()
        holder.wait()
    _loaded(AS_ON_WINDOWS + use + wait + "    pass")
