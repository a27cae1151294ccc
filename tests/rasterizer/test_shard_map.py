"""jax.shard_map, with its checks, changes neither images nor gradients."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.rasterizer.two_devices import CASES

ROOT = Path(__file__).resolve().parents[2]
# Others are traced only, which is when JAX checks what varies from device to device.
QUICK = {"xla": ("hard",), "numba": ("grid",), "pallas": ()}


@pytest.fixture(autouse=True)
def optimised():
    """Not here: another process compiles."""


@cache
def run(backend: str, cases: tuple[str, ...]) -> dict[str, str]:
    """Reports of all cases, of which some are also run, from one process."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.rasterizer.two_devices", backend, *cases],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.once
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "backend",
    # By the loops the whole training step is tried, in tests/engine.
    ["xla", *(pytest.param(b, marks=pytest.mark.slow) for b in ("pallas", "numba"))],
)
def test_shard_map_takes_all_functions(backend, case):
    if backend == "numba":
        pytest.importorskip("numba")
    report = run(backend, QUICK[backend])[case]
    assert not report, report


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["xla", "numba"])
def test_shard_map_gives_what_one_device_gives(backend, case):
    if backend == "numba":
        pytest.importorskip("numba")
    report = run(backend, tuple(CASES))[case]
    assert not report, report
