"""Options of preference alignment. The command line reads them without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rl3d.ranges import need, need_share


@dataclass(frozen=True)
class AlignOptions:
    """How the model learns from pairs.

    Attributes:
        masked: M-DPO; False: all tokens count. good_above: a face's quality from which phi is 1.
        window: so many tokens of both sides count, from one random place; 0: all.
        reduce: "sum" as in the papers, "mean" divides by the tokens that count; beta goes with it.
        sft: weight of the winner's mean -log p.
        pairs: a step. micro_batch: pairs at once. warmup: steps until the whole rate.
    """

    masked: bool = True
    good_above: float = 0.5
    window: int = 0
    reduce: Literal["sum", "mean"] = "sum"
    beta: float = 0.1
    sft: float = 0.1
    lr: float = 1e-5
    steps: int = 200
    pairs: int = 8
    micro_batch: int = 4
    warmup: int = 10
    clip_norm: float = 1.0
    save_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        need_share(self, "align", "good_above")
        for name in ("steps", "pairs", "micro_batch", "save_every"):
            need(getattr(self, name) >= 1, f"align.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("window", "sft", "warmup", "seed"):
            need(getattr(self, name) >= 0, f"align.{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta", "lr", "clip_norm"):
            value = getattr(self, name)
            need(math.isfinite(value) and value > 0, f"align.{name} must be positive, got {value}")
        need(self.reduce in ("sum", "mean"), f"align.reduce must be sum or mean, got {self.reduce!r}")
