"""What an accelerator can do at best: bytes moved and numbers multiplied a second.

    python -m benchmarks.ceilings --output=machine.json

Every share and floor in the other results is of these two, measured on the same
machine in the same hour: a copy of an array much larger than the caches, counting
bytes read and bytes written, and products of large square matrices of random numbers
(zeros multiply faster than what anybody trains on).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import machine

CALLS = 10  # back to back, in one measurement
ROUNDS = 5


def seconds_of(call: Callable[[], Any], calls: int = CALLS) -> float:
    """Median seconds of one of several calls in a row, compiled before."""
    jax.block_until_ready(call())
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def copy_rate(mebibytes: int) -> float:
    """Bytes read and written a second by a copy."""
    x = jax.random.normal(jax.random.key(0), (mebibytes * 2**18,))
    copy = jax.jit(lambda x: x + 1.0)
    return 2 * x.nbytes / seconds_of(lambda: copy(x))


def product_rate(n: int, dtype: str, precision: str) -> float:
    """Operations a second of an n x n matrix product."""
    x = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))
    return 2 * n**3 / seconds_of(lambda: product(x))


def launch_seconds() -> float:
    """Seconds of one call of a program that does next to nothing."""
    x = jnp.zeros(8)
    add = jax.jit(lambda x: x + 1.0)
    return seconds_of(lambda: add(x), calls=100)


def _card() -> dict[str, str]:
    """What the driver says of the card and its clocks."""
    fields = "name,driver_version,memory.total,power.limit,clocks.sm,clocks.mem"
    if shutil.which("nvidia-smi") is None:
        return {}
    told = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout.splitlines()
    values = told[0].split(", ") if told else []
    return dict(zip(fields.split(","), values, strict=False))


def measure(*, small: bool) -> dict[str, Any]:
    """All of it; `small` for a rehearsal on a CPU."""
    n, mebibytes = (512, 16) if small else (8192, 2048)
    rates = {
        "bfloat16": product_rate(n, "bfloat16", "default"),
        "float32, default (TF32)": product_rate(n, "float32", "default"),
        "float32, highest": product_rate(n, "float32", "highest"),
    }
    return {
        "copy_gb_per_s": copy_rate(mebibytes) / 1e9,
        "product_tflop_per_s": {name: r / 1e12 for name, r in rates.items()},
        "call_us": 1e6 * launch_seconds(),
        "card": _card(),
        "machine": machine.describe("jaxlib", "flax", "optax", "numba", "torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    parser.add_argument("--output", type=Path, help="JSON file")
    flags = parser.parse_args()
    report = measure(small=flags.small)
    text = json.dumps(report, indent=1)
    print(text)
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        flags.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
