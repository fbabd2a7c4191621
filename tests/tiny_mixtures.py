"""A prior with known answers, and one step's view of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rl3d.priors.mixture import GaussianMixturePrior, Mixture
from rl3d.rewards.protocol import Reward
from rl3d.text_to_3d.engine import Shot
from rl3d.text_to_3d.method_options import MethodOptions
from rl3d.text_to_3d.options import DistillOptions

VIEWS, SIZE = 2, 4
PLAIN = DistillOptions(guidance=1.0, rescale=0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(seed: int, count: int = 1, channels: int = 4) -> Tensor:
    """[count, V, C, S, S] in [0.2, 0.8], float64."""
    shape = (count, VIEWS, channels, SIZE, SIZE)
    return 0.2 + 0.6 * torch.rand(shape, dtype=torch.float64, generator=seeded(seed))


def mixture_prior(modes: Tensor, sigma: float = 0.05) -> GaussianMixturePrior:
    """ "it" means any of `modes` [K, V, C, S, S]; without a prompt, the same with a wider spread."""
    count = len(modes)
    ones = torch.ones(count, dtype=torch.float64)
    return GaussianMixturePrior({"it": Mixture(ones, modes, sigma * ones)}, Mixture(ones, modes, 4 * sigma * ones))


def shot_of(prior: GaussianMixturePrior, x: Tensor, t: float = 0.5, seed: int = 0, **changes: Any) -> Shot:
    """What a method sees of renders x [B, V, C, S, S]; `changes` are fields of `Shot`, `method` by its options."""
    cameras = prior.cameras(0.0, 0.0)
    batched = type(cameras).cat([cameras] * len(x))
    shot = Shot(prior, prior.encode_prompt("it"), batched, x, x, t, 0.5, PLAIN, MethodOptions(), None, seeded(seed))
    return replace(shot, **changes)


def scored_by(function: Any, differentiable: bool = False, **options: Any) -> Reward:
    from rl3d.rewards.protocol import reward

    return reward(views=None, differentiable=differentiable, name="test", **options)(function)
