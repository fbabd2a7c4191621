"""What a policy draws actions from: frozen dataclasses with `sample`, `log_prob`, `entropy` and `mode`.

Log-probs are those of the action, sums over its dimensions (not means, as `gaussian_log_prob` has them for latents),
so PPO's usual clip of 0.1 to 0.2 fits. Samples have no gradient and come from the generator that is passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import log_softmax

from rl3d.errors import InputError


class Distribution(Protocol):
    """[B] independent rows; actions are [B] (whole numbers) or [B, D]."""

    def sample(self, generator: Generator | None = None) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor: ...


@dataclass(frozen=True)
class MaskedCategorical:
    """One of A actions, of which only those under the mask can be drawn (Huang & Ontanon 2022, arXiv 2006.14171).

    An action outside the mask has probability 0, log-prob -inf and no gradient; the entropy is that of what is allowed.

    Attributes:
        logits: [B, A]. mask: [B, A] bool, None: everything is allowed.
    """

    logits: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.mask.shape != self.logits.shape or self.mask.dtype != torch.bool:
            raise InputError(
                f"the mask must be bool {list(self.logits.shape)}, got {self.mask.dtype} {list(self.mask.shape)}"
            )
        empty = ~self.mask.any(-1)
        if bool(empty.any()):
            raise InputError(
                f"row {int(empty.nonzero()[0, 0])} has no allowed action ({int(empty.sum())} of {len(empty)} rows); "
                "give the environment an action for that, such as leaving out"
            )

    @property
    def log_probs(self) -> Tensor:
        """[B, A]; -inf outside the mask. Differentiable to the logits."""
        if self.mask is None:
            return log_softmax(self.logits, -1)
        low = torch.finfo(self.logits.dtype).min
        inside = log_softmax(torch.where(self.mask, self.logits, torch.full_like(self.logits, low)), -1)
        return torch.where(self.mask, inside, torch.full_like(inside, -math.inf))

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        """[B] int64: the largest of log p + Gumbel noise, of one uniform number an action."""
        u = torch.rand(self.logits.shape, generator=generator, dtype=torch.float64, device=self.logits.device)
        noise = -torch.log(-torch.log(u.clamp(1e-300, 1 - 1e-16)))
        return (self.log_probs.double() + noise).argmax(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """[B] for actions [B]."""
        return self.log_probs.gather(-1, action[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """[B], nats."""
        lp = self.log_probs
        allowed = torch.isfinite(lp)
        lp = torch.where(allowed, lp, torch.zeros_like(lp))
        return -(lp.exp() * lp * allowed).sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal numbers; `log_std` is a parameter of its own in most policies. [B, D] and [D] or [B, D]."""

    mean: Tensor
    log_std: Tensor

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        return self.mean.detach()

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action.detach() - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std.expand_as(self.mean) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl_to_prior(self) -> Tensor:
        """[B] KL(self || N(0, I)) = sum(mu^2 + s^2 - 1 - 2 log s) / 2: anchors an action that is a latent code."""
        log_std = self.log_std.expand_as(self.mean)
        return 0.5 * (self.mean**2 + torch.exp(2 * log_std) - 1 - 2 * log_std).sum(-1)


@dataclass(frozen=True)
class Beta:
    """Independent numbers in (low, high) (Chou et al. 2017): no mass outside the bounds, so nothing to clip.

    Attributes:
        alpha, beta: [B, D], positive; above 1 for a single peak. low, high: of every dimension.
    """

    alpha: Tensor
    beta: Tensor
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"a Beta policy needs low < high, got {self.low} and {self.high}")

    @torch.no_grad()
    def sample(self, generator: Generator | None = None) -> Tensor:
        a = torch._standard_gamma(self.alpha.double(), generator=generator)
        b = torch._standard_gamma(self.beta.double(), generator=generator)
        unit = (a / (a + b)).clamp(1e-6, 1 - 1e-6)
        return (self.low + (self.high - self.low) * unit).to(self.alpha.dtype)

    def mode(self) -> Tensor:
        """The peak where alpha and beta are above 1, else the mean."""
        peak = (self.alpha - 1) / (self.alpha + self.beta - 2).clamp_min(1e-6)
        single = (self.alpha > 1) & (self.beta > 1)
        unit = torch.where(single, peak, self.alpha / (self.alpha + self.beta))
        return (self.low + (self.high - self.low) * unit).detach()

    def log_prob(self, action: Tensor) -> Tensor:
        width = self.high - self.low
        unit = ((action.detach() - self.low) / width).clamp(1e-6, 1 - 1e-6)
        density = (self.alpha - 1) * unit.log() + (self.beta - 1) * torch.log1p(-unit) - self._log_normaliser
        return (density - math.log(width)).sum(-1)

    def entropy(self) -> Tensor:
        a, b = self.alpha, self.beta
        inner = (a - 1) * torch.digamma(a) + (b - 1) * torch.digamma(b) - (a + b - 2) * torch.digamma(a + b)
        return (self._log_normaliser - inner + math.log(self.high - self.low)).sum(-1)

    @property
    def _log_normaliser(self) -> Tensor:
        return torch.lgamma(self.alpha) + torch.lgamma(self.beta) - torch.lgamma(self.alpha + self.beta)


@dataclass(frozen=True)
class ObjectThenCell:
    """First an object, then a place that is legal for it: p(o, c) = p(o) p(c | o). Actions are [B, 2].

    Independent heads (MultiDiscrete) cannot do that: which cells are legal depends on the object.

    Attributes:
        objects: [B, K]. cells: objects [B] -> the distribution over their places; called once an action.
    """

    objects: MaskedCategorical
    cells: Callable[[Tensor], MaskedCategorical]

    def sample(self, generator: Generator | None = None) -> Tensor:
        chosen = self.objects.sample(generator)
        return torch.stack([chosen, self.cells(chosen).sample(generator)], -1)

    def mode(self) -> Tensor:
        """The likeliest object, and its likeliest place."""
        chosen = self.objects.mode()
        return torch.stack([chosen, self.cells(chosen).mode()], -1)

    def log_prob_and_entropy(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """([B], [B]): the entropy is H(o) + H(c | the chosen o), whose mean over draws is the joint one."""
        cells = self.cells(action[:, 0])
        log_prob = self.objects.log_prob(action[:, 0]) + cells.log_prob(action[:, 1])
        return log_prob, self.objects.entropy() + cells.entropy()
