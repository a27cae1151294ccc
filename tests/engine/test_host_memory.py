"""Memory that a CPU program frees is used again by its next call."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from unsup3d_jax import cli
from unsup3d_jax.engine import host_memory

CALLS = """
import resource, sys
import jax, jax.numpy as jnp
from unsup3d_jax.engine import host_memory
if sys.argv[1] == "keep":
    assert host_memory.keep_freed()
# A product, of whose operands a compiler stores one or both: 64 MiB each.
x = jnp.zeros((256, 65536))
f = jax.jit(lambda x: ((x + 1) @ (x + 2).T).sum())
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready(), f(x).block_until_ready()
before = faults()
for _ in range(3): f(x).block_until_ready()
print((faults() - before) * resource.getpagesize() // 2**20)
"""


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.once  # two processes compile; it is no matter of being right
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.skipif(
    HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(),
    reason="a fault may map 2 MiB here, and they are counted as of one page",
)
def test_large_arrays_are_not_asked_of_the_kernel_anew():
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }

    def mapped(mode: str) -> int:
        """MiB that three calls map anew, of the 64 or 128 that each needs."""
        run = [sys.executable, "-c", CALLS, mode]
        done = subprocess.run(run, check=True, capture_output=True, env=environment)
        return int(done.stdout)

    given_back = mapped("give back")
    assert given_back > 3 * 50
    assert mapped("keep") < given_back / 2  # something may take one array's place


def test_it_is_set_before_a_thread_is_started(monkeypatch):
    seen = []
    monkeypatch.setattr(host_memory, "keep_freed", lambda: seen.append("memory"))
    monkeypatch.setattr(cli, "Interrupts", lambda: seen.append("threads"))
    with pytest.raises(TypeError):  # None is no context
        cli.main(["main.py"])
    assert seen == ["memory", "threads"]


def test_a_users_own_settings_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not host_memory.keep_freed()
