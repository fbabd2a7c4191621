"""Small policies for observations of one vector: {"state": [N, D], "mask": [N, A] where actions can be barred}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from rl3d.agents.environment import Decision, Observation
from rl3d.rl.distributions import Beta, Distribution, Gaussian, MaskedCategorical


def mlp(*sizes: int, gain: float, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of orthogonal weights (gain sqrt 2, the last one `gain`) and biases of 0."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(n_in, n_out)
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2))
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return nn.Sequential(*layers)


class _VectorPolicy(nn.Module):
    """Separate networks for actor and critic, as low-dimensional observations want them."""

    def __init__(self, size: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.actor = mlp(size, hidden, hidden, outputs, gain=0.01)
        self.critic = mlp(size, hidden, hidden, 1, gain=1.0)

    def distribution(self, observation: Mapping[str, Tensor]) -> Distribution:
        raise NotImplementedError

    @torch.no_grad()
    def act(self, observation: Observation, env: Any, generator: Generator | None) -> Decision:
        drawn = self.distribution(observation)
        action = drawn.sample(generator)
        return Decision(action, drawn.log_prob(action), self.value(observation), observation)

    def evaluate(self, kept: Mapping[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drawn = self.distribution(kept)
        return drawn.log_prob(action), drawn.entropy(), self.value(dict(kept))

    def value(self, observation: Observation) -> Tensor:
        return self.critic(observation["state"])[:, 0]


class CategoricalPolicy(_VectorPolicy):
    """One of `actions`, barred by observation["mask"] where there is one."""

    def __init__(self, size: int, actions: int, hidden: int = 64) -> None:
        super().__init__(size, actions, hidden)

    def distribution(self, observation: Mapping[str, Tensor]) -> MaskedCategorical:
        return MaskedCategorical(self.actor(observation["state"]), observation.get("mask"))


class GaussianPolicy(_VectorPolicy):
    """`actions` real numbers; the spread does not depend on the observation. The environment clips, not the policy."""

    def __init__(self, size: int, actions: int, hidden: int = 64, log_std: float = 0.0) -> None:
        super().__init__(size, actions, hidden)
        self.log_std = nn.Parameter(torch.full((actions,), log_std))

    def distribution(self, observation: Mapping[str, Tensor]) -> Gaussian:
        return Gaussian(self.actor(observation["state"]), self.log_std)


class BetaPolicy(_VectorPolicy):
    """`actions` numbers in (low, high), single-peaked."""

    def __init__(self, size: int, actions: int, hidden: int = 64, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(size, 2 * actions, hidden)
        self.low, self.high = low, high

    def distribution(self, observation: Mapping[str, Tensor]) -> Beta:
        alpha, beta = (1 + softplus(self.actor(observation["state"]))).chunk(2, -1)
        return Beta(alpha, beta, self.low, self.high)
