"""What every optimised scene shares: leaf tensors under Adam, and the checkpoint that holds them exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d.errors import AssetError
from rl3d.files import atomic_path

MEMORY, ADAM = "memory.", "adam."


@dataclass(frozen=True)
class Rates:
    """Adam's learning rates; quaternions use the rate of the scales."""

    means: float
    scales: float
    colours: float
    opacities: float


def leaves_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().clone().requires_grad_(True) for k, v in tensors.items()}


def optimizer_of(leaves: Mapping[str, Tensor], rates: Mapping[str, float]) -> torch.optim.Adam:
    """Adam with a rate a leaf."""
    groups = [{"params": [leaf], "lr": rates[k], "name": k} for k, leaf in leaves.items()]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)


def adam_step(optimizer: torch.optim.Adam, loss: Tensor, rate: float) -> None:
    """One step on `loss`, with all rates scaled by `rate`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    base = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= rate
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, base):
        group["lr"] = lr


def save_leaves(
    path: Path,
    leaves: Mapping[str, Tensor],
    optimizer: torch.optim.Adam,
    facts: Mapping[str, Any],
    memory: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Leaves, Adam's moments, a method's memory (see `load_memory`), further tensors and JSON facts, atomically."""
    out = {**leaves, **(extra or {}), **{MEMORY + k: v for k, v in (memory or {}).items()}}
    for name, leaf in leaves.items():
        moments = optimizer.state.get(leaf, {})
        out |= {f"{ADAM}{name}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    with atomic_path(path) as temporary:
        whole = {k: v.detach().contiguous() for k, v in out.items()}
        save_file(whole, temporary, {"facts": json.dumps(dict(facts))})


def read_leaves(path: Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint, and its facts."""
    with safe_open(path, "pt") as handle:
        facts = json.loads(handle.metadata()["facts"])
    return load_file(path, device=str(device)), facts


def restore_moments(optimizer: torch.optim.Adam, leaves: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put Adam's moments among `tensors`, as `save_leaves` names them, back."""
    for name, leaf in leaves.items():
        prefix = f"{ADAM}{name}."
        entry = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if entry:  # a leaf that has had no gradient yet has none
            optimizer.state[leaf] = {**entry, "step": entry["step"].cpu()}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is an unreadable checkpoint.

    Raises:
        AssetError: the file is missing, truncated or of another kind.
    """
    try:
        yield
    except Exception as error:  # safetensors, json and the lookups each raise their own kinds
        reason = " ".join(str(error).split())[:160]
        raise AssetError(
            f"cannot read the checkpoint {path}: {reason or type(error).__name__}; begin anew with --overwrite"
        ) from error


def load_memory(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What a method left in a checkpoint of `SceneState.save`; the checkpoint itself is checked by the scene's `load`.

    Numbers (float64) stay on the CPU.
    """
    tensors = {k.removeprefix(MEMORY): v for k, v in load_file(path).items() if k.startswith(MEMORY)}
    return {k: v if v.dtype == torch.float64 else v.to(device) for k, v in tensors.items()}
