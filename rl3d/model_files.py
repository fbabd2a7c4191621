"""Embedded models as folders: `model.safetensors`, `config.json` and, where a model reads words, `vocabulary.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl3d.errors import AssetError
from rl3d.files import atomic_path, write_json


def write_weights(folder: Path, model: nn.Module, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Write weights as `dtype` and the configuration, each file atomically."""
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    write_json(folder / "config.json", config)


def write_model(
    folder: Path, model: nn.Module, config: Mapping[str, Any], words: Mapping[str, int], dtype: torch.dtype
) -> None:
    """Write the three files, each atomically; weights as `dtype`, words in the order of their ids."""
    write_weights(folder, model, config, dtype)
    write_json(folder / "vocabulary.json", sorted(words, key=words.__getitem__))


def read_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and float32 weights that `write_weights` wrote; use it within `readable`."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, int], dict[str, Tensor]]:
    """The configuration, word -> id, and float32 weights that `write_model` wrote; use it within `readable`."""
    config, tensors = read_weights(folder)
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return config, {w: i for i, w in enumerate(words)}, tensors


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns whatever a missing, truncated or foreign file raises into an AssetError about `what`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{what} cannot be loaded ({reason}); reinstall rl3d") from error
