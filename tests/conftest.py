"""One thread in tests: two 2-thread pools on two cores collapse, and results must not hang on the core count."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

# Read once, when torch and numba load; a value that the caller set stays.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"

HOLDER = """
import sys, time
from rl3d.files import file_lock
with file_lock(sys.argv[1]) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def killed_holder() -> Callable:
    """Another process that takes a lock, and is killed some seconds later."""

    @contextmanager
    def hold(path: Path, seconds: float) -> Iterator[None]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", HOLDER, str(path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
            timer = Timer(seconds, holder.kill)
            timer.start()
            try:
                yield
            finally:
                timer.join()

    return hold
