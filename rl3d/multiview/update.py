"""An optimizer step over all processes: gradients of every micro-batch, the budget, the clip, AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from rl3d.multiview.options import AdapterOptions
from rl3d.multiview.policy import Drawn, Memory, Policy, Rule, noised, predicted
from rl3d.rl import clip_gradients, squared_error


def optimizer_for(policy: Policy, options: AdapterOptions) -> torch.optim.AdamW:
    """AdamW over the adapter."""
    o = options
    return torch.optim.AdamW(policy.parameters.values(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)


def gradients(rule: Rule, policy: Policy, micros: Sequence[Drawn], memory: Memory, total: int) -> dict[str, float]:
    """This process's part of the mean loss's gradient over `total` rows, in the parameters' `.grad`; and the numbers.

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
    return {name: value / count for name, value in sums.items()}


def summed(value: float, accelerator: Accelerator) -> float:
    """A number's sum over the processes."""
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=accelerator.device), "sum"))


@torch.no_grad()
def distance_from_base(policy: Policy, micros: Sequence[Drawn]) -> float:
    """Squared difference of the predictions of policy and base, mean over dimensions, sum over this process's rows.

    A KL in the prediction's space: every Gaussian step's exact KL is this times a factor of its level.
    """
    total = 0.0
    for drawn in micros:
        at = noised(drawn, policy.prior, 0)
        with policy.reference():
            base = predicted(policy, drawn, at)
        total += float(squared_error(predicted(policy, drawn, at), base).double().sum())
    return total


def take(policy: Policy, optimizer: torch.optim.Optimizer, options: AdapterOptions) -> tuple[bool, float]:
    """Clip and step, unless the gradient is not finite.

    Returns:
        Whether the step was taken, and the gradient's norm before the clip.
    """
    report = clip_gradients(policy.parameters.values(), options.clip)
    if report.finite:
        optimizer.step()
    return report.finite, report.norm
