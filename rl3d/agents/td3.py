"""TD3 (Fujimoto et al. 2018, arXiv 1802.09477) for latent codes as actions; DDPG (1509.02971) is a special case.

State is explicit: `TD3State` goes in and comes out of `td3_update` by way of its modules, the caller keeps the loop and
the replay. Actions lie in [-1, 1]^k; scale them to the generator's range outside.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rl3d.agents.policies import mlp
from rl3d.errors import InputError
from rl3d.rl.tensors import positive, same_shape


@dataclass(frozen=True)
class TD3Options:
    """Attributes:
    gamma: 0 for one-step episodes (a bandit). tau: share of the new weights in the targets after each actor step.
    smooth, limit: noise on the target's action, and where it is cut. delay: critic steps an actor step.
    critics: 2, the smaller one counts; 1 is DDPG's. actor_rate, critic_rate: Adam's.
    """

    gamma: float = 0.99
    tau: float = 0.005
    smooth: float = 0.2
    limit: float = 0.5
    delay: int = 2
    critics: int = 2
    actor_rate: float = 1e-3
    critic_rate: float = 1e-3

    def __post_init__(self) -> None:
        positive(delay=self.delay, critics=self.critics, actor_rate=self.actor_rate, critic_rate=self.critic_rate)
        if not (0 <= self.gamma <= 1 and 0 < self.tau <= 1 and self.smooth >= 0 and self.limit >= 0):
            raise InputError(
                f"TD3 needs gamma in [0, 1], tau in (0, 1], smooth and limit from 0, got {self.gamma}, {self.tau}, "
                f"{self.smooth}, {self.limit}"
            )


DDPG = TD3Options(smooth=0.0, delay=1, critics=1)


@dataclass
class TD3State:
    """Networks, their targets and optimisers, and how many critic steps were made."""

    actor: nn.Module
    critics: nn.ModuleList
    target_actor: nn.Module
    target_critics: nn.ModuleList
    actor_optimiser: torch.optim.Optimizer
    critic_optimiser: torch.optim.Optimizer
    steps: int = 0


def td3_state(state_size: int, action_size: int, options: TD3Options, hidden: int = 128) -> TD3State:
    """Fresh networks of two hidden layers; the actor ends in tanh."""
    actor = nn.Sequential(mlp(state_size, hidden, hidden, action_size, gain=0.1, activation=nn.ReLU), nn.Tanh())
    critics = nn.ModuleList(
        mlp(state_size + action_size, hidden, hidden, 1, gain=1.0, activation=nn.ReLU) for _ in range(options.critics)
    )
    return TD3State(
        actor,
        critics,
        copy.deepcopy(actor),
        copy.deepcopy(critics),
        torch.optim.Adam(actor.parameters(), lr=options.actor_rate),
        torch.optim.Adam(critics.parameters(), lr=options.critic_rate),
    )


@dataclass
class Replay:
    """The last `capacity` transitions, as tensors [C, ...]; terminated means that nothing follows, a cut does not."""

    capacity: int
    rows: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def push(self, state: Tensor, action: Tensor, reward: Tensor, following: Tensor, terminated: Tensor) -> None:
        """B transitions at once."""
        new = {"state": state, "action": action, "reward": reward, "next": following, "terminated": terminated}
        same_shape(reward=reward, terminated=terminated)
        if not self.rows:
            self.rows = {k: v.new_zeros((self.capacity, *v.shape[1:])) for k, v in new.items()}
        where = (self.count + torch.arange(len(reward))) % self.capacity
        for name, value in new.items():
            self.rows[name][where] = value.detach()
        self.count += len(reward)

    def sample(self, batch: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """`batch` transitions, with replacement, exactly as many as asked for.

        Raises:
            InputError: nothing was pushed yet.
        """
        held = min(self.count, self.capacity)
        if held == 0:
            raise InputError("the replay is empty; push transitions before sampling")
        chosen = torch.randint(held, (batch,), generator=generator)
        return {name: value[chosen] for name, value in self.rows.items()}


def td3_update(
    state: TD3State, batch: dict[str, Tensor], options: TD3Options, generator: Generator | None = None
) -> dict[str, float]:
    """One critic step, and every `delay`-th time one actor step with the targets after it.

    Target: y = r + gamma (1 - terminated) min_i Q'_i(s', clip(mu'(s') + clip(noise, -c, c), -1, 1)). Actor: -mean Q_1.
    """
    s, a, r = batch["state"], batch["action"], batch["reward"]
    with torch.no_grad():
        noise = options.smooth * torch.randn(a.shape, generator=generator, dtype=a.dtype)
        best = (state.target_actor(batch["next"]) + noise.clamp(-options.limit, options.limit)).clamp(-1, 1)
        ahead = torch.stack([q(torch.cat([batch["next"], best], 1))[:, 0] for q in state.target_critics]).amin(0)
        y = r + options.gamma * ~batch["terminated"] * ahead
    values = [q(torch.cat([s, a], 1))[:, 0] for q in state.critics]
    critic_loss = torch.stack([(value - y).square().mean() for value in values]).sum()
    _step(state.critic_optimiser, critic_loss)
    state.steps += 1
    numbers = {"critic_loss": float(critic_loss.detach()), "value": float(values[0].detach().mean())}
    if state.steps % options.delay == 0:
        actor_loss = -state.critics[0](torch.cat([s, state.actor(s)], 1)).mean()
        _step(state.actor_optimiser, actor_loss)
        for live, target in ((state.actor, state.target_actor), (state.critics, state.target_critics)):
            with torch.no_grad():
                for p, q in zip(live.parameters(), target.parameters()):
                    q.lerp_(p, options.tau)
        numbers["actor_loss"] = float(actor_loss.detach())
    return numbers


def _step(optimiser: Any, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


@torch.no_grad()
def explore(state: TD3State, s: Tensor, noise: float, generator: Generator | None = None) -> Tensor:
    """mu(s) with Gaussian noise of a std in the actions' units, within [-1, 1]; 1% of the range explores nothing."""
    action = state.actor(s)
    return (action + noise * torch.randn(action.shape, generator=generator)).clamp(-1, 1)
