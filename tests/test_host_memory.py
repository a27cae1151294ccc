"""Memory that a CPU program frees is used again by its next call."""

import platform
import subprocess
import sys

import pytest

CALLS = """
import resource, sys
import jax, jax.numpy as jnp
from unsup3d_jax import host_memory
if sys.argv[1] == "keep":
    assert host_memory.keep_freed()
# Products, so that their operands are computed and stored: 64 MB each.
f = jax.jit(lambda x: ((x + 1) @ (x + 2).T).sum())
x = jnp.zeros((256, 65536))
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready(), f(x).block_until_ready()
before = faults()
for _ in range(3): f(x).block_until_ready()
print((faults() - before) * resource.getpagesize() // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_arrays_are_not_asked_of_the_kernel_anew():
    def mebibytes(mode: str) -> int:
        """Mapped by three calls of a program that needs 128 MiB and more."""
        run = [sys.executable, "-c", CALLS, mode]
        return int(subprocess.run(run, check=True, capture_output=True).stdout)

    assert mebibytes("keep") < 150  # something may take one array's place
    assert mebibytes("give back") > 300
