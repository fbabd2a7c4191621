"""What a run or a benchmark ran on, and how much memory it took. Nothing here imports torch."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from threading import Event, Thread
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "numba", "trimesh", "safetensors", "pillow", "diffusers", "transformers")


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record. Names no host, user or path; does not import torch."""
    packages = {"rl3d": package_version("rl3d")} | {name: package_version(name) for name in PACKAGES}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: version for name, version in packages.items() if version},
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "memory_mib": _total_memory_mib(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mib() -> int:
    """The process's highest resident memory since it began."""
    import resource

    # A child inherits ru_maxrss from a large parent, so Linux's own high-water mark goes first.
    peak = _proc_status_mib("VmHWM")
    if peak is None:
        raw = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = raw / (2**20 if sys.platform == "darwin" else 2**10)
    return round(peak)


class PeakMemory:
    """The highest resident memory inside a `with` block, in `mib`.

    The process's high-water mark never falls, so it tells a block's peak only when the block raised it; otherwise the
    peak is the largest of samples taken every 50 ms.
    """

    def __init__(self) -> None:
        self.mib = 0
        self._stop = Event()
        self._sampled = 0.0

    def __enter__(self) -> PeakMemory:
        self._before = peak_memory_mib()
        self._sampled = _proc_status_mib("VmRSS") or 0.0
        self._thread = Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        after = peak_memory_mib()
        self.mib = after if after > self._before or not self._sampled else round(self._sampled)

    def _sample(self) -> None:
        while not self._stop.wait(0.05):
            self._sampled = max(self._sampled, _proc_status_mib("VmRSS") or 0.0)


def _proc_status_mib(key: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _total_memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        return None


def package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
