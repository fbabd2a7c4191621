"""The last step of training a reward: the averaged weights of a run, and a model that ships with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rl3d.assets import record_model
from rl3d.files import atomic_write_text, write_json


def averaged_weights(run: Path) -> dict[str, Tensor]:
    """The moving average in a training run's checkpoint, by the model's own names."""
    tensors = load_file(run / "checkpoint.safetensors")
    return {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}


def ship(assets: Path, what: str, card: str, evaluation: dict[str, Any]) -> None:
    """Beside weights in an asset folder: the card, its numbers, and the entry in the manifest."""
    atomic_write_text(assets / "README.md", card)
    write_json(assets / "evaluation.json", evaluation)
    licence = "Apache-2.0 (weights), CC0-1.0 (data)"
    record_model(assets.name, description=what, licence=licence, root=assets.parent)
