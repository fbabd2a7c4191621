"""`LatentCompletion`: N partial clouds whose latents an agent shifts, or picks, so that they decode to whole objects.

- shift (RL-AD-Net, 2511.17054): the latent begins at E(P_in); each of K actions in [-1, 1]^G moves it, in units of
  `reach` standard deviations of the latents of complete clouds.
- pick (RL-GAN-Net, 1904.12304): one action in [-1, 1]^k is the input of the latent GAN's generator; a bandit.

The reward of a step is what it adds to the objective (`objective.py`), which never sees the missing part; with gamma 1
an episode's return is the objective's gain over decoding E(P_in) as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rl3d.agents.completion.objective import TERMS, Judge, Parts
from rl3d.agents.environment import Observation, Step
from rl3d.errors import InputError

STEPS, REACH = 2, 2.0
Mode = Literal["shift", "pick"]


class LatentCompletion:
    """Args:
    n: rows. parts: what to complete, drawn at random. judge: models and weights. mode, steps, reach: as above.
    """

    def __init__(
        self,
        n: int,
        parts: Parts,
        judge: Judge,
        mode: Mode = "shift",
        steps: int = STEPS,
        reach: float = REACH,
        seed: int = 0,
    ) -> None:
        if n < 1 or len(parts) < 1 or steps < 1 or not reach > 0:
            raise InputError(
                f"a completion environment needs a row, a part and a step or more and a reach above 0, got {n}, "
                f"{len(parts)}, {steps} and {reach}"
            )
        if mode not in ("shift", "pick"):
            raise InputError(f"mode must be 'shift' or 'pick', got {mode!r}")
        self.count, self.parts, self.judge = n, parts, judge
        self.mode, self.steps, self.reach = mode, steps if mode == "shift" else 1, reach
        self.action_size = parts.start.shape[1] if mode == "shift" else judge.gan.config.noise
        self.state_size = 2 * parts.start.shape[1] + len(TERMS) + 1
        self.generator = torch.Generator().manual_seed(seed)
        self.row = torch.zeros(n, dtype=torch.int64)
        self.code = parts.start[self.row].clone()
        self.done_steps = torch.zeros(n, dtype=torch.int64)
        self.values = torch.zeros(n, len(TERMS))  # the objective's terms of each row's latent
        self.reset(seed=seed)

    @property
    def chosen(self) -> Parts:
        """The part of each row."""
        return self.parts.of(self.row)

    def reset(self, mask: Tensor | None = None, seed: int | None = None, *, row: Tensor | None = None) -> Observation:
        """New parts in the rows under the mask: `row` ([N] int64), or drawn."""
        if seed is not None:
            self.generator.manual_seed(seed)
        rows = torch.ones(self.count, dtype=torch.bool) if mask is None else mask
        drawn = torch.randint(len(self.parts), (self.count,), generator=self.generator) if row is None else row
        self.row = torch.where(rows, drawn, self.row)
        self.code = torch.where(rows[:, None], self.parts.start[self.row], self.code)
        self.done_steps = torch.where(rows, 0, self.done_steps)
        if bool(rows.any()):
            self.values = self.values.index_put((rows.nonzero()[:, 0],), self._values(rows))
        return self.observe()

    @torch.no_grad()
    def _values(self, rows: Tensor) -> Tensor:
        terms = self.judge.terms(self.parts.of(self.row[rows]), self.code[rows])
        return torch.stack([terms[name] for name in TERMS], 1)

    def observe(self) -> Observation:
        """state [N, 2 G + 5]: the part's latent, the present one, the objective's terms, the share of steps made."""
        return {"state": observation(self.parts.start[self.row], self.code, self.values, self.done_steps / self.steps)}

    def moved(self, code: Tensor, action: Tensor) -> Tensor:
        """[N, G] the latent after an action; differentiable."""
        return code + self.reach * action if self.mode == "shift" else self.judge.gan.generate(action)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """A decoder call a row (and one more where a new episode begins).

        Raises:
            InputError: actions of another shape or outside [-1, 1].
        """
        if tuple(action.shape) != (self.count, self.action_size):
            raise InputError(f"actions must be [{self.count}, {self.action_size}], got {list(action.shape)}")
        if not bool((action.abs() <= 1 + 1e-6).all()):
            raise InputError("actions must lie in [-1, 1]; clip them")
        before = self.values
        self.code = self.moved(self.code, action)
        self.values = self._values(torch.ones(self.count, dtype=torch.bool))
        self.done_steps = self.done_steps + 1
        gain = self.values - before
        over = self.done_steps >= self.steps
        final = seen = self.observe()
        if bool(over.any()):
            seen = self.reset(over)
        terms = dict(zip(TERMS, gain.unbind(1)))
        return Step(seen, gain.sum(1), over, torch.zeros_like(over), final, terms)

    def score_candidates(self, code: Tensor) -> Tensor:
        """[N, C] the objective of latents [N, C, G] of each row; C decoder calls a row."""
        n, c = code.shape[:2]
        parts = self.parts.of(self.row.repeat_interleave(c))
        with torch.no_grad():
            terms = self.judge.terms(parts, code.flatten(0, 1))
        return torch.stack([terms[name] for name in TERMS]).sum(0).view(n, c)

    def state_dict(self) -> dict[str, Tensor]:
        names = ("row", "code", "done_steps", "values")
        return {**{name: getattr(self, name).clone() for name in names}, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in ("row", "code", "done_steps", "values"):
            setattr(self, name, state[name].clone())
        self.generator.set_state(state["generator"])


def observation(start: Tensor, code: Tensor, values: Tensor, progress: Tensor) -> Tensor:
    """[N, 2 G + 5] what an agent sees."""
    return torch.cat([start, code - start, values, progress[:, None].to(start)], 1)
