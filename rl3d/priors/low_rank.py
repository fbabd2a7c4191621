"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of a prior's linear layers, as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.priors.protocol import PromptEmbedding


@runtime_checkable
class AdaptablePrior(Protocol):
    """A prior whose linear layers can be replaced for one prediction."""

    def linears(self) -> dict[str, Tensor]:
        """The weights [O, I] that an adapter may change, by name."""
        ...

    def predict_x0_with(
        self, weights: Mapping[str, Tensor], x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras
    ) -> Tensor:
        """x0 [B, V, c, h, w] of the text-only prediction with these weights; differentiable to them, not clamped."""
        ...


def start_factors(linears: Mapping[str, Tensor], rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Factors "NAME.down" [rank, I] (random) and "NAME.up" [O, rank] (zero, so that nothing changes at first)."""
    factors = {}
    for name, weight in linears.items():
        rows, columns = weight.shape
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        factors[f"{name}.down"] = down.to(weight.device)
        factors[f"{name}.up"] = torch.zeros(rows, rank, device=weight.device)
    return factors


def adapted(linears: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + up @ down for every weight, in its own precision; differentiable to the factors."""
    return {
        name: (weight.float() + factors[f"{name}.up"] @ factors[f"{name}.down"]).to(weight.dtype)
        for name, weight in linears.items()
    }
