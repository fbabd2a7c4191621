"""Compiling is told once, loading a compiled kernel never; no kernel has parallel loops that it does not write."""

from __future__ import annotations

import logging
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import config

from rl3d import kernels
from rl3d.render import antialias_cpu, gaussians_cpu


def call_blend() -> tuple[object, ...]:
    """Call a kernel that is not in memory, it may be on disk; returns the signature."""
    kernel = numba.njit(cache=True, nogil=True)(antialias_cpu.blend.py_func)
    kernel(np.zeros((4, 3), np.float32), np.array([[0, 1, 0, 0, 0, 1]]), np.array([0.5], np.float32))
    (signature,) = kernel.signatures
    return signature


def test_a_compilation_is_told_once_and_a_kernel_on_disk_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    caplog.set_level(logging.INFO, "rl3d.kernels")
    for compiled in (True, False):
        monkeypatch.setattr(kernels.WORD, "told", False)
        caplog.clear()
        signature = call_blend()
        if compiled:
            numba.njit(antialias_cpu.blend.py_func).compile(signature)
        assert [r.getMessage() for r in caplog.records] == [kernels.MESSAGE] * compiled


def test_other_peoples_kernels_are_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.WORD, "told", False)
    assert numba.njit(lambda x: x + 1)(1) == 2
    assert not kernels.WORD.told


def test_no_kernel_has_parallel_loops_that_it_does_not_write() -> None:
    """numba empties a kernel's options when it compiles it: had two kernels shared them, the second would have none."""
    options = [kernel.targetoptions["parallel"] for kernel in (gaussians_cpu.forward, gaussians_cpu.backward)]
    assert options[0] is not options[1]
    assert all(found in ({}, kernels.prange_only()) for found in options)
