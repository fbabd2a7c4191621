"""Looks at a policy while it is tuned: fixed prompts, cameras and noise, so that pictures and scores compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.rollouts import rollout
from rl3d.multiview.rounds import guarded_scores, ring
from rl3d.preview import view_sheet
from rl3d.priors.load import join_prompts
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.randomness import generator_for
from rl3d.rewards.pictures import reward_input
from rl3d.rewards.protocol import Reward

FOLDER = "looks"
PLACE = 9  # of the noise, see `seed_for`; the rounds have others


@dataclass(frozen=True)
class Looks:
    """Who looks at what; see `look`."""

    prior: Prior
    reward: Reward
    guard: Reward
    prompts: tuple[PromptEmbedding, ...]
    options: FinetuneOptions
    out: Path

    def due(self, round_: int) -> bool:
        """Whether to look after so many rounds."""
        return round_ % self.options.watch.every == 0 or round_ == self.options.rounds

    @torch.no_grad()
    def look(self, round_: int) -> dict[str, float]:
        """Mean scores of the optimised reward and of the guard, on samples without noise in their steps.

        Writes the samples as looks/round-NNNN.png, a row a prompt.
        """
        rewards, guards, pictures = [], [], []
        for first in range(0, len(self.prompts), self.options.micro_batch):
            some = range(first, min(first + self.options.micro_batch, len(self.prompts)))
            cameras = Cameras.cat([ring(self.prior, self.options, PLACE, i) for i in some])
            prompt = join_prompts([self.prompts[i] for i in some])
            noise = [generator_for(self.options.seed, PLACE, i) for i in some]
            path = rollout(self.prior, prompt, cameras, self.options.sampler, noise, keep=[])
            x = reward_input(self.prior.decode(path.clean), self.prior, cameras, prompt.prompts)
            rewards.append(guarded_scores(self.reward, x))
            guards.append(guarded_scores(self.guard, x))
            pictures.append(x.images.flatten(0, 1).cpu())
        folder = self.out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        views = self.prior.n_views
        view_sheet(torch.cat(pictures), folder / f"round-{round_:04d}.png", columns=2 * views)
        return {"reward": _mean(rewards), "guard": _mean(guards)}


def _mean(scores: Sequence[Tensor]) -> float:
    """Without the samples on which the reward broke."""
    return float(torch.cat(list(scores)).nanmean())
