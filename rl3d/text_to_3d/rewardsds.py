"""RewardSDS (Chachy et al. 2025, arXiv 2503.09601): SDS averaged over N noises, weighted by their rewards.

    grad = sum_i v_i w(t) (eps_hat(x_t^i) - eps^i) dx/dtheta,    sum_i v_i = 1

The weights always sum to one, so that equal weights are plain SDS (the released best-worst weights sum to 0.8, and are
divided by that). The softmax is taken over standardised scores: over raw ones its temperature would belong to one
reward's scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.text_to_3d.engine import (
    Guidance,
    Shot,
    candidate_scores,
    combine,
    in_range,
    predict,
    predict_x0,
    watch_constant,
    weight_of,
)
from rl3d.text_to_3d.method_options import RewardSDSOptions

BEST, WORST = 0.9, -0.1  # the paper's shares


def reward_weights(scores: Tensor, options: RewardSDSOptions) -> Tensor:
    """v [N, B] with sum 1 over N, from scores [N, B]; 0 for candidates without a score (NaN).

    With fewer scored candidates than the weighting needs: top2_bottom2 becomes best_worst, that becomes the only one.
    """
    v = torch.zeros_like(scores)
    for b in range(scores.shape[1]):
        alive = (~scores[:, b].isnan()).nonzero()[:, 0]
        known = scores[alive, b]
        if options.weighting == "softmax":
            z = (known - known.mean()) / known.std(correction=0).clamp_min(1e-12)
            v[alive, b] = (z / options.temperature).softmax(0)
            continue
        ends = 2 if options.weighting == "top2_bottom2" and len(alive) >= 4 else 1
        order = alive[known.argsort()]
        if len(order) == 1:
            v[order, b] = 1
        else:
            v[order[-ends:], b] = BEST / (BEST + WORST) / ends
            v[order[:ends], b] = WORST / (BEST + WORST) / ends
    return v


@torch.no_grad()
def denoised(shot: Shot, x0: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Candidates x0 [N, B, ...] taken `steps` - 1 DDIM steps further (Song et al. 2021, eq. 12), to be scored."""
    count = len(x0)
    a, s = shot.levels()
    x = (a * shot.x + s * noise).flatten(0, 1)
    clean, level = x0.flatten(0, 1), shot.t
    for step in range(1, steps):
        after = shot.t * (1 - step / steps)
        (a, s), (a_next, s_next) = shot.levels(level), shot.levels(after)
        x, level = a_next * clean + s_next * (x - a * clean) / s, after
        clean = predict_x0(shot, x, torch.full((len(x),), level, device=x.device), count)
    return in_range(shot.prior, clean).unflatten(0, x0.shape[:2])


def rewardsds(shot: Shot) -> Guidance:
    options = shot.method.rewardsds
    if shot.progress >= options.until:  # the reward has decided what is to decide; plain SDS from here
        x0 = predict(shot, shot.noise(1))
        return Guidance(combine(shot.x, x0, torch.full(x0.shape[:2], weight_of(shot))))
    noise = shot.noise(options.candidates)
    x0 = predict(shot, noise)
    scores, numbers = candidate_scores(shot, denoised(shot, x0, noise, options.denoise))
    assert shot.reward is not None
    memory = watch_constant(shot.memory, scores, shot.reward.name)
    v = reward_weights(scores, options)
    numbers |= {"weight_best": float(v.max()), "weight_worst": float(v.min())}
    return Guidance(combine(shot.x, x0, weight_of(shot) * v), numbers=numbers, memory=memory)
