"""Tests share compiled programs, over processes and from one run to the next.

The stand-in for the model is compiled a hundred times by the tests of the loop;
most of their time went there. JAX's own variables have the last word.
"""

import os
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
