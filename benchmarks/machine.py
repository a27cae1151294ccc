"""What a measurement ran on: every committed result names it."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax


def describe(*packages: str) -> dict[str, Any]:
    """Hardware, load, versions, commit and command, ready for JSON.

    Args:
        packages: whose versions to name beside Python's, JAX's and NumPy's; None where
            one is not installed.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in ("jax", "numpy", *packages)}
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
        "cpu": _cpu(),
        "cpu_cores": cpu_cores(),
        "load_average": os.getloadavg()[0],
        "versions": versions,
        "commit": commit.stdout.strip() or None,
        "command": ["python", "-m", _module(), *sys.argv[1:]],
    }


def cpu_cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1] for line in lines if "model name" in line]
        if names:
            return names[0].strip()
    return platform.processor() or platform.machine()
