"""DreamFL (DreamReward, Ye et al. 2024, arXiv 2403.14613): score distillation minus a reward's gradient.

    grad = w(t) (eps_hat - lambda_r dr(y, x0_hat) / dg - eps) dg/dtheta,    that is  L = L_SDS - lambda_r r

The reward looks at the predicted clean views at low noise and at the render otherwise; its gradient goes straight
through to the render. It is capped, relu(cap - r), and lambda_r balances norms (`engine.balanced`) where the released
code counts digits; the distillation never leaves the loss, where the released code ends on the reward alone.
"""

from __future__ import annotations

import torch

from rl3d.text_to_3d.engine import Guidance, Shot, combine, predict, reward_gradient, watch_constant, weight_of


def dreamreward(shot: Shot) -> Guidance:
    x0 = predict(shot, shot.noise(1))
    weights = torch.full(x0.shape[:2], weight_of(shot))
    target = combine(shot.x, x0, weights)
    strength = shot.method.reward.weight.at(shot.progress)
    if strength == 0:
        return Guidance(target)
    predicted = shot.t <= shot.method.dreamreward.x0_below
    images = shot.prior.decode(x0[0]) if predicted else shot.images
    scores, push = reward_gradient(shot, images, None if predicted else shot.depths)
    assert shot.reward is not None
    memory = watch_constant(shot.memory, scores, shot.reward.name)
    numbers = {"reward": float(scores.mean())}
    return Guidance(target, push.to(shot.images), strength=strength, numbers=numbers, memory=memory)
