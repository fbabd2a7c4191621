"""Rules on clean samples that are noised again: any sampler, no path, no density.

All predict x0. `squared_error` to the base's prediction, times `forward.kl`, holds the policy near it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rl3d.multiview.policy import Drawn, Memory, PlainRule, Policy, noised, predicted
from rl3d.rl import (
    awm,
    diffusion_dpo,
    matching_log_probs,
    nft,
    optimality,
    reward_weighted_regression,
    squared_error,
)
from rl3d.rl.numbers import as_floats

Losses = Iterator[tuple[Tensor, dict[str, float]]]
OLD = "old."


class ForwardRule(PlainRule):
    """A loss of a noised micro-batch, a few noise levels a sample, and the pull to the base.

    `compares`: its loss asks what the policy that drew the samples predicts; otherwise `old` is the base's prediction.
    """

    compares = True

    def parts(self, drawn: Drawn) -> int:
        """One a noise level."""
        return self.options.forward.draws

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Losses:
        for draw in range(self.options.forward.draws):
            at = noised(drawn, policy.prior, draw)
            with torch.no_grad(), policy.reference():
                base = predicted(policy, drawn, at)
            old = base
            if self.compares:
                with torch.no_grad(), self.sampling(policy, memory):
                    old = predicted(policy, drawn, at)
            x0 = predicted(policy, drawn, at)
            loss, numbers = self.loss(drawn, x0, old, base)
            apart = squared_error(x0, base).mean()
            yield loss + self.options.forward.kl * apart, numbers

    def loss(self, drawn: Drawn, x0: Tensor, old: Tensor, base: Tensor) -> tuple[Tensor, dict[str, float]]:
        raise NotImplementedError

    def start(self, policy: Policy) -> Memory:
        return {OLD + name: value for name, value in policy.values().items()}

    def sampling(self, policy: Policy, memory: Memory) -> AbstractContextManager[None]:
        return policy.swapped(memory_of(memory))

    def stepped(self, policy: Policy, memory: Memory, step: int) -> Memory:
        """The old policy follows: old <- d old + (1 - d) theta, d = min(slope step, decay)."""
        o = self.options.forward
        d = min(o.old_slope * step, o.old_decay)
        now = policy.values()
        return {OLD + name: d * memory[OLD + name] + (1 - d) * value for name, value in now.items()}


def memory_of(memory: Memory) -> dict[str, Tensor]:
    """The old policy's values."""
    return {name.removeprefix(OLD): value for name, value in memory.items() if name.startswith(OLD)}


class NFT(ForwardRule):
    """Pull towards what was good, push from what was bad, both through v_old (DiffusionNFT, arXiv 2509.16117)."""

    def loss(self, drawn: Drawn, x0: Tensor, old: Tensor, base: Tensor) -> tuple[Tensor, dict[str, float]]:
        limit = self.options.advantage_limit
        r = optimality(drawn.advantages, limit)
        loss, numbers = nft(x0, old, drawn.path.clean, r, beta=self.options.forward.beta)
        return limit * loss, as_floats(numbers)


class AWM(ForwardRule):
    """The clipped surrogate on minus the matching error (AWM, arXiv 2509.25050)."""

    def loss(self, drawn: Drawn, x0: Tensor, old: Tensor, base: Tensor) -> tuple[Tensor, dict[str, float]]:
        o = self.options.forward
        now, then = (matching_log_probs(p, drawn.path.clean, power=o.power) for p in (x0, old))
        loss, numbers = awm(now, then, drawn.advantages, clip=o.clip)
        return loss, as_floats(numbers)


class RewardWeighted(ForwardRule):
    """The pre-training loss, weighted by exp(beta A) (reward-weighted regression, Peters & Schaal 2007)."""

    compares = False

    def loss(self, drawn: Drawn, x0: Tensor, old: Tensor, base: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = reward_weighted_regression(x0, drawn.path.clean, drawn.advantages)
        return loss, {"weight_max": float(drawn.advantages.max())}


class DiffusionDPO(ForwardRule):
    """The better of two samples of a prompt before the worse, at the same level and noise (arXiv 2311.12908)."""

    compares, paired, together = False, True, 2

    def loss(self, drawn: Drawn, x0: Tensor, old: Tensor, base: Tensor) -> tuple[Tensor, dict[str, float]]:
        e, e_ref = (squared_error(p, drawn.path.clean) for p in (x0, base))
        loss, numbers = diffusion_dpo(e[0::2], e[1::2], e_ref[0::2], e_ref[1::2], beta=self.options.forward.beta)
        return loss, as_floats(numbers)
