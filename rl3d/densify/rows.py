"""Rows of Gaussians and of what an optimizer remembers of them, and the random draws of the policies."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.gaussians import Gaussians

Moments = dict[str, Tensor]
OPAQUE = 1 - 1e-4  # the most opacity that is shared among copies: logarithms of 1 - opacity are taken


def adam_moments(optimizer: torch.optim.Optimizer, leaves: Mapping[str, Tensor]) -> Moments:
    """Adam's running means of the leaves {field: parameter}, as "<field>.exp_avg" and "<field>.exp_avg_sq"."""
    kinds = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    state = {name: optimizer.state.get(leaf, {}) for name, leaf in leaves.items()}
    return {f"{name}.{kind}": entry[kind] for name, entry in state.items() for kind in kinds if kind in entry}


def continue_adam(
    optimizer: torch.optim.Optimizer, leaves: Mapping[str, Tensor], gaussians: Gaussians, moments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put changed Gaussians and their moments in the place of the old leaves, in the same optimizer.

    Args:
        leaves: {field: parameter}, each in one of the optimizer's groups. gaussians, moments: as `step` returned them.

    Returns:
        The new leaves under the same names; rates, step counts and everything else of the groups stay.
    """
    fresh = {name: getattr(gaussians, name).detach().clone().requires_grad_(True) for name in leaves}
    for name, old in leaves.items():
        for group in optimizer.param_groups:
            group["params"] = [fresh[name] if p is old else p for p in group["params"]]
        entry = optimizer.state.pop(old, None)
        if entry is not None:
            rows = {k.removeprefix(f"{name}."): v for k, v in moments.items() if k.startswith(f"{name}.")}
            optimizer.state[fresh[name]] = {**entry, **rows}
    return fresh


def take(
    gaussians: Gaussians, moments: Moments, index: Tensor, fresh: Tensor | None = None
) -> tuple[Gaussians, Moments]:
    """Rows `index` of the Gaussians and of their moments; the moments of `fresh` rows [M] are zero."""
    rows = {name: values[index] for name, values in moments.items()}
    if fresh is not None:
        for values in rows.values():
            values[fresh] = 0
    return gaussians.detach()[index], rows


def draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices by weight, with replacement."""
    # a search in float64 sums: multinomial takes at most 2^24 rows
    total = weights.double().cpu().cumsum(0)
    where = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, where, right=True).clamp_max(len(weights) - 1).to(weights.device)


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator).to(like)


def check_schedule(start: int, every: int, budget: int) -> None:
    if start < 0 or every < 1 or budget < 1:
        raise InputError(f"a policy needs start >= 0, every >= 1 and budget >= 1, got {start}, {every} and {budget}")
