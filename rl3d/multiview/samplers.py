"""Sampling whose every step is a Gaussian with a known density, so that a path can be stored and replayed.

A step goes from the noise level t to u < t, where x_t = a_t x0 + s_t eps and the prior predicts x0; eps follows from
both. What a kind calls `noise`:

- "ddim": DDIM's eta (Song et al. 2021, arXiv 2010.02502, eq. 16), 1 for ancestral sampling; any prior.
- "lcm": a fresh x_u from x0 (Luo et al. 2023, arXiv 2310.04378, algorithm 3); `noise` is not used; any prior.
- "flow_sde": Flow-GRPO's a in sigma_t = a sqrt(t / (1 - t)) (Liu et al. 2025, arXiv 2505.05470, eq. 8).
- "dance_sde": DanceGRPO's constant sigma (Xue et al. 2025, arXiv 2505.07818).

The latter two need a flow-matching prior, a_t + s_t = 1. The last step, to t = 0, is never noisy: its density would be
a point, and what it adds would stay in the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.priors.protocol import Prior, PromptEmbedding, levels_of


@dataclass(frozen=True)
class Levels:
    """a and s at both ends of a step from t to u."""

    t: float
    u: float
    a_t: float
    s_t: float
    a_u: float
    s_u: float

    @classmethod
    def of(cls, prior: Prior, t: float, u: float, like: Tensor) -> Levels:
        return cls(t, u, *levels_of(prior, t, like), *(levels_of(prior, u, like) if u > 0 else (1.0, 0.0)))


@dataclass(frozen=True)
class Step:
    """N(mean, std^2 I) of x_u given x_t, and the x0 [B, V, c, h, w] behind it; differentiable to the prediction."""

    mean: Tensor
    std: float
    x0: Tensor


def ddim_step(x_t: Tensor, x0: Tensor, levels: Levels, eta: float) -> tuple[Tensor, float]:
    """DDIM's mean and standard deviation for any a, s: eta^2 times the variance of q(x_u | x_t, x0)."""
    a, s = levels.a_u / levels.a_t if levels.a_t > 0 else math.inf, levels.s_t
    kept = 0.0 if math.isinf(a) else (levels.s_u / (s * a)) ** 2  # s_u^2 a_{t|u}^2 / s_t^2
    variance = eta**2 * levels.s_u**2 * max(0.0, 1 - kept)
    eps = (x_t - levels.a_t * x0) / s
    return levels.a_u * x0 + math.sqrt(max(0.0, levels.s_u**2 - variance)) * eps, math.sqrt(variance)


def sde_step(x_t: Tensor, x0: Tensor, levels: Levels, sigma: float) -> tuple[Tensor, float]:
    """Euler-Maruyama of dx = (v - sigma^2 / 2 score) dt + sigma dW backward in t, with score = -eps / t.

    Of a flow, v = eps - x0. Marginals are kept in the limit of small steps, whatever sigma is.
    """
    eps = (x_t - levels.a_t * x0) / levels.s_t
    dt = levels.u - levels.t  # negative
    drift = (eps - x0) + 0.5 * sigma**2 * eps / levels.t
    return x_t + drift * dt, sigma * math.sqrt(-dt)


def step_from(x_t: Tensor, x0: Tensor, levels: Levels, options: SamplerOptions, noisy: bool) -> Step:
    """The step of `options.kind`, or DDIM's without noise."""
    if levels.u <= 0 or not noisy:
        return Step(*ddim_step(x_t, x0, levels, 0.0), x0)
    if options.kind == "ddim":
        return Step(*ddim_step(x_t, x0, levels, options.noise), x0)
    if options.kind == "lcm":
        return Step(levels.a_u * x0, levels.s_u, x0)
    if abs(levels.a_t + levels.s_t - 1) > 1e-4:
        raise InputError(f"sampler.kind={options.kind} needs a flow-matching prior; take sampler.kind=ddim")
    if options.kind == "flow_sde":
        inside = levels.t if levels.t < 1 else levels.u  # sigma is infinite at t = 1
        return Step(*sde_step(x_t, x0, levels, options.noise * math.sqrt(inside / (1 - inside))), x0)
    return Step(*sde_step(x_t, x0, levels, options.noise), x0)


def predict_step(
    prior: Prior,
    x_t: Tensor,
    levels: Levels,
    prompt: PromptEmbedding,
    cameras: Cameras,
    options: SamplerOptions,
    noisy: bool = True,
) -> Step:
    """One forward of the prior and the step it leads to; differentiable to the prior's parameters where enabled."""
    t = torch.full((len(x_t),), levels.t, dtype=torch.float32, device=x_t.device)
    guidance = options.guidance if levels.t >= options.guide_above else 1.0
    x0, _ = prior.predict_x0(x_t, t, prompt, cameras, guidance)
    return step_from(x_t, x0, levels, options, noisy)
