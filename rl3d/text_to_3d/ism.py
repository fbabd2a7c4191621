"""ISM (LucidDreamer, Liang et al. 2023, arXiv 2311.11284): interval score matching along a deterministic inversion.

The render is inverted by DDIM with the empty prompt to x_s, and from there in one step to x_t, s = t - delta_T:

    grad = w(t) [eps_cfg(x_t, t, y) - eps(x_s, s, null)] dx/dtheta,    w(t) = s_t / a_t

The last inversion step is x_t = a_t x0_s + s_t eps(x_s, s, null) with x0_s the prediction at x_s, so that in x0 form

    w(t) (eps_t - eps_s) = w(t) (a_t / s_t) (x0_s - x0_t) = x0_s - x0_t

and the paper's weight is the weight 1 here. No noise is drawn: the same render at the same level has one gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.priors.protocol import PromptEmbedding
from rl3d.text_to_3d.engine import Guidance, Shot, in_range, predict_x0, weight_of


@torch.no_grad()
def inverted(shot: Shot, levels: list[float]) -> tuple[Tensor, Tensor]:
    """The render at the last of `levels`, by DDIM inversion with the empty prompt through all of them.

    Returns:
        x_s [B, V, c, h, w] and x0_s, what the prior makes of it without a prompt.
    """
    null = PromptEmbedding(shot.prompt.negative, shot.prompt.negative, shot.prompt.prompts)

    def clean(x: Tensor, level: float) -> Tensor:
        t = torch.full((len(x),), level, device=x.device)
        return in_range(shot.prior, shot.prior.predict_x0(x, t, null, shot.cameras, 1.0)[0])

    a, s = shot.levels(levels[0])
    x = a * shot.x  # a clean picture at the first level
    x0 = clean(x, levels[0])
    for level in levels[1:]:
        eps = (x - a * x0) / s
        a, s = shot.levels(level)
        x = a * x0 + s * eps
        x0 = clean(x, level)
    return x, x0


def ism(shot: Shot) -> Guidance:
    options = shot.method.ism
    s_level = max(shot.t - options.gap.at(shot.progress), 0.5 * shot.t)
    first = min(options.first, s_level)
    count = options.inversion_steps if s_level > first else 1
    levels = [first + (s_level - first) * k / max(count - 1, 1) for k in range(count)]
    x_s, x0_s = inverted(shot, levels)
    (a_s, s_s), (a, s) = shot.levels(levels[-1]), shot.levels()
    x_t = a * x0_s + s * (x_s - a_s * x0_s) / s_s
    x0_t = predict_x0(shot, x_t, torch.full((len(x_t),), shot.t, device=x_t.device))
    gradient = weight_of(shot) * (x0_s - x0_t)
    return Guidance(shot.x - gradient, numbers={"interval": shot.t - levels[-1]})
