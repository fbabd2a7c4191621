"""One thread in tests: two 2-thread pools on two cores collapse, and results must not hang on the core count."""

from __future__ import annotations

import os

# Read once, when torch and numba load; a value that the caller set stays.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
