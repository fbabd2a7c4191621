"""Rounds of fine-tuning small enough for tests: prompts, options, a reward, and what a run left."""

from __future__ import annotations

from pathlib import Path

import torch

from rl3d.multiview.options import FinetuneOptions, WatchOptions
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.rewards.protocol import RewardInput, reward
from rl3d.runs import read_metrics

PROMPTS = ["a box", "a crate", "a barrel"]
TINY = FinetuneOptions(
    rounds=2,
    prompts_per_round=2,
    group=4,
    micro_batch=4,
    sampler=SamplerOptions(steps=4),
    watch=WatchOptions(every=0, kl_budget=10.0),
)


@reward(views=None)
def dark(x: RewardInput) -> torch.Tensor:
    return 1 - x.images.mean((1, 2, 3, 4))


def rounds(out: Path) -> list[dict]:
    return [row for row in read_metrics(out / "metrics.jsonl") if row["stage"] == "round"]


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()
