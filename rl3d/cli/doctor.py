"""`rl3d doctor`: what this installation can do, what each extra would add, and what is broken."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rl3d import __version__
from rl3d.backends import BACKENDS, why_not
from rl3d.environment import available_cpus, cpu_name, package_version

# What the package metadata requires; a test compares the two.
REQUIRED = (
    "torch",
    "numpy",
    "scipy",
    "numba",
    "trimesh",
    "safetensors",
    "pillow",
    "pyyaml",
    "tqdm",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "fast-simplification",
    "scikit-image",
    "xatlas",
)
# What `rl3d generate` and `rl3d score` cannot do without.
MODELS = ("prior", "judge_reward", "judge_gold")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "f16c", "fma", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Extra:
    """An optional package: how it is imported, what it adds, its licence, how to get it."""

    package: str
    module: str
    adds: str
    licence: str
    install: str


EXTRAS = (
    *(
        Extra(b.name, b.module, b.adds, b.licence, b.install)
        for b in BACKENDS.values()
        if b.name not in ("cpu", "torch")
    ),
    Extra(
        "open3d",
        "open3d",
        "meshes and point clouds to and from Open3D",
        "MIT",
        "pip install open3d-cpu (or open3d)",
    ),
    Extra("viser", "viser", "a live viewer in the browser (planned)", "Apache-2.0", "pip install viser"),
    Extra("trl", "trl", "preference pairs of meshes in TRL's DPOTrainer", "Apache-2.0", "pip install 'rl3d[trl]'"),
    Extra("usd-core", "pxr", "USD files of meshes", "TOST-1.0", "pip install usd-core"),
    Extra("gymnasium", "gymnasium", "environments for 3D agents (planned)", "MIT", "pip install gymnasium"),
    Extra(
        "imageio",
        "imageio",
        "video files of turntables (planned)",
        "BSD-2-Clause",
        "pip install imageio imageio-ffmpeg",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if args.json else describe(report))
    return 1 if report["broken"] else 0


def examine() -> dict[str, Any]:
    """All facts, JSON-able; `broken` lists what stops rl3d from working, `warnings` what may."""
    broken: list[str] = []
    warnings: list[str] = []
    packages = {name: package_version(name) for name in REQUIRED}
    for name, version in packages.items():
        if version is None:
            broken.append(f"the required package {name} is not installed; pip install {name}")
    torch_facts = _torch_facts(broken)
    if package_version("torchvision") and torch_facts.get("cuda_build") is None:
        warnings.append(
            "torchvision stands beside a torch without CUDA; if diffusers or transformers fail to import,"
            " pip uninstall torchvision (rl3d does not use it)"
        )
    extras = [
        {**vars(extra), "version": package_version(extra.package), "installed": find_spec(extra.module) is not None}
        for extra in EXTRAS
    ]
    caches = _caches()
    warnings += [
        f"{c['purpose']}: {c['path']} is not writable; set {c['variable']}" for c in caches if not c["writable"]
    ]
    return {
        "rl3d": __version__,
        "cpu": {"name": cpu_name(), "cpus": available_cpus(), "features": cpu_features()},
        "torch": torch_facts,
        "packages": packages,
        "backends": _backends(),
        "models": _models(broken),
        "rewards": _rewards() if torch_facts else [],
        "extras": extras,
        "caches": caches,
        "warnings": warnings,
        "broken": broken,
    }


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    cpu, torch = report["cpu"], report["torch"]
    lines = [f"rl3d {report['rl3d']}", f"cpu: {cpu['name']}, {cpu['cpus']} usable, {' '.join(cpu['features'])}"]
    if torch:
        lines.append(
            f"torch: {torch['version']}, {torch['threads']} threads, CUDA build: {torch['cuda_build'] or 'no'}"
        )
        lines += [f"  GPU {i}: {g['name']}, {g['memory_mib']} MiB" for i, g in enumerate(torch["gpus"])]
    lines.append("packages: " + ", ".join(f"{k} {v or 'MISSING'}" for k, v in report["packages"].items()))
    lines.append("render backends:")
    for name, backend in report["backends"].items():
        able = f"{', '.join(backend['scenes'])}; {', '.join(backend['devices'])}; {', '.join(backend['dtypes'])}"
        lines.append(f"  {name:<10}  {able:<45}  {backend['why_not'] or 'ok'}")
    lines.append("embedded models:")
    for model in report["models"]:
        size = f"{model['bytes'] / 2**20:.1f} MiB"
        lines.append(f"  {model['name']}: {model['description']}, {size}, {model['licence']}, {model['fault'] or 'ok'}")
    lines.append("rewards with published weights (method.reward.name=FAMILY:PATH_OR_ID):")
    for reward in report["rewards"]:
        lines.append(f"  {reward['name']}: {reward['about']}, files: {reward['files']}; {reward['why_not'] or 'ok'}")
    lines.append("optional extras:")
    for extra in report["extras"]:
        state = (
            f"installed {extra['version'] or ''}".rstrip()
            if extra["installed"]
            else f"not installed: {extra['install']}"
        )
        lines.append(f"  {extra['package']}: {extra['adds']} ({extra['licence']}); {state}")
    lines.append("caches:")
    lines += [f"  {c['purpose']}: {c['path']}, {'ok' if c['writable'] else 'NOT WRITABLE'}" for c in report["caches"]]
    lines += [f"warning: {text}" for text in report["warnings"]]
    lines += [f"BROKEN: {text}" for text in report["broken"]] or ["everything that rl3d needs is here"]
    return "\n".join(lines)


def cpu_features() -> list[str]:
    """Those of CPU_FEATURES that the processor reports, from /proc/cpuinfo or else numpy's own probe."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        words = {w for line in text.splitlines() if line.startswith(("flags", "Features")) for w in line.split()}
    except OSError:
        words = set()
    if not words:
        try:
            features = import_module("numpy._core._multiarray_umath").__cpu_features__
        except (ImportError, AttributeError):
            features = {}
        words = {name.lower() for name, present in features.items() if present}
    return [name for name in CPU_FEATURES if name in words]


def _torch_facts(broken: list[str]) -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library does not load
        if package_version("torch") is not None:
            broken.append(f"torch does not import ({error}); reinstall it")
        return {}
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            gpus.append({"name": facts.name, "memory_mib": facts.total_memory // 2**20})
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda_build": torch.version.cuda,
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def _backends() -> dict[str, dict[str, Any]]:
    """What can render what, and why it cannot here (None: it can)."""
    return {
        name: {"scenes": b.scenes, "devices": b.devices, "dtypes": b.dtypes, "why_not": why_not(name)}
        for name, b in BACKENDS.items()
    }


def _models(broken: list[str]) -> list[dict[str, Any]]:
    from rl3d.assets import embedded_models, find_fault, packaged_folder
    from rl3d.errors import AssetError

    try:
        root = packaged_folder("assets")
        models = embedded_models(root)
    except AssetError as error:
        broken.append(str(error))
        return []
    for name in MODELS:
        if name not in models:
            broken.append(f"the embedded model {name!r} is not in this installation; reinstall rl3d")
    rows = []
    for model in models.values():
        fault = find_fault(model, root)
        if fault is not None:
            broken.append(f"the embedded model {model.name!r}: {fault}; reinstall rl3d")
        rows.append(
            {
                "name": model.name,
                "description": model.description,
                "licence": model.licence,
                "bytes": model.bytes,
                "files": len(model.files),
                "fault": fault,
            }
        )
    return rows


def _rewards() -> list[dict[str, Any]]:
    from rl3d.rewards.hub import family_facts

    return family_facts()


def _caches() -> list[dict[str, Any]]:
    home = Path.home()
    numba = os.environ.get("NUMBA_CACHE_DIR")
    # numba caches beside the source, or in the user's cache folder where that cannot be written.
    kernels = Path(numba) if numba else Path(__file__).resolve().parents[1]
    if not numba and not _writable(kernels):
        kernels = home / ".cache" / "numba"
    hub = Path(os.environ.get("HF_HOME", home / ".cache" / "huggingface"))
    rows = [("compiled CPU kernels", kernels, "NUMBA_CACHE_DIR"), ("hub models", hub, "HF_HOME")]
    return [{"purpose": p, "path": str(d), "variable": v, "writable": _writable(d)} for p, d, v in rows]


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    try:
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError:
        return False
