"""DreamDPO (Zhou et al. 2025, arXiv 2502.04370): prefer the better of two denoised candidates of one level.

    grad = w(t) [(eps_hat_win - eps_win) - 1{s_gap > tau} (eps_hat_lose - eps_lose)] dx/dtheta

In x0 form the gated branch is x0_lose - x0_win: the render cancels, and only the preferred direction is left. The gate
is strict, so equal scores leave the winner's SDS whatever tau is (the released code tests >= with tau = 0, which never
closes); the winner's noise is subtracted in both branches and the loser has the same guidance as the winner (it has
neither there). Any judge ranks: a reward, or yes/no questions counted by `rl3d.rewards.yes_no`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.text_to_3d.engine import (
    Guidance,
    Shot,
    candidate_scores,
    combine,
    predict,
    running_mean,
    watch_constant,
    weight_of,
)


def preference_weights(scores: Tensor, threshold: float) -> Tensor:
    """v [2, B] from scores [2, B]: +1 for the winner, -1 for the loser where the gap is greater than `threshold`.

    A candidate without a score (NaN) is no loser and no winner, unless neither has one.
    """
    alone = scores.isnan().any(0)
    ranked = scores.nan_to_num(nan=-torch.inf)
    winner = ranked.argmax(0)  # of equal scores, the first
    gap = (scores[0] - scores[1]).abs()
    losing = (gap > threshold) & ~alone
    v = torch.zeros_like(scores)
    v.scatter_(0, winner[None], 1.0)
    v.scatter_(0, 1 - winner[None], -losing.to(v)[None])
    return v


def dreamdpo(shot: Shot) -> Guidance:
    options = shot.method.dreamdpo
    x0 = predict(shot, shot.noise(2))
    scores, numbers = candidate_scores(shot, x0)
    assert shot.reward is not None
    memory = watch_constant(shot.memory, scores, shot.reward.name)
    gaps = (scores[0] - scores[1]).abs()
    gaps = gaps[~gaps.isnan()]  # none for a candidate that was dropped
    unit = 1.0
    if options.scale == "std" and len(gaps):
        memory["gap"] = running_mean(shot.memory.get("gap"), float((gaps**2).mean()), shot.method.reward.window)
        unit = float(memory["gap"][0]) ** 0.5
    v = preference_weights(scores, options.tau * unit)
    numbers |= {"gap": float(gaps.mean()) if len(gaps) else 0.0, "gate": float((v < 0).any(0).double().mean())}
    return Guidance(combine(shot.x, x0, weight_of(shot) * v), numbers=numbers, memory=memory)
