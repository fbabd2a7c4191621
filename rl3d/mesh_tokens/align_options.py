"""Options of preference alignment. The command line reads them without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rl3d.errors import way_out
from rl3d.mesh_tokens.pairs import METRICS
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


@dataclass(frozen=True)
class OnlineOptions:
    """How the model learns from what it draws itself (GRPO, arXiv 2402.03300).

    Attributes:
        shapes: a step. group: candidates of each. max_faces: a candidate that goes on beyond is given up and fails.
        weights: of the metrics by name, each standardised in its group (GDPO, arXiv 2601.05242); negative ones do not
            exist, which way is better is known.
        floor: least deviation that is divided by, of metrics in [0, 1]: a group below it teaches little.
        clip, beta: of GRPO. Steps are on-policy, so that the clip only bounds what rounding does.
        micro_batch: candidates at once in the backward pass.
    """

    shapes: int = 2
    group: int = 8
    weights: tuple[tuple[str, float], ...] = (("ber", 1.0), ("ts", 1.0), ("hd", 1.0))
    floor: float = 1e-3
    clip: float = 0.2
    beta: float = 0.02
    max_faces: int = 500
    micro_batch: int = 8
    lr: float = 1e-5
    steps: int = 100
    warmup: int = 5
    clip_norm: float = 1.0
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shapes", "max_faces", "micro_batch", "steps", "save_every"):
            need(getattr(self, name) >= 1, f"online.{name} must be at least 1, got {getattr(self, name)}")
        need(self.group >= 2, f"online.group must be at least 2, got {self.group}: one has nothing to compare with")
        for name in ("warmup", "seed", "beta"):
            need(getattr(self, name) >= 0, f"online.{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "clip", "floor", "clip_norm"):
            value = getattr(self, name)
            need(math.isfinite(value) and value > 0, f"online.{name} must be positive, got {value}")
        for name, weight in self.weights:
            need(name in METRICS, f"online.weights: unknown metric {name!r}; {way_out(name, METRICS)}")
            need(weight > 0, f"online.weights.{name} must be positive, got {weight}")
        need(bool(self.weights), "online.weights must name at least one metric")
