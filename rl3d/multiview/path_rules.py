"""Rules on the density of sampled steps. Rollouts kept x_t, where each noisy step landed, and its log-density."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rl3d.multiview.policy import Drawn, Memory, PlainRule, Policy
from rl3d.multiview.rollouts import Path, replay
from rl3d.rl import clipped_surrogate, d3po, dpok, gaussian_kl, grpo
from rl3d.rl.numbers import as_floats

Losses = Iterator[tuple[Tensor, dict[str, float]]]


@torch.no_grad()
def path_kl(policy: Policy, path: Path) -> Tensor:
    """k = mean_t[log p_theta - log p_ref] [B] on the sampled path: what Carve3D's advantage is charged for."""
    with policy.reference():
        reference = torch.stack([replay(policy.prior, path, k)[0] for k in range(len(path.levels))])
    return (path.log_p - reference).mean(0)


class Clipped(PlainRule):
    """L = mean_t max(-A rho, -A clip(rho)), rho = exp(log p_theta - log p_old).

    DDPO (Black et al. 2023, arXiv 2305.13301). Carve3D (Xie et al. 2024, arXiv 2312.13980) is the same with one
    optimizer step a round, where rho is 1 and this is REINFORCE, and with `path_kl` in the advantage.
    """

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Losses:
        for k in range(len(drawn.path.levels)):
            log_p, _ = replay(policy.prior, drawn.path, k)
            loss, numbers = clipped_surrogate(log_p, drawn.path.log_p[k], drawn.advantages, clip=self.options.path.clip)
            yield loss, as_floats(numbers)


class WithKL(PlainRule):
    """What DPOK and GRPO share: the exact KL of every step to the base, ||mu - mu_ref||^2 / (2 sigma^2)."""

    def kl(self, policy: Policy, path: Path, k: int, mean: Tensor, std: float) -> Tensor:
        if self.options.path.kl == 0:
            return torch.zeros(len(mean), device=mean.device)
        with torch.no_grad(), policy.reference():
            _, base = replay(policy.prior, path, k)
        return gaussian_kl(mean, base.mean, std)


class DPOK(WithKL):
    """L = -A log p_theta + beta KL_t (DPOK, Fan et al. 2023, arXiv 2305.16381), a step at a time; on-policy."""

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Losses:
        for k in range(len(drawn.path.levels)):
            log_p, step = replay(policy.prior, drawn.path, k)
            kl = self.kl(policy, drawn.path, k, step.mean, step.std)
            loss = dpok(log_p[:, None], drawn.advantages, kl[:, None], alpha=1.0, beta=self.options.path.kl)
            yield loss, {"kl_step": float(kl.detach().mean())}


class GRPO(WithKL):
    """L = max(-A rho, -A clip(rho)) + beta KL_t on a window of steps (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470)."""

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Losses:
        o = self.options.path
        for k in range(len(drawn.path.levels)):
            log_p, step = replay(policy.prior, drawn.path, k)
            kl = self.kl(policy, drawn.path, k, step.mean, step.std)
            old = drawn.path.log_p[k]
            loss, numbers = grpo(log_p[:, None], old[:, None], drawn.advantages, kl[:, None], clip=o.clip, beta=o.kl)
            yield loss, {**as_floats(numbers), "kl_step": float(kl.detach().mean())}


class D3PO(PlainRule):
    """DPO on every step of a pair of paths (Yang et al. 2023, arXiv 2311.13231)."""

    paired, together = True, 2

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Losses:
        o = self.options.path
        for k in range(len(drawn.path.levels)):
            with torch.no_grad(), policy.reference():
                base, _ = replay(policy.prior, drawn.path, k)
            log_p, _ = replay(policy.prior, drawn.path, k)
            loss, numbers = d3po(log_p[0::2], log_p[1::2], base[0::2], base[1::2], beta=o.beta, clip=o.ratio_clip)
            yield loss, as_floats(numbers)
