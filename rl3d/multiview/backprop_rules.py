"""Rules that follow the gradient of a differentiable reward into the policy. Fast, and quick to find a reward's holes.

ReFL (Xu et al. 2023, arXiv 2304.05977) judges one predicted x0 of a late step; MVReward and HFDream tune with it.
DRaFT-K (Clark et al. 2023, arXiv 2309.17400) passes the last K steps; with K drawn anew each time it is AlignProp
(Prabhudesai et al. 2023, arXiv 2310.03739).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rl3d.errors import ConfigError, InputError
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.policy import Drawn, Memory, PlainRule, Policy
from rl3d.multiview.rollouts import Path, replay
from rl3d.multiview.samplers import predict_step
from rl3d.rewards.pictures import reward_input
from rl3d.rewards.protocol import Reward, check_scores
from rl3d.rl import squared_error

Losses = Iterator[tuple[Tensor, dict[str, float]]]


class Backprop(PlainRule):
    """What both share: -r of clean samples that the gradient reaches, and the pull to the base."""

    def __init__(self, options: FinetuneOptions, reward: Reward) -> None:
        super().__init__(options)
        if not reward.differentiable:
            raise ConfigError(
                f"{options.algorithm} follows the reward's gradient, and reward {reward.name!r} has none; take another "
                "reward, or an algorithm that needs scores alone, such as nft"
            )
        if options.sampler.kind == "ddim" and options.sampler.noise == 0:
            raise ConfigError(f"{options.algorithm} goes back to noisy steps; set sampler.noise above 0")
        self.reward = reward

    def parts(self, drawn: Drawn) -> int:
        """One a micro-batch."""
        return 1

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Losses:
        generator = torch.Generator().manual_seed(drawn.seeds[0])
        k, clean, x0 = self.ending(drawn.path, policy, generator)
        prior, path = policy.prior, drawn.path
        with torch.no_grad(), policy.reference():
            base = replay(prior, path, k)[1].x0
        x = reward_input(prior.decode(clean), prior, path.cameras, path.prompt.prompts)
        scores = check_scores(self.reward(x), x, self.reward.name, True, self.reward.range)
        apart = squared_error(x0, base).mean()
        numbers = {"judged": float(scores.detach().mean()), "level": path.levels[k].t}
        yield self.options.backprop.kl * apart - scores.mean(), numbers

    def ending(self, path: Path, policy: Policy, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        """(index of the step it begins at, clean samples with a gradient, the x0 predicted at that step)."""
        raise NotImplementedError


class ReFL(Backprop):
    """One random step with its noise level in `backprop.levels`; the x0 that it predicts is judged."""

    def ending(self, path: Path, policy: Policy, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        low, high = self.options.backprop.levels
        late = [k for k, levels in enumerate(path.levels) if low <= levels.t <= high]
        if not late:
            raise InputError(
                f"no step of the sampler lies in backprop.levels [{low:g}, {high:g}]; widen them or take more steps"
            )
        k = late[int(torch.randint(len(late), (), generator=generator))]
        x0 = replay(policy.prior, path, k)[1].x0
        return k, x0, x0


class DRaFT(Backprop):
    """The last K noisy steps once more, with the noise that they had, and the clean end; K is drawn where `random`."""

    def ending(self, path: Path, policy: Policy, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        o, kept = self.options.backprop, len(path.levels)
        most = min(o.steps, kept)
        count = 1 + int(torch.randint(most, (), generator=generator)) if o.random else most
        k = kept - count
        x, first = path.states[k], None
        for i in range(k, kept):
            with torch.no_grad():
                then = predict_step(
                    policy.prior, path.states[i], path.levels[i], path.prompt, path.cameras, path.options
                )
            noise = (path.landed[i] - then.mean) / then.std
            step = predict_step(policy.prior, x, path.levels[i], path.prompt, path.cameras, path.options)
            first = step.x0 if first is None else first
            x = step.mean + step.std * noise
        t = torch.full((len(x),), path.levels[-1].u, device=x.device)
        clean, _ = policy.prior.predict_x0(x, t, path.prompt, path.cameras)
        assert first is not None
        return k, clean, first
