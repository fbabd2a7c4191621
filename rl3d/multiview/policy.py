"""The policy that is tuned: a prior with an adapter; its base, the adapter off; and a micro-batch of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rl3d.errors import InputError
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.rollouts import Path, noise_for
from rl3d.priors import adapters
from rl3d.priors.adapters import LoraOptions, TunablePrior
from rl3d.priors.protocol import Prior

Memory = dict[str, Tensor]  # what a rule remembers between rounds; saved with the checkpoint


@dataclass(frozen=True)
class Policy:
    """A prior whose adapter is trained."""

    prior: Prior
    network: nn.Module
    parameters: dict[str, nn.Parameter]

    @classmethod
    def of(cls, prior: Prior, options: FinetuneOptions) -> Policy:
        """Put a fresh adapter on the prior.

        Raises:
            InputError: the prior cannot carry one, or carries one already.
        """
        if not isinstance(prior, TunablePrior):
            raise InputError(f"the prior {prior.name!r} has no network to put an adapter on")
        o = options.adapter
        parameters = adapters.attach(prior, LoraOptions(o.rank, o.alpha), options.seed)
        return cls(prior, prior.network, parameters)

    def reference(self) -> AbstractContextManager[None]:
        """Inside, it is the base."""
        return adapters.reference(self.network)

    def swapped(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, the adapter has these values; no graph may be alive across it."""
        return adapters.swapped(self.network, values)

    def values(self) -> dict[str, Tensor]:
        """A copy of the adapter's values."""
        return {name: tensor.detach().clone() for name, tensor in self.parameters.items()}


@dataclass(frozen=True)
class Drawn:
    """A micro-batch of samples with their verdict.

    Attributes:
        path: of B rows. advantages, rewards: [B].
        seeds: B numbers that belong to the rows and the optimizer's step: levels and noise are drawn from them, so that
            it does not matter which process has a row.
    """

    path: Path
    advantages: Tensor
    rewards: Tensor
    seeds: tuple[int, ...]


class Rule(Protocol):
    """An algorithm: losses of a micro-batch, each a mean over its rows, one after the other; and what it remembers.

    Attributes:
        paired: it wants every micro-batch to be (winner, loser, winner, loser, ...) of the same prompt.
        together: how many neighbouring rows must stay in one micro-batch.
    """

    paired: bool
    together: int

    def start(self, policy: Policy) -> Memory:
        """The memory before the first round."""
        ...

    def sampling(self, policy: Policy, memory: Memory) -> AbstractContextManager[None]:
        """Inside, the network is the policy that draws."""
        ...

    def parts(self, drawn: Drawn) -> int:
        """How many losses a micro-batch has; their mean counts."""
        ...

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """(loss, numbers for the log); the caller goes backward before it asks for the next."""
        ...

    def stepped(self, policy: Policy, memory: Memory, step: int) -> Memory:
        """The memory after an optimizer step."""
        ...


class PlainRule:
    """What most rules share: they draw from the policy as it is and remember nothing."""

    paired, together = False, 1

    def __init__(self, options: FinetuneOptions) -> None:
        self.options = options

    def parts(self, drawn: Drawn) -> int:
        """One a kept step."""
        return len(drawn.path.levels)

    def start(self, policy: Policy) -> Memory:
        return {}

    def sampling(self, policy: Policy, memory: Memory) -> AbstractContextManager[None]:
        return nullcontext()

    def stepped(self, policy: Policy, memory: Memory, step: int) -> Memory:
        return memory


@dataclass(frozen=True)
class Noised:
    """Clean samples noised again: x_t [B, V, c, h, w] at levels t [B]."""

    x_t: Tensor
    t: Tensor


def noised(drawn: Drawn, prior: Prior, draw: int) -> Noised:
    """The `draw`-th noising of a micro-batch's clean samples; one of the sampler's own levels a row.

    Both sides of a pair (rows 2 i and 2 i + 1 with the same seed) get the same level and noise.
    """
    generators = [torch.Generator().manual_seed(seed + 7919 * draw) for seed in drawn.seeds]
    times = prior.times(drawn.path.options.steps)[:-1]
    t = torch.stack([times[int(torch.randint(len(times), (), generator=g))] for g in generators]).float()
    clean = drawn.path.clean
    noise = noise_for(generators, clean.shape[1:], clean)
    t = t.to(clean.device)
    return Noised(prior.add_noise(clean, noise, t), t)


def predicted(policy: Policy, drawn: Drawn, at: Noised) -> Tensor:
    """x0 [B, V, c, h, w] of the text-only prediction; differentiable where gradients are enabled."""
    return policy.prior.predict_x0(at.x_t, at.t, drawn.path.prompt, drawn.path.cameras)[0]
