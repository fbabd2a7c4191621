"""Judges of random weights that go through the same code as the shipped ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rl3d.data.colours import WORDS as COLOURS
from rl3d.rewards.judges import Judge, JudgeConfig, build_model

NOUNS = [f"thing{i}" for i in range(30)] + ["barrel", "car"]


def make_judge(which: str, seed: int = 0) -> Judge:
    words = ["<pad>", "<null>", *sorted([*COLOURS, *NOUNS])]
    if which == "reward":
        config = JudgeConfig("reward", len(words), 32, (8, 16, 16), 16, embedding=8)
    else:
        config = JudgeConfig("gold", len(words), 16, (8, 8), 16, embedding=8, heads=2, view_blocks=1)
    torch.manual_seed(seed)
    model = build_model(config).eval().requires_grad_(False)
    distractors = tuple(f"{COLOURS[i % 13]} thing{i}" for i in range(30))
    return Judge(
        which, model, {w: i for i, w in enumerate(words)}, distractors, {"car": 0.1} if which == "gold" else {}
    )


def make_views(batch: int, views: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    """[B, V, 4, S, S] premultiplied noise."""
    images = torch.rand(batch, views, 4, size, size, generator=torch.Generator().manual_seed(seed))
    images[:, :, :3] *= images[:, :, 3:]
    return images


@pytest.fixture
def tiny_judge() -> Callable[..., Judge]:
    return make_judge


@pytest.fixture
def random_views() -> Callable[..., torch.Tensor]:
    return make_views
