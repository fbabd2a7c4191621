"""SDS (DreamFusion, Poole et al. 2022, arXiv 2209.14988, eq. 3) and MVDream's x0 form of it (arXiv 2308.16512).

    grad = w(t) (eps_hat(x_t; y, t) - eps) dx/dtheta = w(t) (a_t / s_t) (x - x0_hat) dx/dtheta

MVDream drops the weight, L = 1/2 |x - sg(x0~)|^2, and rescales the guided prediction (`distill.rescale`, see
`rl3d.text_to_3d.rescale`); the two presets differ in these options alone.
"""

from __future__ import annotations

import torch

from rl3d.text_to_3d.engine import Guidance, Shot, combine, predict, weight_of


def sds(shot: Shot) -> Guidance:
    x0 = predict(shot, shot.noise(1))
    weights = torch.full(x0.shape[:2], weight_of(shot))
    return Guidance(combine(shot.x, x0, weights))
