"""The distillation methods by name, and what a run needs to know before it begins with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl3d.errors import ConfigError, InputError
from rl3d.priors.low_rank import AdaptablePrior
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.rewards.embedded import JudgeReward, load, refuse_gold
from rl3d.rewards.geometry import GeometricReward
from rl3d.rewards.judges import Judge
from rl3d.rewards.mvreward import MVReward
from rl3d.rewards.pictures import reward_input
from rl3d.rewards.protocol import Reward
from rl3d.rewards.reward3d import Reward3D
from rl3d.rewards.reward_cs import RewardCS
from rl3d.text_to_3d.dreamcs import dreamcs
from rl3d.text_to_3d.dreamdpo import dreamdpo
from rl3d.text_to_3d.dreamreward import dreamreward
from rl3d.text_to_3d.engine import Guidance, Shot
from rl3d.text_to_3d.ism import ism
from rl3d.text_to_3d.method_options import MethodOptions
from rl3d.text_to_3d.rewardsds import rewardsds
from rl3d.text_to_3d.sds import sds
from rl3d.text_to_3d.vsd import vsd


@dataclass(frozen=True)
class Method:
    """A method's step, and what it needs: a reward; one whose gradient reaches the images; a prior to be adapted."""

    step: Callable[[Shot], Guidance]
    reward: bool = False
    differentiable: bool = False
    adapts: bool = False


METHODS: dict[str, Method] = {
    "mvdream": Method(sds),
    "sds": Method(sds),
    "dreamreward": Method(dreamreward, reward=True, differentiable=True),
    "dreamdpo": Method(dreamdpo, reward=True),
    "rewardsds": Method(rewardsds, reward=True),
    "ism": Method(ism),
    "vsd": Method(vsd, adapts=True),
    "dreamcs": Method(dreamcs, reward=True, differentiable=True),
}


@dataclass
class Guide:
    """A method with its options and reward, and what it remembers from one step to the next."""

    options: MethodOptions = field(default_factory=MethodOptions)
    reward: Reward | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        return METHODS[self.options.name]

    def facts(self) -> dict[str, Any]:
        """For the report: the method's name, and its reward's; an end of its range that is infinite is None."""
        if self.reward is None:
            return {"name": self.options.name}
        bounds = [end if math.isfinite(end) else None for end in self.reward.range]  # JSON knows no infinity
        reward = {"name": self.reward.name, "licence": self.reward.licence, "range": bounds}
        return {"name": self.options.name, "reward": reward}


def guide_for(options: MethodOptions, prior: Prior, reward: Reward | None = None, device: str = "cpu") -> Guide:
    """A guide that fits the prior, with the embedded reward of the options where none is given.

    Raises:
        InputError: the reward is the gold judge, no reward at all, of another number of views than the prior, or
            without gradients where the method needs them; or the prior cannot be adapted and the method does that.
        ConfigError: a reward was given to a method without one.
        AssetError: the embedded reward's files are missing or broken.
    """
    method = METHODS[options.name]
    if method.adapts and not isinstance(prior, AdaptablePrior):
        raise InputError(
            f"method {options.name} trains a copy of the prior, which {prior.name} has no adapter for; leave --prior "
            "out for the embedded one, or choose another --method"
        )
    if not method.reward:
        if reward is not None:
            rewarded = ", ".join(name for name, m in METHODS.items() if m.reward)
            raise ConfigError(f"method {options.name} uses no reward; choose one of {rewarded}, or give no reward")
        return Guide(options)
    if reward is None:
        reward = load(options.reward.name, device)
    _check_reward(reward, options.name, prior, method.differentiable)
    return Guide(options, reward)


def _check_reward(reward: Any, method: str, prior: Prior, differentiable: bool) -> None:
    if isinstance(reward, Judge) and reward.name == "gold":
        refuse_gold()
    if not isinstance(reward, Reward):
        raise InputError(f"a reward is made with @rl3d.reward(...) or rl3d.rewards.load, got {type(reward).__name__}")
    if reward.views is not None and reward.views != prior.n_views:
        raise InputError(
            f"reward {reward.name!r} needs {reward.views} views an asset, the prior {prior.name} shows "
            f"{prior.n_views}; choose another reward or prior"
        )
    if isinstance(reward, GeometricReward | RewardCS) and method != "dreamcs":
        raise InputError(
            f"reward {reward.name!r} looks at {' and '.join(reward.needs)}, method {method} shows images alone; take "
            "--method dreamcs, or another reward"
        )
    if differentiable and not reward.differentiable:
        way_out = "take another reward" if method == "dreamcs" else "dreamdpo and rewardsds need none"
        raise InputError(f"method {method} needs a reward with gradients, {reward.name!r} has none; {way_out}")


def check_prompt(guide: Guide, prior: Prior, prompt: PromptEmbedding) -> None:
    """Ask an embedded reward about blank views, so that what it cannot judge is refused before any work.

    Raises:
        InputError: it knows no word of the prompt, or wants more views than the prior shows.
    """
    if isinstance(guide.reward, RewardCS):
        guide.reward.word_ids(prompt.prompts[:1])
    if not isinstance(guide.reward, JudgeReward | Reward3D | MVReward):  # a user's own may want a mesh, or a fee
        return
    cameras = prior.cameras(0.0, 0.0)
    shape = (1, prior.n_views, 4 if prior.has_alpha else 3, prior.image_size, prior.image_size)
    with torch.no_grad():
        guide.reward(reward_input(torch.zeros(shape, device=cameras.device), prior, cameras, prompt.prompts[:1]))


def reward_summary(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """The method's numbers for the report from a run's log: the mean of each over the last quarter of the steps.

    The log's "reward" is "score" here, beside "reward" with the reward's name.
    """
    last = rows[-max(1, len(rows) // 4) :] if rows else []
    own = ("reward", "spread", "gap", "gate", "weight_best", "weight_worst", "balance", "dropped", "phi_loss", "faces")
    found = {name: [float(r[name]) for r in last if name in r] for name in own}
    means = {name: round(sum(values) / len(values), 6) for name, values in found.items() if values}
    return {"score" if name == "reward" else name: value for name, value in means.items()}
