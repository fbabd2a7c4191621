"""An optimizer step over all processes: gradients of every micro-batch, the budget, the clip, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from rl3d.multiview.options import AdapterOptions
from rl3d.multiview.policy import Drawn, Memory, Policy, Rule, noised, predicted
from rl3d.rl import clip_gradients, squared_error


@dataclass(frozen=True)
class Outcome:
    """What a step did: whether it was taken, why not, and numbers for the log."""

    taken: bool
    broken: bool
    numbers: dict[str, float]


def optimizer_for(policy: Policy, options: AdapterOptions) -> torch.optim.AdamW:
    """AdamW over the adapter."""
    o = options
    return torch.optim.AdamW(policy.parameters.values(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)


def gradients(
    rule: Rule, policy: Policy, micros: Sequence[Drawn], memory: Memory, total: int, accelerator: Accelerator
) -> dict[str, float]:
    """The mean loss's gradient over the `total` rows of all processes, in the parameters' `.grad`; and the numbers.

    Numbers are means over this process's micro-batches.
    """
    for tensor in policy.parameters.values():
        tensor.grad = torch.zeros_like(tensor)
    sums: dict[str, float] = {}
    count = 0
    for drawn in micros:
        share = len(drawn.path) / (total * rule.parts(drawn))
        for loss, numbers in rule.losses(drawn, policy, memory):
            (loss * share).backward()
            count += 1
            for name, value in {"loss": float(loss.detach()), **numbers}.items():
                sums[name] = sums.get(name, 0.0) + value
    if accelerator.num_processes > 1:
        _shared(list(policy.parameters.values()), accelerator)
    return {name: value / count for name, value in sums.items()}


def _shared(parameters: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Every gradient becomes its sum over the processes, in one message."""
    slopes = [tensor.grad for tensor in parameters if tensor.grad is not None]
    whole = accelerator.reduce(torch.cat([slope.flatten() for slope in slopes]), "sum")
    for slope, piece in zip(slopes, whole.split([slope.numel() for slope in slopes])):
        slope.copy_(piece.view_as(slope))


@torch.no_grad()
def distance_from_base(policy: Policy, micros: Sequence[Drawn], total: int, accelerator: Accelerator) -> float:
    """Mean squared difference of the predictions of policy and base, in the diffusion space, over a round's samples.

    A KL in the prediction's space: every Gaussian step's exact KL is this times a factor of its level.
    """
    sums = torch.zeros((), dtype=torch.float64)
    for drawn in micros:
        at = noised(drawn, policy.prior, 0)
        with policy.reference():
            base = predicted(policy, drawn, at)
        sums += squared_error(predicted(policy, drawn, at), base).double().sum().cpu()
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
    return float(sums) / total


def take(policy: Policy, optimizer: torch.optim.Optimizer, options: AdapterOptions) -> tuple[bool, float]:
    """Clip and step, unless the gradient is not finite.

    Returns:
        Whether the step was taken, and the gradient's norm before the clip.
    """
    report = clip_gradients(policy.parameters.values(), options.clip)
    if report.finite:
        optimizer.step()
    return report.finite, report.norm
