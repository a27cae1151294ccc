"""Tests share compiled programs, and compile them without much optimisation.

Most of their time goes to the compiler, for programs that run once. The tests of
the rasterizer, whose numbers may not depend on what a compiler makes of them,
have it optimise (tests/rasterizer/conftest.py). JAX's own variables have the last
word.
"""

import os
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
