"""The embedded rewards by name. The gold judge stays outside on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rl3d.errors import InputError, nearest
from rl3d.rewards import geometry
from rl3d.rewards.epipolar import Epipolar
from rl3d.rewards.hfdream import load_hfdream
from rl3d.rewards.hull import HULL
from rl3d.rewards.judges import Judge, load_judge
from rl3d.rewards.mrc import MRC
from rl3d.rewards.mvreward import load_mvreward
from rl3d.rewards.perceptual import judge_features
from rl3d.rewards.protocol import Reward, RewardInput, check_scores
from rl3d.rewards.reward3d import load_reward3d
from rl3d.rewards.reward_cs import load_rewardcs

# By name: rewards without weights.
FORMULAS: dict[str, Reward] = {**geometry.REWARDS, HULL.name: HULL, "epipolar": Epipolar()}
# By name: networks that this project trains, from a folder of theirs or the embedded one.
TRAINED: dict[str, Callable[..., Reward]] = {
    "reward3d": load_reward3d,
    "rewardcs-mini": load_rewardcs,
    "hfdream": load_hfdream,
    "mvreward": load_mvreward,
}
HEADS = ("hfdream", "mvreward")  # "NAME:FOLDER" is one from that folder
MRC_PIXELS = 48  # rows of the views that the embedded MRC's hull fit sees


@dataclass(frozen=True)
class JudgeReward:
    """Cosine similarity of views and prompt by the reward judge; differentiable to images and alphas, any views.

    Raises:
        InputError: it is built on the gold judge, which only measures.
    """

    judge: Judge
    name: str = "judge"
    views: int | None = None
    differentiable: bool = True
    range: tuple[float, float] = (-1.0, 1.0)
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        if self.judge.name != "reward":
            refuse_gold()

    def __call__(self, x: RewardInput) -> Tensor:
        scores = self.judge.similarity(x.premultiplied(), x.prompts)
        return check_scores(scores, x, self.name, True, self.range)


def load(name: str = "judge", device: torch.device | str = "cpu", folder: str | Path | None = None) -> Reward:
    """A reward by name: "judge" (or "reward") is the embedded reward judge, "reward3d" the embedded one trained to
    rank, "hfdream" says whether views show the sides that they should and "mvreward" whether they are views of one good
    object ("hfdream:FOLDER" and "mvreward:FOLDER" are ones that tools/train_view_heads.py made), "rewardcs-mini" is the
    one that looks at meshes, "FAMILY:PATH_OR_ID" one with published weights, and the names of `FORMULAS` are formulas.
    "mrc" is Carve3D's consistency by leaving a view out, with the visual hull as reconstructor
    and the reward judge's features as distance; build `rl3d.rewards.MRC` for others.

    Raises:
        InputError: unknown name; or "gold", which only measures.
        AssetError: its files are missing or broken.
    """
    from rl3d.rewards.hub import FAMILIES, load_hub_reward

    if name in ("gold", "judge_gold"):
        refuse_gold()
    head, _, place = name.partition(":")
    if head in HEADS and head != name:
        if not place:
            raise InputError(f"reward {name!r} names no folder; give {head}:FOLDER, or {head} for the embedded one")
        name, folder = head, place
    if name in TRAINED:
        return TRAINED[name](device, folder)
    if name in FORMULAS:
        return FORMULAS[name]
    if name == "mrc":
        from rl3d.reconstruct import HullFit  # brings compiled kernels

        return MRC(HullFit(), judge_features(device, folder), view_pixels=MRC_PIXELS)
    if ":" in name or name in FAMILIES:
        return load_hub_reward(name, device)
    if name not in ("judge", "reward", "judge_reward"):
        close = nearest(name, ["judge", "reward", *TRAINED, "mrc", *FORMULAS], 1)
        raise InputError(f"no embedded reward is called {name!r}; did you mean {close[0] if close else 'judge'!r}?")
    return JudgeReward(load_judge("reward", device, folder))


def refuse_gold() -> None:
    raise InputError(
        "the gold judge only measures, it is never a reward; optimise 'judge' and read the gold score with "
        "rl3d.rewards.score_asset"
    )
