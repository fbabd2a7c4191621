"""Environments that a learner must solve in seconds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rl3d.agents import Step


class Identity:
    """The observation names the right action: one of four (one-hot), or the number itself. One step an episode.

    With `barred`, the mask takes the right action and one more away, and the action after it pays instead.
    """

    def __init__(self, count: int, kind: str = "categorical", barred: bool = False) -> None:
        self.count, self.kind, self.barred = count, kind, barred
        self.generator = torch.Generator().manual_seed(0)
        self.goal = torch.zeros(count)

    def reset(self, mask: Tensor | None = None, seed: int | None = None) -> dict[str, Tensor]:
        if seed is not None:
            self.generator.manual_seed(seed)
        if self.kind == "categorical":
            self.goal = torch.randint(4, (self.count,), generator=self.generator)
        else:
            self.goal = torch.rand(self.count, generator=self.generator)
        return self._see()

    def _see(self) -> dict[str, Tensor]:
        if self.kind != "categorical":
            return {"state": self.goal[:, None].clone()}
        state = torch.nn.functional.one_hot(self.goal, 4)
        seen = {"state": state.float()}
        if self.barred:
            seen["mask"] = ~state.bool()
        return seen

    def step(self, action: Tensor) -> Step:
        if self.kind == "categorical":
            if self.barred:
                assert not bool((action == self.goal).any())
            reward = (action == (self.goal + self.barred) % 4).float()
        else:
            reward = 1 - (action[:, 0] - self.goal).abs()
        final = self._see()
        over = torch.ones(self.count, dtype=torch.bool)
        return Step(self.reset(), reward, over, ~over, final, {"right": reward})

    def state_dict(self) -> dict[str, Tensor]:
        return {"goal": self.goal, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.goal = state["goal"].clone()
        self.generator.set_state(state["generator"])


class Corridor:
    """A step to the right pays 1 at the end of L places. Rows are cut off after `limit` steps, each at its own time.

    The observation is the place, one-hot. With `endless` the end pays and lets go on (a continuing task).
    """

    def __init__(self, count: int, length: int = 4, limit: int = 6) -> None:
        self.count, self.length, self.limit = count, length, limit
        self.place = torch.zeros(count, dtype=torch.int64)
        self.age = torch.arange(count) % limit  # not in step with each other

    def reset(self, mask: Tensor | None = None, seed: int | None = None) -> dict[str, Tensor]:
        rows = torch.ones(self.count, dtype=torch.bool) if mask is None else mask
        self.place = torch.where(rows, 0, self.place)
        if mask is not None:
            self.age = torch.where(rows, 0, self.age)
        return self._see()

    def _see(self) -> dict[str, Tensor]:
        return {"state": torch.nn.functional.one_hot(self.place, self.length).float()}

    def step(self, action: Tensor) -> Step:
        self.place = (self.place + 2 * action - 1).clamp(0, self.length - 1)
        self.age = self.age + 1
        terminated = self.place == self.length - 1
        truncated = (self.age >= self.limit) & ~terminated
        reward = terminated.float()
        final = self._see()
        return Step(self.reset(terminated | truncated), reward, terminated, truncated, final, {"end": reward})

    def state_dict(self) -> dict[str, Tensor]:
        return {"place": self.place, "age": self.age}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.place, self.age = state["place"].clone(), state["age"].clone()
