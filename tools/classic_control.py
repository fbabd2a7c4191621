"""CartPole and Pendulum of gymnasium as batched torch environments, for rl3d's learners; float64 inside, as there.

Both end in a cut (`truncated`) after gymnasium's own limits of steps: 500 and 200.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rl3d.agents import Step


class _Batched:
    """N rows of a state [D], each of an age of its own."""

    limit: int

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.generator = torch.Generator().manual_seed(0)
        self.state = torch.zeros(count, size, dtype=torch.float64)
        self.age = torch.zeros(count, dtype=torch.int64)

    def fresh(self) -> Tensor:
        """First states of N episodes, [N, D]."""
        raise NotImplementedError

    def look(self) -> Tensor:
        """[N, ...] float32."""
        raise NotImplementedError

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Change the state; (reward, terminated) [N]."""
        raise NotImplementedError

    def reset(self, mask: Tensor | None = None, seed: int | None = None) -> dict[str, Tensor]:
        if seed is not None:
            self.generator.manual_seed(seed)
        rows = torch.ones(self.count, dtype=torch.bool) if mask is None else mask
        self.state = torch.where(rows[:, None], self.fresh(), self.state)
        self.age = torch.where(rows, 0, self.age)
        return {"state": self.look()}

    def step(self, action: Tensor) -> Step:
        reward, terminated = self.move(action)
        self.age = self.age + 1
        truncated = (self.age >= self.limit) & ~terminated
        final = seen = {"state": self.look()}
        done = terminated | truncated
        if bool(done.any()):
            seen = self.reset(done)
        return Step(seen, reward.float(), terminated, truncated, final, {})

    def state_dict(self) -> dict[str, Tensor]:
        return {"state": self.state, "age": self.age, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.age = state["state"].clone(), state["age"].clone()
        self.generator.set_state(state["generator"])


class CartPole(_Batched):
    """CartPole-v1 (Barto, Sutton and Anderson 1983). Actions [N] in {0, 1}; the observation is the state: place, speed,
    angle, turn."""

    limit = 500

    def __init__(self, count: int) -> None:
        super().__init__(count, 4)

    def fresh(self) -> Tensor:
        return 0.1 * torch.rand(self.count, 4, generator=self.generator, dtype=torch.float64) - 0.05

    def look(self) -> Tensor:
        return self.state.float()

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        cart, pole, half, tau = 1.0, 0.1, 0.5, 0.02  # kg, kg, m, s
        x, speed, angle, turn = self.state.unbind(1)
        force = 20.0 * action - 10.0
        cos, sin = torch.cos(angle), torch.sin(angle)
        push = (force + pole * half * turn**2 * sin) / (cart + pole)
        turning = (9.8 * sin - cos * push) / (half * (4 / 3 - pole * cos**2 / (cart + pole)))
        speeding = push - pole * half * turning * cos / (cart + pole)
        self.state = torch.stack([x + tau * speed, speed + tau * speeding, angle + tau * turn, turn + tau * turning], 1)
        fallen = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > math.radians(12))
        return torch.ones(self.count), fallen


class Pendulum(_Batched):
    """Pendulum-v1: actions [N, 1], a torque cut to [-2, 2]; the observation is (cos, sin, turn) of the angle from
    upright."""

    limit = 200

    def __init__(self, count: int) -> None:
        super().__init__(count, 2)

    def fresh(self) -> Tensor:
        high = torch.tensor([math.pi, 1.0], dtype=torch.float64)
        return high * (2 * torch.rand(self.count, 2, generator=self.generator, dtype=torch.float64) - 1)

    def look(self) -> Tensor:
        angle, turn = self.state.unbind(1)
        return torch.stack([torch.cos(angle), torch.sin(angle), turn], 1).float()

    def move(self, action: Tensor) -> tuple[Tensor, Tensor]:
        angle, turn = self.state.unbind(1)
        torque = action[:, 0].double().clamp(-2.0, 2.0)
        apart = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        reward = -(apart**2 + 0.1 * turn**2 + 0.001 * torque**2)
        turn = (turn + (15.0 * torch.sin(angle) + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        self.state = torch.stack([angle + 0.05 * turn, turn], 1)
        return reward, torch.zeros(self.count, dtype=torch.bool)
