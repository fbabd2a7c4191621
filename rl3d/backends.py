"""Which renderers exist, what each can do, and whether it can run here. Nothing here imports torch before it must.

"cpu" and "torch" are this package's own and are chosen by themselves; the others are optional packages that are used
only when asked for by name.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from rl3d.errors import InputError, nearest

MESHES, GAUSSIANS = "meshes", "Gaussians"
WAY_OUT = 'pass backend="torch" (any device) or "cpu" (float32 tensors on the CPU)'
_PLACES = {"any": "any device", "cpu": "the CPU", "cuda": "a CUDA device"}


@dataclass(frozen=True)
class Backend:
    """One way to render.

    Attributes:
        scenes: which of MESHES and GAUSSIANS it renders.
        devices: types of torch devices; "any" for all.
        dtypes: of the tensors that it takes.
        module: what has to be importable. install: how to get it.
        licence: of that package.
    """

    name: str
    adds: str
    scenes: tuple[str, ...]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    module: str
    install: str
    licence: str


BACKENDS = {
    b.name: b
    for b in (
        Backend(
            "cpu",
            "compiled kernels, the default where they fit",
            (MESHES, GAUSSIANS),
            ("cpu",),
            ("float32",),
            "numba",
            "pip install numba",
            "BSD-2-Clause",
        ),
        Backend(
            "torch",
            "plain torch, the readable reference",
            (MESHES, GAUSSIANS),
            ("any",),
            ("float32", "float64"),
            "torch",
            "pip install torch",
            "BSD-3-Clause",
        ),
        Backend(
            "gsplat",
            "fast Gaussian splatting on CUDA GPUs",
            (GAUSSIANS,),
            ("cuda",),
            ("float32",),
            "gsplat",
            "pip install gsplat",
            "Apache-2.0",
        ),
        Backend(
            "pytorch3d",
            "PyTorch3D's mesh rasterizer, only when asked for by name",
            (MESHES,),
            ("cpu", "cuda"),
            ("float32",),
            "pytorch3d",
            "build it: see PyTorch3D's INSTALL.md",
            "BSD-3-Clause",
        ),
        Backend(
            "nvdiffrast",
            "NVIDIA's mesh rasterizer, only when asked for by name",
            (MESHES,),
            ("cuda",),
            ("float32",),
            "nvdiffrast",
            "pip install git+https://github.com/NVlabs/nvdiffrast",
            "NVIDIA Source Code License, non-commercial",
        ),
    )
}


def for_scenes(scenes: str) -> list[str]:
    """Names of the backends that render MESHES or GAUSSIANS."""
    return [b.name for b in BACKENDS.values() if scenes in b.scenes]


def why_not(name: str) -> str | None:
    """Why a known backend cannot run on this machine, in a few words; None where it can.

    The package is looked for, not imported: one that is there but broken is found out on first use.
    """
    backend = BACKENDS[name]
    if not _installed(backend.module):
        return "not installed"
    if "any" in backend.devices or "cpu" in backend.devices or _cuda():
        return None
    return "needs a CUDA device and torch sees none"


def check_backend(name: str, scenes: str, device: str, dtype: str) -> Backend:
    """The backend by its name, if it can render these tensors here.

    Args:
        scenes: MESHES or GAUSSIANS. device: a torch device's type. dtype: such as "float32".

    Raises:
        InputError: no such backend, one for other scenes, one that cannot run here, or another device or dtype.
    """
    choices = ", ".join(for_scenes(scenes))
    backend = BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None:
        guess = nearest(str(name), for_scenes(scenes), 1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise InputError(f"unknown backend {name!r} for {scenes}; choose one of {choices}{hint}")
    if scenes not in backend.scenes:
        raise InputError(
            f"unknown backend {name!r} for {scenes}: it renders {' and '.join(backend.scenes)}; choose one of {choices}"
        )
    fault = why_not(name)
    if fault == "not installed":
        raise InputError(
            f'backend "{name}" needs the package {backend.module} ({fault}); {backend.install}, or {WAY_OUT}'
        )
    if fault is not None:
        raise InputError(f'backend "{name}" {fault}; {WAY_OUT}')
    if not {"any", device} & set(backend.devices) or dtype not in backend.dtypes:
        raise InputError(
            f'backend "{name}" takes {" or ".join(backend.dtypes)} tensors on '
            f"{' or '.join(_PLACES[d] for d in backend.devices)}, got {dtype} on {device}; {WAY_OUT}"
        )
    return backend


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _cuda() -> bool:
    try:
        import torch
    except (ImportError, OSError):  # OSError: a shared library does not load
        return False
    return torch.cuda.is_available()
