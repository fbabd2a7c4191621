"""What a learner needs of an environment and of a policy: N of everything at once, as tensors on one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Generator, Tensor

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What N environments answer to N actions. A row that is done has begun a new episode already (SAME_STEP).

    Attributes:
        observation: of each row's next decision, tensors [N, ...]; of a done row, the first of its new episode.
        reward: [N] float.
        terminated: [N] bool, the episode ended: nothing comes after it.
        truncated: [N] bool, it was cut off: a learner bootstraps from `final`.
        final: what the step itself led to, tensors [N, ...]; the same as `observation` in rows that are not done.
        terms: what the reward is made of, each [N]; they add up to it.
    """

    observation: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final: Observation
    terms: Mapping[str, Tensor]

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated


class Environment(Protocol):
    """N episodes side by side. Rows end, and begin again, each for itself."""

    count: int

    def reset(self, mask: Tensor | None = None, seed: int | None = None) -> Observation:
        """Begin new episodes in the rows under the mask ([N] bool; None: all). A seed restarts the random numbers."""
        ...

    def step(self, action: Tensor) -> Step: ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that decides what comes next; `load_state_dict` takes it back, for search and for resuming."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Decision:
    """What a policy did.

    Attributes:
        action: [N, ...]. log_prob: [N] of it. value: [N], V of the observation.
        kept: what `Policy.evaluate` must see again in the update, tensors [N, ...]: the observation, its masks, and
            whatever else the draw was from.
    """

    action: Tensor
    log_prob: Tensor
    value: Tensor
    kept: dict[str, Tensor]


class Policy(Protocol):
    """An nn.Module with three readings."""

    def act(self, observation: Observation, env: Any, generator: Generator | None) -> Decision:
        """Draw an action a row; the environment is there for what depends on a first choice, such as legal places."""
        ...

    def evaluate(self, kept: Mapping[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log_prob, entropy, value) [B] of actions that were drawn before; differentiable to the parameters."""
        ...

    def value(self, observation: Observation) -> Tensor:
        """[N]."""
        ...
