"""Checks of arguments that commands share. All of them run before torch is imported, but for `usable_device`."""

from __future__ import annotations

import re
from pathlib import Path

from rl3d.errors import ConfigError, InputError

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
SCENE_SUFFIXES = (*MESH_SUFFIXES, ".splat", ".safetensors")


def whole_number(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise InputError(f"{name} must lie between {least} and {most}, got {value}")
    return value


def seed(value: int) -> int:
    return whole_number("--seed", value, 0, 2**63 - 1)


def scene_file(name: str) -> Path:
    """A file that may hold a mesh, splats or a field; its content is judged by the reader."""
    path = Path(name)
    if path.is_dir():
        raise InputError(f"{name} is a folder; give a file ({', '.join(SCENE_SUFFIXES)})")
    if not path.is_file():
        raise InputError(f"no such file: {name}")
    if path.suffix.lower() not in SCENE_SUFFIXES:
        raise InputError(f"{name} is no 3D file that rl3d reads; known: {', '.join(SCENE_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{name} is empty (0 bytes); export it again")
    return path


def mesh_file(name: str) -> Path:
    """A file that may hold a mesh; its content is judged by the reader."""
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name} is a folder; give a file" if path.is_dir() else f"no such file: {name}")
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise InputError(f"{name} is no mesh file that rl3d reads; known: {', '.join(MESH_SUFFIXES)}")
    return path


def mesh_files(names: list[str]) -> list[Path]:
    """Mesh files as they come; a folder stands for those in it, sorted by name."""
    paths: list[Path] = []
    for name in names:
        if not Path(name).is_dir():
            paths.append(mesh_file(name))
            continue
        found = sorted(p for p in Path(name).iterdir() if p.suffix.lower() in MESH_SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"the folder {name} holds no mesh files; known: {', '.join(MESH_SUFFIXES)}")
        paths += found
    return paths


def config_file(name: str) -> Path:
    if not Path(name).is_file():
        raise ConfigError(f"no such file: --config {name}")
    return Path(name)


def device_name(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"unknown --device {name!r}; known: cpu, cuda, cuda:N, mps")
    return name


def usable_device(name: str) -> str:
    """A device that torch has here; imports torch unless it is the CPU."""
    if name == "cpu":
        return name
    import torch

    if name == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("--device mps: torch finds no Apple GPU here; use --device cpu")
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise InputError(f"--device {name}: torch {torch.__version__} finds no CUDA GPU here; use --device cpu")
    if int(name.partition(":")[2] or 0) >= count:
        raise InputError(f"--device {name}: there are {count} CUDA GPUs, numbered from 0")
    return name
